"""``jaxformer predict``."""

import argparse
import time

from jaxformer.commands.options import add_model, add_quoting, add_task, parse_options, report_lines, start_display
from jaxformer.schema import local_path

SUMMARY = "Run a model over a file and write one line of JSON for each line of it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_model(parser)
    add_task(parser)
    parser.add_argument("--file", required=True, help="input: .jsonl, .csv, .tsv or .txt, optionally with .gz")
    parser.add_argument("--out", required=True, help="output; run the same command again to resume it")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="column with the text (default: text)")
    add_quoting(parser)
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows in a batch (default: 8)")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code: 1 if lines failed."""
    from jaxformer.pipelines import pipeline
    from jaxformer.pipelines.predict import predict
    from jaxformer.pipelines.resumable import check_file

    display = start_display(options.debug)
    file, out = local_path(options.file), local_path(options.out)
    check_file(file)  # before a model is opened
    pipe = pipeline(
        options.task,
        options.model,
        batch_size=options.batch_size,
        dtype=options.dtype,
        numerics=options.numerics,
        **parse_options(options.options),
    )
    start = time.monotonic()
    with display.counting(pipe.task, "lines") as progress:
        done = predict(pipe, file, out, options.text_column, progress, options.quoting)
    code = report_lines(done, out, display, start)
    if code == 0 and done.errors:
        display.say(f'{done.errors:,} of {done.lines:,} lines failed, see their "error"')
        return 1
    return code
