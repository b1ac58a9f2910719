"""Cost of a compiled program on one device: matrix-product FLOPs and bytes moved to and from its memory.

XLA's own ``cost_analysis()`` counts the body of a loop once, whatever the number of its turns: measured on XLA:CPU and
XLA:TPU in jax 0.10.2, a scan over 8 layers has the FLOPs of one over 4. A train step is such loops (layers, accumulated
parts, chunks of the loss), so both are counted here, from the program's text, times the turns.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxformer.cost.hlo import (
    COLLECTIVES,
    ArrayType,
    Computation,
    Executed,
    Instruction,
    Program,
    exchanges,
    find_int,
    is_reduce_scatter,
)

# Instructions that touch no memory of their own: names for what is there, or counted by what they run.
_NAMES = {"after-all", "bitcast", "constant", "get-tuple-element", "opt-barrier", "parameter", "tuple"}
_RUN_OTHERS = {"call", "conditional", "while"}
# In a fusion, instructions that hand an array on: what they do is not done by the fusion.
_PASSES_ON = {"tuple", "custom-call", *COLLECTIVES}


def matmul_flops(program: Program) -> float:
    """Floating-point operations of all matrix products of one run on one device, 2 per multiply-add.

    XLA:TPU writes every product as a convolution. What a kernel does inside is not seen here.
    """
    counts = {"dot": _dot_flops, "convolution": _convolution_flops}
    runs = [run for run in program.executed() if run.instruction.opcode in counts]
    return sum(float(run.times * counts[run.instruction.opcode](run.instruction, run.computation)) for run in runs)


class Operation(NamedTuple):
    """One instruction that a core runs by itself, before the next.

    Attributes:
        times: how often it runs.
        flops: of the matrix products in it.
        bytes: read from and written to main memory.
    """

    times: int
    flops: float
    bytes: float


def operations(program: Program, kernel_flops: Callable[[Executed], float] = lambda run: 0.0) -> list[Operation]:
    """The instructions that a core runs one after the other, without collectives.

    Copies that XLA:TPU writes as a pair of ``-start`` and ``-done`` run beside them and are left out. ``kernel_flops``
    gives the floating-point operations of a kernel, which is not seen inside.
    """
    counts = {"dot": _dot_flops, "convolution": _convolution_flops}
    inside: dict[str, float] = {}  # flops of the products of a fusion's computation

    def flops_in(name: str) -> float:
        if name not in inside:
            inside[name] = math.fsum(
                flops_of(one, program.computations[name]) for one in program.computations[name].values()
            )
        return inside[name]

    def flops_of(instruction: Instruction, computation: Computation) -> float:
        if instruction.opcode == "fusion":
            return math.fsum(flops_in(name) for name in instruction.called)
        count = counts.get(instruction.opcode)
        return 0.0 if count is None else float(count(instruction, computation))

    found = []
    for run in program.executed():
        opcode = run.instruction.opcode
        if run.fused or opcode.endswith(("-start", "-done", "-update")) or opcode in COLLECTIVES:
            continue
        kernel = _is_kernel(run.instruction)
        flops = kernel_flops(run) if kernel else flops_of(run.instruction, run.computation)
        moved = float(_moved(run, program))
        if flops or moved:
            found.append(Operation(run.times, flops, moved))
    return found


def kernels(program: Program) -> list[Executed]:
    """The kernels of a TPU program (Pallas) where they are run."""
    return [run for run in program.executed() if _is_kernel(run.instruction)]


def _is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes


def _dot_flops(dot: Instruction, computation: Computation) -> int:
    shape = computation[dot.operands[0]].types[0].shape
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    axes = map(int, contracted[1].split(",")) if contracted and contracted[1] else ()
    return 2 * math.prod(dot.types[0].shape) * math.prod(shape[axis] for axis in axes)


def _convolution_flops(convolution: Instruction, computation: Computation) -> int:
    """FLOPs of a convolution; positions of the window in padding or between dilated inputs do not count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    assert labels is not None, "every convolution names its dimensions"
    left = dict(zip(labels[1], computation[convolution.operands[0]].types[0].shape, strict=True))
    out = dict(zip(labels[3], convolution.types[0].shape, strict=True))
    flops = 2 * (left["b"] // find_int(r"batch_group_count=(\d+)", convolution.attributes, 1)) * out["f"]
    flops *= left["f"] // find_int(r"feature_group_count=(\d+)", convolution.attributes, 1)
    written = re.search(r"window=\{([^}]*)\}", convolution.attributes)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", written[1] if written else ""))
    for axis in range(len(left) - 2):
        number = {key: window[key].split("x")[axis] for key in window}
        stride, inner, outer = (int(number.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate"))
        before = int(number.get("pad", "0_0").split("_")[0])
        starts = np.arange(out[str(axis)])[:, None] * stride - before
        places = starts + np.arange(int(number.get("size", 1)))[None] * outer
        inside = (places >= 0) & (places <= (left[str(axis)] - 1) * inner) & (places % inner == 0)
        flops *= int(inside.sum())
    return flops


def hbm_bytes(program: Program) -> float:
    """Bytes read from and written to a device's main memory in one run, at least.

    Each instruction that is not part of a fusion reads its operands and writes its outputs once; of an array that is
    only sliced the slice counts, of one that is updated in place the update. Arrays that XLA:TPU keeps in the chip's
    fast memory (``S(1)`` in their layout) do not count. A kernel that reads an operand twice moves more than this.
    """
    moved = sum(float(run.times * _moved(run, program)) for run in program.executed() if not run.fused)
    return moved + sum(run.times * (_in_hbm(run.operand_types) + _in_hbm(_received(run))) for run in exchanges(program))


def _received(run: Executed) -> list[ArrayType]:
    """The arrays that a collective writes; none in a fusion that slices the result, which is written by the fusion."""
    if is_reduce_scatter(run):
        return []
    # The tuple of a start: its operands, what is received, its context; of an all-reduce only what is received.
    types, operands = run.instruction.types, len(run.instruction.operands)
    return (types[operands : 2 * operands] if run.instruction.opcode.endswith("-start") else []) or types


def _moved(run: Executed, program: Program) -> int:
    instruction, opcode = run.instruction, run.instruction.opcode
    if opcode in _NAMES | _RUN_OTHERS or opcode.removesuffix("-start") in COLLECTIVES:
        return 0
    if opcode.endswith(("-id", "-done")):
        return 0  # the number of this device; what its start has done
    if opcode == "fusion":
        return _moved_by_fusion(run, program)
    if opcode == "custom-call" and not _is_kernel(instruction):
        return 0  # XLA:TPU's notes on buffers
    operands = [run.computation[name].types for name in instruction.operands]
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2 * _in_hbm(operands[-1] if opcode == "scatter" else operands[1])
    if opcode in ("dynamic-slice", "slice", "gather", "slice-start"):
        # The tuple of a start: operands, what is written, its context.
        part = instruction.types[-2:-1] if opcode == "slice-start" else instruction.types
        return _in_hbm(part) + (_bytes(part) if _in_hbm(operands[0]) else 0)
    if opcode == "copy-start":
        return _in_hbm(operands[0]) + _in_hbm(instruction.types[:1])
    return _in_hbm(run.operand_types) + _in_hbm(instruction.types)


def _moved_by_fusion(run: Executed, program: Program) -> int:
    fusion, inner, total = run.instruction, program.computations[run.instruction.called[0]], 0
    for instruction in inner.values():
        if instruction.opcode == "parameter":
            outer = run.computation[fusion.operands[int(instruction.arguments)]]
            if _in_hbm(outer.types):
                total += _read_of(instruction.name, inner, program)
    parts = [inner[name] for name in inner.root.operands] if inner.root.opcode == "tuple" else [inner.root]
    for part, kept in zip(parts, fusion.types, strict=False):
        if _in_hbm([kept]):
            total += _written_of(part, inner, program)
    return total


def _read_of(name: str, computation: Computation, program: Program) -> int:
    """Bytes of an array that a fusion reads: of one that is only sliced the slices, of one updated in place none.

    What is only passed on (by a tuple, or to a collective, which is counted by itself) is not read.
    """
    total = 0
    for user in computation.values():
        if name not in user.operands or user.opcode in _PASSES_ON:
            continue
        place = user.operands.index(name)
        if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
            total += _bytes(user.types)
        elif user.opcode == "fusion":
            inner = program.computations[user.called[0]]
            parameter = next(i for i in inner.values() if i.opcode == "parameter" and i.arguments == str(place))
            total += _read_of(parameter.name, inner, program)
        elif user.opcode == "bitcast":
            total += _read_of(user.name, computation, program)
        elif user.opcode not in ("dynamic-update-slice", "scatter") or place != 0:
            return _bytes(computation[name].types)
    return min(_bytes(computation[name].types), total)


def _written_of(part: Instruction, computation: Computation, program: Program) -> int:
    """Bytes of an output that a fusion writes: the update where it updates in place, none where it only passes on."""
    while part.opcode == "bitcast":
        part = computation[part.operands[0]]
    if part.opcode in _PASSES_ON or part.opcode == "parameter":
        return 0
    if part.opcode == "fusion":
        inner = program.computations[part.called[0]]
        return _written_of(inner.root, inner, program)
    if part.opcode == "dynamic-update-slice":
        return _bytes(computation[part.operands[1]].types)
    if part.opcode == "scatter":
        return _bytes(computation[part.operands[-1]].types)
    return _bytes(part.types)


def _bytes(types: list[ArrayType]) -> int:
    return sum(t.bytes for t in types)


def _in_hbm(types: list[ArrayType]) -> int:
    return _bytes([t for t in types if "S(" not in t.layout])
