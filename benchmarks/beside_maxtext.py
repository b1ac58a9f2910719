"""The training step of Llama 2 7B compiled for described TPUs, here and by MaxText: memory, FLOPs, bytes, collectives.

    python3.12 -m venv other && other/bin/pip install "maxtext[tpu]==0.2.5"
    python benchmarks/beside_maxtext.py --python other/bin/python --markdown

Both are compiled ahead of time for 256 chips of a TPU v5e with parameters, gradients and optimizer split over all of
them, 4 rows of 4,096 tokens a chip, bfloat16, whole blocks recomputed. Both programs are read by the same code. MaxText
needs Python 3.12 and other versions of JAX and libtpu, so it has an environment of its own.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from _timing import print_table

from jaxformer.cost.compile_for import attention_flops, by_kind, shape_run
from jaxformer.cost.hlo import collectives, parse_program
from jaxformer.cost.hlo_cost import hbm_bytes, kernels, matmul_flops
from jaxformer.cost.topology import described_devices
from jaxformer.libtpu import tell_libtpu_without_tpu
from jaxformer.training.console import number
from jaxformer.training.forecast import gib
from jaxformer.training.run import Run
from jaxformer.training.sources import load_config

CONFIG = Path(__file__).parents[1] / "configs" / "llama_7b.yaml"
CHIPS = "v5e:16x16"
OURS = ["parallel.fsdp=256", "model.remat=full", "training.batch_size=1024", "training.accumulate=1"]
THEIRS = [
    *("model_name=llama2-7b", "compile_topology=v5e-256", "compile_topology_num_slices=1", "ici_fsdp_parallelism=256"),
    *("per_device_batch_size=4", "max_target_length=4096", "remat_policy=full", "dataset_type=synthetic"),
    *("enable_checkpointing=false", "run_name=step"),
]
# Run by MaxText's Python: its command that compiles a step, which then also writes the program and its sizes.
COMPILE = """
import importlib.util, json, pathlib, runpy, sys
import jax
folder, *options = sys.argv[1:]
analyse = jax.stages.Compiled.memory_analysis
def noted(self):
    sizes = analyse(self)
    pathlib.Path(folder, "program.txt").write_text(self.as_text())
    names = ("argument", "output", "alias", "temp", "generated_code")
    pathlib.Path(folder, "sizes.json").write_text(json.dumps({n: getattr(sizes, n + "_size_in_bytes") for n in names}))
    return sizes
jax.stages.Compiled.memory_analysis = noted
base = pathlib.Path(importlib.util.find_spec("maxtext").origin).parent / "configs" / "base.yml"
sys.argv = ["train_compile", str(base), "base_output_directory=" + folder, *options]
runpy.run_module("maxtext.trainers.pre_train.train_compile", run_name="__main__")
"""


def by_maxtext(python: str) -> tuple[str, dict[str, int]]:
    """MaxText's program as text, and its sizes in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        # JAX has named this process's libtpu to its children, and MaxText's is another.
        environment = {name: value for name, value in os.environ.items() if name != "TPU_LIBRARY_PATH"}
        environment |= {"JAX_PLATFORMS": "cpu"}
        command = [python, "-c", COMPILE, folder, *THEIRS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"error: MaxText ended with code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
            )
        sizes: dict[str, int] = json.loads((Path(folder) / "sizes.json").read_text())
        return (Path(folder) / "program.txt").read_text(), sizes


def by_jaxformer(run: Run) -> tuple[str, dict[str, int]]:
    """jaxformer's."""
    compiled = run.lowered().compile()
    sizes = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    return compiled.as_text(), {name: getattr(sizes, f"{name}_size_in_bytes") for name in names}


def facts(text: str, sizes: dict[str, int], run: Run) -> list[str]:
    """A column of the table."""
    program, of_kernel = parse_program(text), attention_flops(run)
    found = collectives(program)
    flops = matmul_flops(program) + math.fsum(one.times * of_kernel(one) for one in kernels(program))
    peak = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"] + sizes["generated_code"]
    return [
        gib(sizes["argument"]),
        gib(sizes["temp"]),
        gib(peak),
        number(flops),
        f"{number(hbm_bytes(program))}B",
        f"{number(sum(one.sent * one.times for one in found))}B",
        by_kind(found),
    ]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment that has MaxText")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    tell_libtpu_without_tpu()
    run = shape_run(load_config(CONFIG, OURS), described_devices(CHIPS)[1])
    columns = [facts(*by_jaxformer(run), run), facts(*by_maxtext(options.python), run)]
    names = ["state and batch", "temporary", "memory of a chip", "FLOPs of products"]
    names += ["to and from main memory, at least", "sent to other chips", "collectives"]
    rows = [[name, *values] for name, *values in zip(names, *columns, strict=True)]
    print_table(f"Llama 2 7B on {CHIPS}, one chip", ["", "jaxformer", "MaxText"], rows, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
