"""``jaxformer sweep``."""

import argparse

from jaxformer.commands.options import EXIT_SIGNAL, add_config

SUMMARY = (
    "Train all combinations of some keys' values, one after the other: optimizer.learning_rate=1e-3,3e-4 seed=0,1,2."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_config(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code: 1 if a run failed."""
    from jaxformer.runs.compare import write_comparison
    from jaxformer.runs.summary import summaries
    from jaxformer.runs.sweep import PAGE, combinations, run_sweep, table
    from jaxformer.training.console import Display

    display = Display()
    top, runs = combinations(options.config, options.overrides)
    display.say(f"{len(runs)} runs into {top}")
    result = run_sweep(options.config, top, runs, display)
    if result.finished:
        display.table(table(runs, result.finished))
        write_comparison(summaries(list(result.finished), top), top / PAGE)
        display.say(f"curves of all: {top / PAGE}")
    for folder, code in result.failed.items():
        display.warn(f"{folder.name} failed with exit code {code}; its message is above")
    if result.stopped_by is not None:
        done = f"{len(result.finished)} of {len(runs)} runs are finished"
        display.say(f"{result.stopped_by}: {done}; run the same command to go on")
        return EXIT_SIGNAL[result.stopped_by]
    return 1 if result.failed else 0
