"""``jaxformer runs``."""

import argparse
import json

SUMMARY = "List the runs in a folder: state, step, best loss, metric, speed, age."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="where to look (default: runs)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from jaxformer.runs.summary import find_runs, summaries
    from jaxformer.schema import local_path
    from jaxformer.training.console import Display

    found = summaries(find_runs(options.folder), local_path(options.folder))
    if options.json:
        for run in found:
            shown = ("name", "state", "step", "steps", "loss", "training_loss", "results", "speed", "age_s")
            print(json.dumps({name: getattr(run, name) for name in shown}, ensure_ascii=False))
    else:
        Display().table([run.row for run in found])
    return 0
