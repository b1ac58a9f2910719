"""Reads the text of a compiled program (``compiled.as_text()``): its loops, and every collective with size and count.

A program of XLA is a set of computations, each a list of instructions ``%name = type opcode(operands), attributes``.
Every device runs the same program, so all sizes are those of one device's part.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_OPCODE = re.compile(r" ?([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:body|calls|true_computation|false_computation)=%?([\w.\-]+)")
_APPLIED = re.compile(r"\bto_apply=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class ArrayType(NamedTuple):
    """One array as the program stores it."""

    dtype: str  # XLA's name of it, ``bf16``
    shape: tuple[int, ...]  # of one device's part
    layout: str  # order of the axes, tiling and memory space, as written

    @property
    def bytes(self) -> int:
        """Size of its values, without the padding of tiles.

        >>> ArrayType("bf16", (2, 3), "").bytes, ArrayType("pred", (), "").bytes, ArrayType("f8e4m3fn", (4,), "").bytes
        (12, 1, 4)
        """
        bits = re.search(r"\d+", self.dtype)
        # ``pred`` has no number, and what is not data (``token``, ``opaque``) no size that matters.
        width = int(bits.group()) if bits else 8
        return -(-math.prod(self.shape) * width // 8)


def array_types(text: str) -> list[ArrayType]:
    """The arrays of a type as written, a tuple's in order.

    >>> array_types("(bf16[2,3]{1,0:T(8,128)}, s32[])")[0].shape
    (2, 3)
    """
    return [
        ArrayType(dtype, tuple(map(int, dims.split(","))) if dims else (), layout or "")
        for dtype, dims, layout in _ARRAY.findall(text)
    ]


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str  # unique in its computation
    types: list[ArrayType]  # of the arrays it gives
    opcode: str
    operands: list[str]  # names of the instructions it reads
    arguments: str  # the text in the parentheses after the opcode
    attributes: str  # the text after the parentheses
    root: bool  # whether it is what the computation returns

    @property
    def called(self) -> list[str]:
        """Names of the computations it runs; of a loop the body, of a reduction not the function it reduces by."""
        branches = _BRANCHES.search(self.attributes)
        names = (_APPLIED if self.opcode == "call" else _CALLED).findall(self.attributes)
        return names + (_NAME.findall(branches[1]) if branches else [])


class Computation(dict[str, Instruction]):
    """Instructions by name, in order."""

    @property
    def root(self) -> Instruction:
        """The instruction that is returned."""
        return next(instruction for instruction in self.values() if instruction.root)


@dataclass
class Program:
    """A compiled program."""

    computations: dict[str, Computation] = field(default_factory=dict)
    entry: str = ""  # name of the computation that runs first
    devices: int = 1  # how many run it together

    def executed(self) -> "Iterator[Executed]":
        """Every instruction that runs, with how often; those of a computation called twice appear twice.

        A loop without a constant trip count, and each branch of a conditional, counts as run once.
        """
        return self._executed(self.entry, 1, self.entry)

    def _executed(self, name: str, times: int, owner: str) -> "Iterator[Executed]":
        computation = self.computations[name]
        for instruction in computation.values():
            yield Executed(instruction, computation, times, owner, name != owner)
            if instruction.opcode.endswith(("-update", "-done")):
                continue  # its start has run what it names
            turns = trip_count(instruction, computation, self.computations) if instruction.opcode == "while" else 1
            for called in instruction.called:
                # The parts of a fusion belong to its caller, where one collective may be several fusions.
                inner = owner if instruction.opcode == "fusion" else called
                yield from self._executed(called, times * (turns or 1), inner)


class Executed(NamedTuple):
    """An instruction where it is run."""

    instruction: Instruction
    computation: Computation  # the one that contains it
    times: int  # how often it runs in one run of the program, on each device
    owner: str  # the computation that schedules it: its own, or of a fusion's parts that of the fusion
    fused: bool  # whether it is a part of a fusion

    @property
    def operand_types(self) -> list[ArrayType]:
        """Types of all arrays that it reads."""
        return [one for name in self.instruction.operands for one in self.computation[name].types]


def parse_program(text: str) -> Program:
    """The computations of ``compiled.as_text()``."""
    program, current = Program(), Computation()
    head = text[:100_000]
    program.devices = find_int(r"num_partitions=(\d+)", head, 1) * find_int(r"replica_count=(\d+)", head, 1)
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = program.computations[header[2]] = Computation()
            program.entry = header[2] if header[1] else program.entry
            continue
        if found := _INSTRUCTION.match(line):
            root, name, rest = found.groups()
            # A tuple's type is in parentheses, which also occur in layouts, so they are counted.
            end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
            if opcode := _OPCODE.match(rest, end):
                close = _closing(rest, opcode.end() - 1)
                arguments, types = rest[opcode.end() : close - 1], array_types(rest[:end])
                operands = _NAME.findall(arguments)
                current[name] = Instruction(name, types, opcode[1], operands, arguments, rest[close:], bool(root))
    return program


def find_int(pattern: str, text: str, default: int) -> int:
    """The first number that a pattern finds."""
    found = re.search(pattern, text)
    return int(found[1]) if found else default


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at ``start``."""
    depth = 0
    for place in re.finditer(r"[()]", text[start:]):
        depth += 1 if place.group() == "(" else -1
        if depth == 0:
            return start + place.end()
    return len(text)


