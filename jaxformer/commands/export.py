"""``jaxformer export``."""

import argparse

from jaxformer.schema import UserError

SUMMARY = "Write a run's model in the Hugging Face format."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", metavar="RUN", help="output_dir of the run, for example runs/korean_topics")
    parser.add_argument("folder", metavar="FOLDER", help="folder to write")
    parser.add_argument("--adapter", action="store_true", help="write only the LoRA factors, in peft's format")
    parser.add_argument("--push", metavar="OWNER/NAME", help="also upload the files to the Hub")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the tensors")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from jaxformer.training.console import Display
    from jaxformer.training.export import export, export_adapter

    if options.adapter:
        if options.push or options.dtype:
            raise UserError("--adapter is given with --push or --dtype, expected it alone: factors are float32")
        Display().say(f"written: {export_adapter(options.run, options.folder)}")
        return 0
    for place in export(options.run, options.folder, push=options.push, dtype=options.dtype):
        Display().say(f"written: {place}")
    return 0
