"""Speed of two revisions of this repository in one run: training steps, generation, start-up of the commands.

    python benchmarks/revisions.py f370d3a HEAD [--rounds 3] [--markdown]

Each revision is checked out into a folder of its own and measured by its own benchmarks, in turns; the table gives the
median of the rounds and the ratio of the medians, above 1 where the second revision is faster. Of a training step it
also says if both compile to the same program, operation by operation: times that differ are then the machine's noise.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _timing import print_table

ROOT = Path(__file__).parent.parent
TURN = ["--repeats", "1", "--seconds", "3", "--markdown"]
# Command, and which number in its row of the table counts: milliseconds, or tokens a second.
STEPS = {
    "training step, small": (["benchmarks/train_step.py", "--shapes", "small", *TURN], "ms"),
    "training step, medium": (["benchmarks/train_step.py", "--shapes", "medium", *TURN], "ms"),
    "training step, large": (["benchmarks/train_step.py", "--shapes", "large", *TURN], "ms"),
    "training step, BERT": (["benchmarks/bert_step.py", "--shapes", "base4", *TURN], "ms"),
    "generation, batch 1": (
        ["benchmarks/generate.py", "--kinds", "float32", "--batches", "1", "--rounds", "3", "--markdown"],
        "tokens/s",
    ),
    "generation, batch 8": (
        ["benchmarks/generate.py", "--kinds", "float32", "--batches", "8", "--rounds", "3", "--markdown"],
        "tokens/s",
    ),
}
# Names of lines of the source, and of the axes of a mesh that has one device here.
NOTES = re.compile(r', (?:metadata|sharding|frontend_attributes)=\{(?:"(?:\\.|[^"\\])*"|[^"}])*\}')
COMMANDS = {
    "train.py --dry-run": ["train.py", "--config", "configs/gpt_nano.yaml", "--dry-run"],
    "jaxformer generate": [
        *("-c", "import sys; from jaxformer.cli import main; sys.argv[0] = 'jaxformer'; main()", "generate"),
        *("--model", "{run}", "--prompt", "import os", "max_new_tokens=8"),
    ],
}


def run(tree: Path, arguments: list[str], **variables: str) -> str:
    """Returns what a command in a revision prints; ``variables`` are added to its environment."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "JAXFORMER_CACHE": str(tree / "cache"), **variables}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{tree.name}: {' '.join(arguments)} ended with code {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def measure(tree: Path, name: str) -> float:
    """One measurement, in the unit of its row."""
    if name in STEPS:
        arguments, _ = STEPS[name]
        row = next(line for line in run(tree, arguments).splitlines() if re.search(r"\| jaxformer \|", line))
        return float(row.split("| jaxformer |")[1].split("|")[0].replace(",", ""))
    arguments = [argument.format(run=tree / "run") for argument in COMMANDS[name]]
    start = time.perf_counter()
    run(tree, arguments)
    return time.perf_counter() - start


def program(tree: Path, name: str) -> list[str]:
    """Returns the operations XLA runs for a training step, without the places in the source they come from."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_module_re=jit_.*step"
        run(tree, STEPS[name][0], XLA_FLAGS=flags, JAXFORMER_CACHE=folder)
        text = max(Path(folder).glob("*cpu_after_optimizations.txt"), key=lambda p: p.stat().st_size).read_text()
    lines = (line.strip() for line in text.splitlines())
    return [NOTES.sub("", line) for line in lines if line.startswith(("%", "ROOT %"))]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs=2, help="the earlier and the later one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="part of the names of the rows to measure")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    names = [name for name in (*STEPS, *COMMANDS) if options.only is None or options.only in name]
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / f"{number}-{revision}" for number, revision in enumerate(options.revisions)]
        try:
            for tree, revision in zip(trees, options.revisions, strict=True):
                subprocess.run(["git", "worktree", "add", "-q", "--detach", tree, revision], cwd=ROOT, check=True)
                if set(names) & set(COMMANDS):  # a small run to write from, and warm caches
                    sizes = ["training.steps=2", "sample.max_new_tokens=0", f"output_dir={tree / 'run'}"]
                    run(tree, ["train.py", "--config", "configs/gpt_nano.yaml", *sizes])
                    for name in COMMANDS:
                        measure(tree, name)
            for name in names:
                found: list[list[float]] = [[], []]
                for _ in range(options.rounds):
                    for values, tree in zip(found, trees, strict=True):
                        values.append(measure(tree, name))
                first, second = map(statistics.median, found)
                unit = STEPS[name][1] if name in STEPS else "s"
                ratio = second / first if unit == "tokens/s" else first / second
                programs = [program(tree, name) for tree in trees] if "training step" in name else []
                same = "" if not programs else "same" if programs[0] == programs[1] else "another"
                lines.append([name, f"{first:,.2f}", f"{second:,.2f}", unit, f"{ratio:.2f}", same])
                print(f"{name}: {first:,.2f} and {second:,.2f} {unit}", file=sys.stderr)
        finally:
            for tree in trees:
                subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=False)
    print_table("Two revisions", ["", *options.revisions, "unit", "speed", "program"], lines, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
