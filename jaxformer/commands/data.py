"""``jaxformer data``."""

import argparse

from jaxformer.commands.options import add_config

SUMMARY = "Show rows as training reads them, with the trained tokens marked."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_config(parser, required=True)
    parser.add_argument("--show", type=int, default=3, metavar="N", help="number of rows (default: 3)")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from jaxformer.training.console import Display, show_warnings
    from jaxformer.training.row_preview import show_rows
    from jaxformer.training.run import prepare
    from jaxformer.training.sources import load_config

    display = Display()
    show_warnings(display.console, options.debug)
    run = prepare(load_config(options.config, options.overrides), display)
    rows = run.train_batches.rows.num_rows
    display.say(f"{run.splits.name}: {run.splits.size} to train on, {rows:,} rows of {run.config.task.type}\n")
    show_rows(run, options.show, display.console)
    return 0
