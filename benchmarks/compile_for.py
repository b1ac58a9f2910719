"""What one training step costs on TPUs that are only described, and how long compiling it takes as layers are added.

    pip install -e ".[tpu]" && python benchmarks/compile_for.py [--repeats 5]

Prints the tables of docs/scaling.md. Everything but the compile times is a property of the compiled program and of the
version of libtpu, whatever the machine. No TPU takes part.
"""

import argparse
import time
from pathlib import Path
from statistics import median

from jaxformer.cost.compile_for import by_kind, gib, shape_run, step_cost
from jaxformer.cost.topology import described_devices
from jaxformer.training.console import number
from jaxformer.training.sources import load_config

CONFIGS = Path(__file__).parent.parent / "configs"
CASES = (
    ("gpt2_124m", "v5e:2x4"),
    ("llama_1b", "v5e:16x16"),
    ("llama_7b", "v5p:4x4x4"),
    ("llama_7b", "v6e:16x16"),
)
# The depths whose compile times are compared, and a step with room in memory for both.
DEPTHS = (12, 48)
DEPTH_CASE = ("gpt2_124m", "v5e:2x4", "model.remat=full", "training.accumulate=20")


def cost_row(config: str, target: str) -> str:
    chip, devices = described_devices(target)
    run = shape_run(load_config(CONFIGS / f"{config}.yaml"), devices)
    cost = step_cost(run)
    axes = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items() if size > 1)
    busy = " / ".join(f"{1000 * seconds:,.0f}" for seconds in cost.times(chip).values())
    memory = [gib(size).removesuffix(" GiB") for size in (cost.parameters, cost.optimizer, cost.activations, cost.peak)]
    cells = [config, target, axes, *memory, f"{chip.hbm // 2**30}", number(cost.flops), number(cost.moved) + "B"]
    cells += [by_kind(cost.collectives), busy, f"{cost.mfu_bound(chip):.0%}", f"{cost.seconds:.0f} s"]
    return f"| {' | '.join(cells)} |"


def compile_seconds(layers: int) -> float:
    config, target, *keys = DEPTH_CASE
    run = shape_run(
        load_config(CONFIGS / f"{config}.yaml", [*keys, f"model.num_layers={layers}"]), described_devices(target)[1]
    )
    start = time.perf_counter()
    run.lowered().compile()
    return time.perf_counter() - start


def depth_table(repeats: int) -> list[str]:
    """Depths take turns, so that a slow minute of the machine falls on both; the first turn warms up."""
    times: dict[int, list[float]] = {layers: [] for layers in DEPTHS}
    for turn in range(repeats + 1):
        for layers in DEPTHS:
            seconds = compile_seconds(layers)
            if turn:
                times[layers].append(seconds)
    rows = [f"| {n} | {median(t):.1f} s | {min(t):.1f} to {max(t):.1f} s |" for n, t in times.items()]
    ratio = median(times[DEPTHS[1]]) / median(times[DEPTHS[0]])
    return [
        "| layers | median | range |",
        "|---|---|---|",
        *rows,
        "",
        f"Ratio of the medians of {repeats}: {ratio:.2f}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="compilations of each depth, after one to warm up")
    options = parser.parse_args()
    names = ["configuration", "target", "axes", "parameters", "optimizer", "activations", "peak", "of GiB", "FLOP"]
    names += ["moved", "collectives (sent)", "compute / memory / network / in turn ms", "MFU at most", "compiled in"]
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|", flush=True)
    for case in CASES:
        print(cost_row(*case), flush=True)
    print()
    print("\n".join(depth_table(options.repeats)))


if __name__ == "__main__":
    main()
