"""The command ``jaxformer predict``, and what it shares with the others that open a model."""

import argparse
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxformer.pipelines.tasks import ALIASES, TASKS
from jaxformer.schema import UserError

if TYPE_CHECKING:
    from jaxformer.pipelines.resumable import Done
    from jaxformer.training.console import Display

EXIT_SIGNAL = {"SIGTERM": 143, "SIGINT": 130}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    tasks = ", ".join([*TASKS, *ALIASES])
    parser.add_argument("--task", metavar="TASK", help=f"default: what the model was trained for; {tasks}")
    parser.add_argument(
        "--model", metavar="MODEL", required=True, help="a run's folder, a folder, or a name on the Hub"
    )
    parser.add_argument("--file", metavar="FILE", required=True, help=".jsonl, .csv, .tsv or .txt, also with .gz")
    parser.add_argument(
        "--out", metavar="OUT", required=True, help="file to write, a line of JSON for each line of FILE"
    )
    parser.add_argument("--text-column", default="text", metavar="NAME", help="column with the text (default: text)")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="rows the model takes at once (default: 8)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of parameters and computation")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of the task, for instance top_k=3")


def parse_options(given: list[str]) -> dict[str, Any]:
    """``["top_k=3"]`` to ``{"top_k": 3}``; values are YAML.

    >>> parse_options(["top_k=3", "targets=[good, bad]", "aggregation_strategy=none"])
    {'top_k': 3, 'targets': ['good', 'bad'], 'aggregation_strategy': 'none'}

    Raises:
        UserError: one is not of this form.
    """
    import yaml

    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is no option of the task, expected key=value, for instance top_k=3")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value
    return options


def begin(debug: bool) -> "Display":
    """What a command that opens a model begins with, before JAX allocates or looks for devices; where it prints.

    A warning of this library is one line; those of others are shown only in debug.
    """
    from jaxformer.parallel.accelerators import tell_libtpu_without_tpu
    from jaxformer.training.console import Display
    from jaxformer.training.memory import keep_freed_memory

    keep_freed_memory()
    tell_libtpu_without_tpu()
    display = Display()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if debug or category.__module__.startswith("jaxformer"):
            display.warn(str(message))

    warnings.showwarning = show
    return display


def say_stopped(display: "Display", done: "Done", out: Path) -> int:
    """Says that a signal stopped a command in the middle of a file; the exit code."""
    assert done.stopped_by is not None
    display.say(f"{done.stopped_by}: stopped behind line {done.lines:,} of {out}; run the same command to go on")
    return EXIT_SIGNAL[done.stopped_by]


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code: 1 if lines failed."""
    from jaxformer.pipelines import pipeline
    from jaxformer.pipelines.lines import check_file
    from jaxformer.pipelines.predict import predict
    from jaxformer.training.console import duration

    display = begin(options.debug)
    file, out = Path(options.file).expanduser(), Path(options.out).expanduser()
    check_file(file)  # before a model is opened
    pipe = pipeline(
        options.task,
        options.model,
        batch_size=options.batch_size,
        dtype=options.dtype,
        **parse_options(options.options),
    )
    start = time.monotonic()
    with display.counting(pipe.task, "lines") as progress:
        done = predict(pipe, file, out, options.text_column, progress)
    new = done.lines - done.earlier
    said = f"{new:,} lines in {duration(time.monotonic() - start)}"
    if done.earlier:
        said += f", {done.earlier:,} were there already"
    failed = f'; {done.errors:,} of {done.lines:,} failed and say why under "error"' if done.errors else ""
    if done.stopped_by is not None:
        return say_stopped(display, done, out)
    display.say(f"{said}{failed}; written: {out}")
    return 1 if done.errors else 0
