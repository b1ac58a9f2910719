"""``jaxformer embed``."""

import argparse
import time

from jaxformer.commands.options import add_model, add_options, add_quoting, parse_options, report_lines, start_display
from jaxformer.schema import local_path

SUMMARY = "Write the vector of each line of a file, as an array or a Parquet file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_model(parser)
    parser.add_argument("--file", required=True, help="input: .jsonl, .csv, .tsv or .txt, optionally with .gz")
    parser.add_argument(
        "--out", required=True, help="output: .npy or .parquet; run the same command again to resume it"
    )
    parser.add_argument("--text-column", default="text", metavar="NAME", help="column with the text (default: text)")
    add_quoting(parser)
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows in a batch (default: 8)")
    add_options(parser, "feature-extraction", "prompt_name=query")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from jaxformer.pipelines import pipeline
    from jaxformer.pipelines.embed import check_out, embed
    from jaxformer.pipelines.features import FeatureExtraction
    from jaxformer.pipelines.resumable import check_file

    display = start_display(options.debug)
    file, out = local_path(options.file), local_path(options.out)
    check_file(file)  # before a model is opened
    check_out(out)
    pipe = pipeline(
        "feature-extraction",
        options.model,
        batch_size=options.batch_size,
        dtype=options.dtype,
        numerics=options.numerics,
        return_tensors=True,
        **parse_options(options.options),
    )
    assert isinstance(pipe, FeatureExtraction), "the class of the task"
    start = time.monotonic()
    with display.counting("embedding", "lines") as progress:
        done = embed(pipe, file, out, options.text_column, progress, options.quoting)
    return report_lines(done, out, display, start)
