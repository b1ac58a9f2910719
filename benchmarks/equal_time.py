"""Validation loss of one configuration with other models, each trained for the same time on this machine.

    python benchmarks/equal_time.py configs/gpt_nano.yaml --minutes 4 "model.type=mamba" \\
        "model.type=qwen3_moe model.num_experts=8 model.experts_per_token=2 model.intermediate_size=256"
    python benchmarks/equal_time.py configs/bert_nano.yaml --minutes 4 "model.type=deberta_v3"

A short run of each finds how many steps fit into the time, compiling and validation left out. The run that counts has
that many, so that the learning rate falls to the end of its schedule. The runs follow one another: start nothing else.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from _timing import print_table

ROOT = Path(__file__).parent.parent
PILOT_STEPS, LOG_EVERY = 60, 10


class Run(NamedTuple):
    """A finished run.

    Attributes:
        parameters: how many the model has, as ``train.py`` prints it.
        step_seconds: seconds of a step in each logged stretch, without compiling and validation.
        loss: of the validation at the end.
    """

    parameters: str
    step_seconds: list[float]
    loss: float


def train(config: str, overrides: str, steps: int) -> Run:
    """Trains ``config`` with ``overrides`` for ``steps`` steps in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        at_the_end = [f"training.{key}={steps}" for key in ("steps", "eval_every", "save_every")]
        keys = [f"training.log_every={LOG_EVERY}", "sample.max_new_tokens=0", f"output_dir={folder}/run"]
        command = [sys.executable, str(ROOT / "train.py"), "--config", config, *overrides.split(), *at_the_end, *keys]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{overrides or config} ended with code {done.returncode}: {done.stdout[-500:]}")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    parameters = re.search(r"^model .* ([\d,]+)\s+parameters", done.stdout, re.MULTILINE)
    batch = re.search(r"steps\s+of\s+(\d+)\s+x\s+(\d+)\s+tokens", done.stdout)
    if parameters is None or batch is None:
        raise SystemExit(f"no size of the model or the batch in: {done.stdout[:500]}")
    tokens = int(batch[1]) * int(batch[2])
    seconds = [tokens / record["tokens_per_second"] for record in records if "tokens_per_second" in record]
    return Run(parameters[1], seconds, next(r["loss"] for r in reversed(records) if r["split"] == "eval"))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="each of one run, separated by blanks")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, for each run")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_intermixed_args()
    lines = []
    for overrides in ("", *options.overrides):
        pilot = train(options.config, overrides, PILOT_STEPS)
        steps = round(60 * options.minutes / statistics.median(pilot.step_seconds))
        run = train(options.config, overrides, steps)
        seconds = steps * statistics.mean(run.step_seconds)
        print(f"{overrides or options.config}: loss {run.loss:.3f} after {seconds:.0f} s", file=sys.stderr)
        lines.append([overrides or "as it is", run.parameters, f"{steps:,}", f"{seconds:.0f}", f"{run.loss:.3f}"])
    columns = ["overrides", "parameters", "steps", "seconds of steps", "validation loss"]
    print_table(f"{options.config}, {options.minutes:g} minutes of training each", columns, lines, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
