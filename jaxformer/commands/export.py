"""``jaxformer export``."""

import argparse

from jaxformer.schema import UserError

SUMMARY = "Write a run's model in the Hugging Face format, or any model as one file of plain JAX."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "run",
        metavar="RUN",
        help="output_dir of the run, for example runs/korean_topics; with --one-file also a YAML file, a family such "
        "as gpt2, a folder in the Hugging Face format or a name on the Hub",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder to write; with --one-file a file, out.py")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="with --one-file: keys of the YAML file")
    parser.add_argument("--one-file", action="store_true", help="write the model as one file of plain JAX to read")
    parser.add_argument("--adapter", action="store_true", help="write only the LoRA factors, in peft's format")
    parser.add_argument("--push", metavar="OWNER/NAME", help="also upload the files to the Hub")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the tensors")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    if options.one_file:
        return _one_file(options)
    if options.overrides:
        raise UserError(f"{options.overrides[0]!r} is given without --one-file, expected a run and a folder alone")
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


def _one_file(options: argparse.Namespace) -> int:
    if options.adapter or options.push or options.dtype:
        raise UserError("--one-file is given with --adapter, --push or --dtype, expected it alone: the file is float32")
    from jaxformer.one_file import check_target, read_source, write_one_file
    from jaxformer.training.console import Display

    check_target(options.folder)
    source = read_source(options.run, tuple(options.overrides))
    for note in source.notes:
        Display().say(note)
    for place in write_one_file(source, options.folder):
        Display().say(f"written: {place}")
    return 0
