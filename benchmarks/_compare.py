"""One training step in jaxformer beside the same step of its peers: equal losses first, then times taken in turns.

A benchmark says what is compared (``Benchmark``) and calls ``main``. jaxformer tells the C library to keep freed
memory; a peer is tried both ways and takes part with the faster one.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from _floor import machine
from _timing import Worker, WorkerError, closing_all, print_table, serve, take_turns, time_calls

CHECKED_STEPS, TOLERANCE = 3, 1e-4
SECONDS_A_TURN, STEPS_A_TURN = 1.0, 2

JAXFORMER = "jaxformer"
TINY = "tiny"  # the shape of the tests, measured only when it is named
# What jaxformer.training.memory sets from inside its process, as glibc's environment variables.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Step:
    """One training step, done when it returns.

    Attributes:
        run: does it and returns the loss before its update.
        floor: milliseconds of its matrix products, each alone; None for a step that is not jaxformer's.
        flops: floating-point operations of the model, by the formula of ``training/flops.py``; 0 likewise.
        predicted: bytes that the compiled step needs on the device; None likewise.
        used: the most bytes in use on the device so far.
    """

    run: Callable[[], float]
    floor: Callable[[], float] | None = None
    flops: float = 0.0
    predicted: Callable[[], int] | None = None
    used: Callable[[], int | None] = lambda: None

    def __call__(self) -> float:
        """Does the step."""
        return self.run()


class Shape(NamedTuple):
    """Sizes of the model and the batch; the feed-forward layer is four times as wide as the model."""

    layers: int
    width: int
    heads: int
    length: int
    batch: int
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.layers} x {self.width}, T {self.length}, B {self.batch}, V {self.vocabulary:,}"


class Benchmark(NamedTuple):
    """What is compared.

    Attributes:
        script: file of the benchmark, which is started again as its own worker.
        title: of the table.
        shapes: by name, ``tiny`` among them.
        peers: name in the table of every kind of step beside jaxformer's; all of them are PyTorch's.
        make_step: the step of a kind. jaxformer's writes its initial weights into the file given, the peers' read it.
    """

    script: str
    title: str
    shapes: Mapping[str, Shape]
    peers: Mapping[str, str]
    make_step: Callable[[str, Shape, Path], Step]


def work(step: Step) -> None:
    """A worker: answers with the losses of its next steps, with the time of each, or with the floor under it."""

    def answer(losses: int = 0, seconds: float = 0.0, steps: int = 0, floor: bool = False) -> list[float]:
        if floor:
            assert step.floor is not None, "it is asked of jaxformer's step"
            return [step.floor()]
        return [step() for _ in range(losses)] if losses else time_calls(step, seconds, steps)

    serve(answer)


def start(benchmark: Benchmark, kind: str, shape_name: str, weights: Path, environment: dict[str, str]) -> Worker:
    """A worker process of the benchmark's file."""
    title = JAXFORMER if kind == JAXFORMER else benchmark.peers[kind] + (", memory kept" if environment else "")
    command = [benchmark.script, "--worker", kind, "--shapes", shape_name, "--weights", str(weights)]
    return Worker(title, command, {"JAX_PLATFORMS": "cpu", **environment})


def check_losses(worker: Worker, expected: list[float]) -> float:
    """Trains the first steps, which also compiles and warms up; the largest difference from the losses expected.

    Raises:
        WorkerError: if it is beyond the tolerance, so that the two would not do the same work.
    """
    losses = worker.ask(losses=CHECKED_STEPS)
    difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    if not difference <= TOLERANCE:
        raise WorkerError(f"{worker.name}: losses {losses}, expected {expected} to {TOLERANCE}")
    return difference


