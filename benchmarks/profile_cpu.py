"""Where the time of your own configuration's training step goes on a CPU: its matrix products, and all else.

    python benchmarks/profile_cpu.py --config configs/gpt_nano.yaml [key=value ...] [--markdown]

The first table has each matrix product of the step, timed alone as XLA runs it fastest: their sum is the floor under
the step. The second has the operations of the compiled step that took most of the threads' time, by JAX's profiler,
with what they are in the model's source.
"""

import argparse
import re
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _floor import Product, machine, products, time_product
from _timing import print_table, time_calls

STEPS, WARM_UP, LARGEST = 5, 3, 15


def prepare_step(config_file: str, overrides: list[str]) -> tuple[Any, Callable[[], None], str]:
    """The traced step, a call of the compiled one, and its program as text."""
    from jaxformer.training.memory import keep_freed_memory

    keep_freed_memory()  # before JAX is imported, as the command line does
    import jax

    from jaxformer.schema import UserError
    from jaxformer.training.console import Display
    from jaxformer.training.run import prepare
    from jaxformer.training.sources import load_config
    from jaxformer.training.state import init_state

    config = load_config(config_file, overrides)
    if config.lora is not None or config.task.generates or config.parallel.strategy != "jit":
        raise UserError("this profile is of steps that train all parameters, expected no lora, policy or pmap")
    run = prepare(config, Display(silent=True))
    state = init_state(run.model, run.optimizer, config.seed, run.abstract)
    batch = run.train_batches[0]
    traced = jax.make_jaxpr(run.train_step)(state, batch)
    placed = run.device_step.put(batch)

    def step() -> None:
        nonlocal state
        state, *_ = jax.block_until_ready(run.device_step(state, placed))

    return traced.jaxpr, step, run.lowered().compile().as_text()


def profiled(step: Callable[[], None]) -> Counter[str]:
    """Milliseconds of the threads in each operation of a step."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level, options.host_tracer_level = 0, 3
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(STEPS):
                step()
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    name = dict(event.stats).get("hlo_op")
                    if name is not None:
                        found[str(name)] += event.duration_ns / 1e6 / STEPS
    return found


def places(program: str) -> dict[str, str]:
    """For each operation of a program what it is in the model: the last parts of its path in the source's functions."""
    found = {}
    for name, path in re.findall(r'%([\w.-]+) = .*?metadata=\{[^}]*?op_name="([^"]+)"', program):
        backward = "transpose(" in path
        parts = [
            part for part in path.split("/") if not re.match(r"(jit|jvp|transpose|while|body|closed_call)\b", part)
        ]
        found[name] = " / ".join(parts[-3:]) + (" (backward)" if backward else "")
    return found


def is_product(name: str, place: str) -> bool:
    """True for the operations that XLA's libraries or its own loops multiply matrices in."""
    return "dot" in name or place.removesuffix(" (backward)").endswith(("dot_general", "einsum")) or "ynn" in name


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()

    from jaxformer.schema import UserError

    try:
        jaxpr, step, program = prepare_step(options.config, options.overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for _ in range(WARM_UP):
        step()
    milliseconds = statistics.median(time_calls(step, 2.0, STEPS))
    counts: Counter[Product] = Counter()
    for product, times in products(jaxpr):
        counts[product] += times
    alone = {product: time_product(product) for product in counts}
    floor = sum(times * alone[product] for product, times in counts.items())
    rows = [
        [
            f"{p.batch} x [{p.rows:,}, {p.inner:,}] [{p.inner:,}, {p.columns:,}] {p.dtype}",
            f"{counts[p]:,}",
            f"{counts[p] * alone[p]:,.1f}",
            f"{p.flops / alone[p] / 1e6:,.0f}",
            f"{counts[p] * alone[p] / milliseconds:.0%}",
        ]
        for p in sorted(counts, key=lambda p: -counts[p] * alone[p])[:LARGEST]
    ]
    title = f"{machine()}\na step takes {milliseconds:,.1f} ms; its products alone {floor:,.1f} ms"
    title += f", {floor / milliseconds:.0%}"
    print_table(title, ["product", "times", "ms", "GFLOP/s", "of the step"], rows, options.markdown)
    times_of, place_of = profiled(step), places(program)
    total = sum(times_of.values())
    by_place: Counter[str] = Counter()
    for name, spent in times_of.items():
        place = place_of.get(name, re.sub(r"[.\d]+$", "", name))
        by_place["matrix products" if is_product(name, place) else place] += spent
    rows = [[place, f"{spent:,.1f}", f"{spent / total:.0%}"] for place, spent in by_place.most_common(LARGEST)]
    print_table("\nThe compiled step", ["operation", "ms of the threads", "of all"], rows, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
