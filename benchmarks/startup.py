"""How long the commands take from a cold start of the process to what a user waits for.

    python benchmarks/startup.py [--rounds 3] [--markdown]

The first round of each compiles and is not counted: compiled programs and tokens are kept on disk for the next process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _floor import machine
from _timing import print_table

ROOT = Path(__file__).parent.parent
TRAIN = [str(ROOT / "train.py"), "--config", str(ROOT / "configs/gpt_nano.yaml"), "sample.max_new_tokens=0"]
# What is waited for, the command, and how the line begins that ends the wait; None: the end of the process.
WAITS = (
    ("train.py --help", [str(ROOT / "train.py"), "--help"], None),
    ("train.py, gpt_nano: first step", [*TRAIN, "training.steps=2", "output_dir={new}"], "step 1/"),
    (
        "jaxformer generate: first token",
        ["-m", "jaxformer", "generate", "--model", "{run}", "--prompt", "import os", "max_new_tokens=1"],
        None,
    ),
)


def wait(arguments: list[str], ends: str | None, environment: dict[str, str]) -> float:
    """Seconds from the start of a process to a line of its output, or to its end."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if ends is not None and line.startswith(ends):
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    if process.returncode or ends is not None:
        raise SystemExit(f"{' '.join(arguments)} ended with code {process.returncode}: {''.join(said)[-500:]}")
    return time.perf_counter() - start


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAXFORMER_CACHE": f"{folder}/cache"}
        wait([*TRAIN, "training.steps=4", f"output_dir={folder}/run"], None, environment)
        for name, arguments, ends in WAITS:
            seconds = []
            for turn in range(options.rounds + 1):
                places = {"run": f"{folder}/run", "new": f"{folder}/new{turn}"}
                given = [argument.format(**places) for argument in arguments]
                seconds.append(wait(given, ends, environment))
            kept = seconds[1:]
            rows.append([name, f"{statistics.median(kept):.2f}", f"{min(kept):.2f}", f"{seconds[0]:.2f}"])
    title = f"Seconds from the start of a process\n{machine()}"
    print_table(title, ["", "median", "min", "first time"], rows, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
