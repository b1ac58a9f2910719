"""The memory of a training step of Llama 2 7B compiled for described TPUs, here and by MaxText.

    python3.12 -m venv other && other/bin/pip install "maxtext[tpu]==0.2.5"
    python benchmarks/beside_maxtext.py --python other/bin/python --markdown

Both are compiled ahead of time for 256 chips of a TPU v5e with parameters, gradients and optimizer split over all of
them, 4 rows of 4,096 tokens a chip, bfloat16, whole blocks recomputed. MaxText needs Python 3.12 and other versions of
JAX and libtpu, so it has an environment of its own. Its program cannot be read (its JAX does not know a field that its
libtpu writes), so FLOPs and collectives are not compared.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _timing import print_table

from jaxformer.cost.compile_for import shape_run
from jaxformer.cost.topology import described_devices
from jaxformer.libtpu import tell_libtpu_without_tpu
from jaxformer.training.forecast import gib
from jaxformer.training.sources import load_config

CONFIG = Path(__file__).parents[1] / "configs" / "llama_7b.yaml"
CHIPS = "v5e:16x16"
OURS = ["parallel.fsdp=256", "model.remat=full", "training.batch_size=1024", "training.accumulate=1"]
THEIRS = [
    *("model_name=llama2-7b", "compile_topology=v5e-256", "compile_topology_num_slices=1", "ici_fsdp_parallelism=256"),
    *("per_device_batch_size=4", "max_target_length=4096", "remat_policy=full", "dataset_type=synthetic"),
    *("enable_checkpointing=false", "run_name=step"),
]
PARTS = ("argument", "output", "alias", "temp", "generated_code")
# Run by MaxText's Python: its command that compiles a step, which then also writes its sizes.
COMPILE = """
import importlib.util, json, pathlib, runpy, sys
import jax
folder, parts, *options = sys.argv[1:]
analyse = jax.stages.Compiled.memory_analysis
def noted(self):
    sizes = analyse(self)
    found = {part: getattr(sizes, part + "_size_in_bytes") for part in parts.split(",")}
    pathlib.Path(folder, "sizes.json").write_text(json.dumps(found))
    return sizes
jax.stages.Compiled.memory_analysis = noted
base = pathlib.Path(importlib.util.find_spec("maxtext").origin).parent / "configs" / "base.yml"
sys.argv = ["train_compile", str(base), "base_output_directory=" + folder, *options]
runpy.run_module("maxtext.trainers.pre_train.train_compile", run_name="__main__")
"""


def by_maxtext(python: str) -> dict[str, int]:
    """The sizes of MaxText's program in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-c", COMPILE, folder, ",".join(PARTS), *THEIRS]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            last = "".join(done.stderr.strip().splitlines()[-1:])
            raise SystemExit(f"error: MaxText ended with code {done.returncode}: {last}")
        sizes: dict[str, int] = json.loads((Path(folder) / "sizes.json").read_text())
        return sizes


def by_jaxformer() -> dict[str, int]:
    """The sizes of jaxformer's."""
    run = shape_run(load_config(CONFIG, OURS), described_devices(CHIPS)[1])
    sizes: Any = run.lowered().compile().memory_analysis()
    return {part: getattr(sizes, f"{part}_size_in_bytes") for part in PARTS}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment that has MaxText")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    tell_libtpu_without_tpu()
    rows = []
    for name, sizes in (("jaxformer", by_jaxformer()), ("MaxText", by_maxtext(options.python))):
        peak = sum(sizes.values()) - 2 * sizes["alias"]  # what is reused for results is there once
        rows.append([name, gib(sizes["argument"]), gib(sizes["temp"]), gib(sizes["generated_code"]), gib(peak)])
    header = ["", "state and batch", "temporary", "program", "in all"]
    print_table(f"Memory of one of 256 chips, Llama 2 7B on {CHIPS}", header, rows, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
