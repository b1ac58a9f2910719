"""``jaxformer predict``."""

import argparse
import time
from pathlib import Path

from jaxformer.commands.options import EXIT_SIGNAL, add_model, add_task, parse_options, start_display

SUMMARY = "Run a model over a file and write one line of JSON for each line of it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_model(parser)
    add_task(parser)
    parser.add_argument("--file", required=True, help="input: .jsonl, .csv, .tsv or .txt, optionally with .gz")
    parser.add_argument("--out", required=True, help="output; run the same command again to resume it")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="column with the text (default: text)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows in a batch (default: 8)")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code: 1 if lines failed."""
    from jaxformer.pipelines import pipeline
    from jaxformer.pipelines.predict import predict
    from jaxformer.pipelines.resumable import check_file
    from jaxformer.training.console import duration

    display = start_display(options.debug)
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
    if done.stopped_by is not None:
        display.say(f"{done.stopped_by}: stopped after line {done.lines:,} of {out}; run the same command to resume")
        return EXIT_SIGNAL[done.stopped_by]
    earlier = f", {done.earlier:,} were there already" if done.earlier else ""
    failed = f'; {done.errors:,} of {done.lines:,} failed, see their "error"' if done.errors else ""
    took = duration(time.monotonic() - start)
    display.say(f"{done.lines - done.earlier:,} lines in {took}{earlier}{failed}; written: {out}")
    return 1 if done.errors else 0