def trip_count(loop: Instruction, computation: Computation, computations: Mapping[str, Computation]) -> int | None:
    """Trip count of a loop; None if it is not a constant.

    XLA:CPU and XLA:GPU write it down. XLA:TPU does not: there it is read from the condition, ``counter < constant``,
    and the counter's first value, 0 where that is not written beside the loop; the counters of JAX's loops go up by 1.
    """
    known = find_int(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes, -1)
    if known >= 0:
        return known
    name = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    assert name is not None, "every while has a condition"
    condition = computations[name[1]]
    compare = condition.root
    compared = computations[compare.called[0]].root if compare.opcode == "fusion" else compare
    if "direction=LT" not in compared.attributes or len(compare.operands) != 2:
        return None
    counter, limit = (condition.get(operand) for operand in compare.operands)
    index = -1 if counter is None else find_int(r"index=(\d+)", counter.attributes, -1)
    last = _constant(limit, condition)
    if index < 0 or last is None:
        return None
    start = computation.get(loop.operands[0])
    first = None
    if start is not None and start.opcode == "tuple":
        first = _constant(computation.get(start.operands[index]), computation)
    return max(0, last - (first or 0))


def _constant(instruction: Instruction | None, computation: Computation) -> int | None:
    """The integer of a constant or of a copy of one, else None."""
    while instruction is not None and instruction.opcode in ("copy", "bitcast"):
        instruction = computation.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.arguments):
        return None
    return int(instruction.arguments)


def exchanges(program: Program) -> list[Executed]:
    """Every collective that runs, once.

    A synchronous one and a pair of ``-start`` and ``-done`` are one. So is what XLA:TPU overlaps with computation: it
    writes one collective into several fusions, which share its channel.
    """
    found: dict[tuple[str, str], Executed] = {}
    for run in program.executed():
        if run.instruction.opcode.removesuffix("-start") in COLLECTIVES:
            channel = re.search(r"channel_id=(\d+)", run.instruction.attributes)
            found[run.owner, channel[1] if channel else run.instruction.name] = run
    return list(found.values())


def is_reduce_scatter(run: Executed) -> bool:
    """True if an all-reduce is a reduce-scatter, which XLA:TPU writes as a fusion with a slice of its result."""
    if run.instruction.opcode != "all-reduce" or not run.fused:
        return False
    return sum(t.bytes for t in run.computation.root.types) < sum(t.bytes for t in run.operand_types)


def is_overlapped(run: Executed) -> bool:
    """True if a collective runs beside computation: a pair of ``-start`` and ``-done``, of instructions or fusions."""
    notes = (one.attributes for one in run.computation.values() if one.opcode == "custom-call")
    return run.instruction.opcode.endswith("-start") or any("AsyncCollective" in note for note in notes)


