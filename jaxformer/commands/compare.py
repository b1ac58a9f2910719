"""``jaxformer compare``."""

import argparse
from pathlib import Path

from jaxformer.schema import UserError

SUMMARY = "Compare runs: the keys in which they differ, and one page of their curves."
PAGE = "comparison.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="output_dir of a run")
    parser.add_argument("--out", metavar="FILE.html", default=PAGE, help=f"page to write (default: {PAGE})")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from jaxformer.runs.compare import differences, write_comparison
    from jaxformer.runs.summary import summaries
    from jaxformer.training.console import Display

    if len({Path(run).resolve() for run in options.runs}) < 2:
        raise UserError(f"one run is given, {options.runs[0]}, expected two or more; its own page is report.html in it")
    if Path(options.out).suffix != ".html":
        raise UserError(f"--out is {options.out}, expected a file that ends with .html")
    found = summaries(options.runs)
    display = Display()
    display.table([run.row for run in found])
    if differing := differences(found):
        display.table([{"key": key, **{n: str(v) for n, v in values.items()}} for key, values in differing.items()])
    else:
        display.say("The configurations are alike.")
    write_comparison(found, Path(options.out))
    display.say(f"written: {options.out}")
    return 0