def faster_of_both(
    start_peer: Callable[[dict[str, str]], Worker], expected: list[float], running: list[Worker], turn: dict[str, float]
) -> float:
    """Tries a peer with and without kept memory and leaves the faster running; the difference of its losses."""
    tried = [start_peer(environment) for environment in ({}, KEEP_MEMORY)]
    running += tried
    difference = max(check_losses(worker, expected) for worker in tried)
    times = take_turns(tried, 3, **turn)
    slower = max(tried, key=lambda worker: statistics.median(times[worker.name]))
    running.remove(slower)
    slower.close()
    return difference


def compare(
    benchmark: Benchmark, shape_name: str, with_peers: bool, repeats: int, turn: dict[str, float]
) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of every step of jaxformer and the peers, by name; and of jaxformer's matrix products alone."""
    with tempfile.TemporaryDirectory() as folder, closing_all() as running:
        weights = Path(folder) / "weights.npz"
        running.append(start(benchmark, JAXFORMER, shape_name, weights, {}))
        expected = running[0].ask(losses=CHECKED_STEPS)
        for kind in benchmark.peers if with_peers else ():
            start_peer = partial(start, benchmark, kind, shape_name, weights)
            difference = faster_of_both(start_peer, expected, running, turn)
            say(f"{shape_name}: {running[-1].name}: losses of the first {CHECKED_STEPS} steps agree ({difference:.0e})")
        before = running[0].ask(floor=True)
        times = take_turns(running, repeats, **turn)
        # On both sides of the turns, since machines are faster at some times than at others.
        return times, statistics.mean([*before, *running[0].ask(floor=True)])


def say(text: str) -> None:
    """Progress, beside the table that goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def table_rows(name: str, shape: Shape, times: dict[str, list[float]], floor: float) -> list[list[str]]:
    """A row for each, jaxformer first; ``floor`` are the milliseconds of the matrix products alone."""
    ours = statistics.median(times[JAXFORMER])
    rows = []
    for implementation, milliseconds in times.items():
        median = statistics.median(milliseconds)
        numbers = [
            f"{median:,.1f}",
            f"{min(milliseconds):,.1f}",
            f"{1e3 * shape.batch * shape.length / median:,.0f}",
            f"{median / ours:.2f}",
            f"{floor:,.1f}",
            f"{floor / median:.0%}",
        ]
        rows.append([f"{name}: {shape}", implementation, *numbers])
    return rows


def parse_options(benchmark: Benchmark) -> argparse.Namespace:
    """The command line; ``--worker`` is how a benchmark starts its own processes."""
    parser = argparse.ArgumentParser(description="Time of one training step, side by side.")
    measured = [name for name in benchmark.shapes if name != TINY]
    parser.add_argument("--compare", choices=["torch"], help="measure these peers too")
    parser.add_argument("--shapes", nargs="+", choices=benchmark.shapes, default=measured)
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="turns of each (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS_A_TURN, help="length of a turn (default %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main(benchmark: Benchmark) -> int:
    """Measures what the command line asks for and prints the table; the exit code."""
    options = parse_options(benchmark)
    if options.worker:
        work(benchmark.make_step(options.worker, benchmark.shapes[options.shapes[0]], options.weights))
        return 0
    missing = [name for name in ("torch", "transformers") if options.compare and not importlib.util.find_spec(name)]
    if missing:
        say(f'error: {" and ".join(missing)} not installed; pip install -e ".[benchmark]"')
        return 2
    turn = {"seconds": options.seconds, "steps": STEPS_A_TURN}
    load = os.getloadavg()[0]
    if load > 0.5:
        say(
            f"other processes use this machine (load {load:.1f}): PyTorch's threads wait for each other and suffer most"
        )
    rows = []
    try:
        for name in options.shapes:
            times, floor = compare(benchmark, name, options.compare is not None, options.repeats, turn)
            rows += table_rows(name, benchmark.shapes[name], times, floor)
    except WorkerError as error:
        say(f"error: {error}")
        return 1
    header = ("shape", "implementation", "median ms", "min ms", "tokens/s", "time / ours", "products ms", "of time")
    print_table(f"{benchmark.title}\n{machine()}", header, rows, options.markdown)
    return 0