class Collective(NamedTuple):
    """Equal collectives of one program.

    ``bytes`` are those of the array that is reduced, gathered, scattered or exchanged, as the textbook counts it: what
    a device holds before an all-reduce, a reduce-scatter, an all-to-all or a permute, and after an all-gather.
    """

    kind: str  # ``all-reduce``, ``all-gather``, ``reduce-scatter``, ``all-to-all`` or ``collective-permute``
    bytes: int
    group: int  # how many devices take part in each together
    times: int  # how often it runs in one run of the program

    @property
    def sent(self) -> float:
        """Bytes a device sends in one of them, by the ring algorithms (Patarasuk and Yuan 2009).

        ``(g - 1) / g`` of the array to gather, to scatter or to exchange, twice that to reduce, all of it to permute.

        >>> Collective("all-reduce", 800, 8, 1).sent, Collective("all-gather", 800, 8, 1).sent
        (1400.0, 700.0)
        """
        if self.kind == "collective-permute":
            return float(self.bytes)
        return self.bytes * ring_share(self.group, self.kind == "all-reduce")


def collectives(program: Program, waited_for: bool = False) -> list[Collective]:
    """Every collective of a compiled program, equal ones together, those that send most in all first.

    With ``waited_for`` only those that nothing is computed beside.
    """
    counts: dict[Collective, int] = {}
    for run in exchanges(program):
        if waited_for and is_overlapped(run):
            continue
        kind = "reduce-scatter" if is_reduce_scatter(run) else run.instruction.opcode.removesuffix("-start")
        group = group_size(run.instruction.attributes, program.devices)
        size = sum(t.bytes for t in run.operand_types) * (group if kind == "all-gather" else 1)
        # A group of one device exchanges nothing.
        if group > 1:
            alike = Collective(kind, size, group, 1)
            counts[alike] = counts.get(alike, 0) + run.times
    return sorted((one._replace(times=times) for one, times in counts.items()), key=lambda one: -one.sent * one.times)


def between_slices(program: Program) -> float:
    """Bytes that a chip sends to other slices in one run of the program, over the data center's network.

    XLA:TPU writes what slices exchange as a ``send`` of each chip's part to its runtime on the host, with the slices
    that take part; by a ring of them ``(s - 1) / s`` of it goes out, twice that to reduce.
    """
    total = 0.0
    for run in program.executed():
        notes = run.instruction.attributes
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', notes)
        if run.instruction.opcode != "send" or kind is None:
            continue
        slices = slices_of(notes)
        total += run.times * run.operand_types[0].bytes * ring_share(slices, kind[1] == "ALL_REDUCE")
    return total


def slices_of(notes: str) -> int:
    """Number of slices that take part in an exchange.

    >>> slices_of('_xla_megascale_target="{1,2}x{0:7}"'), slices_of('_xla_megascale_target="{1:4}x{0:7}"')
    (2, 4)
    """
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', notes)
    parts = [part.split(":") for part in target[1].split(",")] if target else [["1"], ["2"]]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in parts)


def ring_share(size: int, reduces: bool = False) -> float:
    """Share of an array that each member of a ring sends to gather or to scatter it, or to reduce it."""
    return (size - 1) / size * (2 if reduces else 1)


def group_size(attributes: str, devices: int) -> int:
    """Number of devices of a collective, in each notation that XLA uses.

    >>> group_size("replica_groups={{0,1},{2,3}}", 4), group_size("replica_groups=[2,4]<=[8]", 8)
    (2, 4)
    >>> group_size("replica_groups=mesh['a'=2,'b'=4], device_ids=([8]) {'b'}", 8)
    4
    >>> group_size("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", 4)
    2
    """
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    if pairs:
        target = {int(a): int(b) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])}
        # All are rings of one size, or one line of devices, which is followed from its beginning.
        device = next((device for device in target if device not in target.values()), min(target))
        passed = {device}
        while (device := target.get(device, device)) not in passed:
            passed.add(device)
        return len(passed)
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
    if tiled:
        return int(tiled[1])
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^)]*(?:\([^)]*\))?[^)]*\))? ?\{([^}]*)\}", attributes
    )
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        # A part of an axis is written with its size: 'a':(2)4.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return devices
