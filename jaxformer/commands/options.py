"""Options and output that several commands share."""

import argparse
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxformer.pipelines.task_names import ALIASES, TASKS
from jaxformer.schema import UserError

if TYPE_CHECKING:
    from jaxformer.pipelines.resumable import Done
    from jaxformer.training.console import Display

EXIT_USER_ERROR = 2
EXIT_SIGNAL = {"SIGTERM": 143, "SIGINT": 130}


def add_config(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """``--config`` and overrides of its keys."""
    parser.add_argument("--config", metavar="FILE", required=required, help="YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that override those of FILE")


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--dtype`` and ``--numerics``."""
    parser.add_argument("--model", required=True, help="folder of a run, Hugging Face folder, or name on the Hub")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the parameters and computation")
    parser.add_argument(
        "--numerics",
        choices=("fast", "exact", "bfloat16"),
        help="exact: bits of a row do not depend on the batch; bfloat16: products of numbers rounded to it; default: "
        "as the run was trained, else fast",
    )


def add_task(parser: argparse.ArgumentParser) -> None:
    """``--task`` and its options."""
    tasks = ", ".join([*TASKS, *ALIASES])
    parser.add_argument("--task", help=f"one of {tasks}; default: the task of the model's head")
    add_options(parser, "the task", "top_k=3")


def add_quoting(parser: argparse.ArgumentParser) -> None:
    """``--quoting``."""
    parser.add_argument(
        "--quoting",
        choices=("auto", "double", "none"),
        default="auto",
        help="how fields of .csv and .tsv are enclosed; auto: double quotes in .csv, nothing in .tsv (default: auto)",
    )


def add_options(parser: argparse.ArgumentParser, of: str, example: str) -> None:
    """Options as ``key=value``."""
    parser.add_argument("options", nargs="*", metavar="key=value", help=f"options of {of}, for example {example}")


def parse_options(given: list[str]) -> dict[str, Any]:
    """``["top_k=3"]`` to ``{"top_k": 3}``; values are YAML.

    >>> parse_options(["top_k=3", "targets=[good, bad]", "aggregation_strategy=none"])
    {'top_k': 3, 'targets': ['good', 'bad'], 'aggregation_strategy': 'none'}
    """
    import yaml

    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is not an option, expected key=value, for example top_k=3")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value
    return options


def report_lines(done: "Done", out: Path, display: "Display", start: float) -> int:
    """Says how many lines were written since ``start``; returns a signal's exit code, 0 at the end of the input."""
    from jaxformer.training.console import duration

    if done.stopped_by is not None:
        display.say(f"{done.stopped_by}: stopped after line {done.lines:,} of {out}; run the same command to resume")
        return EXIT_SIGNAL[done.stopped_by]
    earlier = f", {done.earlier:,} were there already" if done.earlier else ""
    display.say(f"{done.lines - done.earlier:,} lines in {duration(time.monotonic() - start)}{earlier}; written: {out}")
    return 0


def start_display(debug: bool) -> "Display":
    """Prepares the process for a command that opens a model, before JAX allocates; returns the display.

    A warning of this library is one line; those of others are shown only in debug.
    """
    from jaxformer.training.console import Display
    from jaxformer.training.memory import keep_freed_memory

    keep_freed_memory()
    display = Display()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if debug or category.__module__.startswith("jaxformer"):
            display.warn(str(message))

    warnings.showwarning = show
    return display
