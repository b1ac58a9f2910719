"""``jaxformer train`` and ``python train.py``."""

import argparse
import math
from typing import Any

from jaxformer.commands.options import EXIT_SIGNAL, add_config
from jaxformer.schema import UserError

SUMMARY = "Train a Transformer. Run the same command again to resume an interrupted run."


class _HelpAction(argparse.Action):
    """``--help`` also lists every key of the configuration, which is imported only for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints the help and exits."""
        parser.print_help()
        print("\nkeys, with type, default and meaning:\n")
        print(key_help())
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = f"{parser.prog} --config FILE [key.path=value ...] [options]"
    add_config(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument("--dry-run", action="store_true", help="print the cost of the run, from shapes alone, and exit")
    parser.add_argument(
        "--compile-for",
        metavar="CHIP:TOPOLOGY",
        help="compile the step for TPUs that need not be here (v5e:16x16), print its cost per chip and exit",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="evaluate the newest checkpoint on the validation data and exit"
    )
    parser.add_argument("-h", "--help", action=_HelpAction, nargs=0, help="show options and configuration keys")


def key_help() -> str:
    """Every key of the configuration: path, type, default, meaning."""
    from pydantic_core import PydanticUndefined

    from jaxformer.tasks import TASKS
    from jaxformer.training.config import RunConfig, config_keys

    lines = []
    section = None
    for path, field in config_keys(RunConfig):
        if path == "task.type":
            meaning = str(TASKS[field.default].__doc__).splitlines()[0]
            lines.append(f"\n  task.type: {field.default}  {meaning}")
            section = "task"
            continue
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            lines.append("")
        default = "required" if field.default is PydanticUndefined else field.default
        if field.default_factory is not None:
            default = field.default_factory()
            default = f"{{type: {default.type}}}" if hasattr(default, "type") else default
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        lines.append(f"  {path}  ({_type_name(field.annotation)}, {shown})\n      {field.description or ''}")
    return "\n".join(lines[1:])


def _type_name(annotation: Any) -> str:
    """A type as a user would write it.

    >>> _type_name(int | None), _type_name(str)
    ('int or null', 'str')
    """
    from types import NoneType, UnionType
    from typing import Annotated, Literal, Union, get_args, get_origin

    if annotation is NoneType:
        return "null"
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if origin in (Union, UnionType):
        return " or ".join(_type_name(part) for part in get_args(annotation))
    if origin is Annotated:
        return _type_name(get_args(annotation)[0])
    if origin is list:
        return f"list of {_type_name(get_args(annotation)[0])}"
    if "type" in getattr(annotation, "model_fields", ()):
        return f"{{type: {annotation.model_fields['type'].default}, ...}}"
    return getattr(annotation, "__name__", str(annotation))


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    if options.config is None and not options.overrides and not options.print_config:
        raise UserError("no --config given, expected a YAML file, for example --config configs/gpt_nano.yaml")
    from jaxformer.training.memory import keep_freed_memory

    keep_freed_memory()  # before JAX allocates
    from jaxformer.training.config import dump_config
    from jaxformer.training.sources import load_config

    config = load_config(options.config, options.overrides)
    if options.print_config:
        print(dump_config(config), end="")
        return 0
    from jaxformer.parallel import hosts
    from jaxformer.parallel.accelerators import idle_accelerator
    from jaxformer.training.compilation import keep_compiled
    from jaxformer.training.console import Display, show_warnings
    from jaxformer.training.run import prepare

    if options.compile_for is None:
        hosts.start(config.parallel.start_timeout)
    display = Display(silent=options.compile_for is None and not hosts.is_first())
    show_warnings(display.console, options.debug)
    if options.compile_for is not None:
        from jaxformer.cost.compile_for import compile_for

        display.facts(compile_for(config, options.compile_for, display))
        return 0
    idle = idle_accelerator()
    if idle is not None:
        display.warn(f"running on the CPU although this machine has {idle}")
    keep_compiled(config)
    prepared = prepare(config, display)
    if options.dry_run:
        from jaxformer.cost.dry_run import plan
        from jaxformer.training.forecast import forewarnings

        display.facts(plan(prepared))
        for line in forewarnings(prepared):
            display.warn(line)
        code = 0
    else:
        code = _evaluate(prepared, display) if options.evaluate else _train(prepared, display)
    hosts.finish()
    return code


def _evaluate(run: Any, display: Any) -> int:
    from jaxformer.training.evaluation import evaluate_checkpoint, headline, in_words, write_report

    step, values, weight, report = evaluate_checkpoint(run)
    said = f"step {step}: {headline(values, weight, run.config.task)}"
    display.say(said if report is None else f"{said}, {in_words(report)}")
    if report is not None:
        files = write_report(report, run.folder / "evaluation")
        display.say(f"written: {', '.join(map(str, files))}")
    return 0


def _train(run: Any, display: Any) -> int:
    from jaxformer.training.compilation import write_hlo
    from jaxformer.training.evaluation import in_words
    from jaxformer.training.loop import train
    from jaxformer.training.run_page import PAGE

    c = run.config
    display.facts(
        {
            "model": f"{c.model.type}, {run.size}",
            "data": f"{run.splits.name}, {run.splits.size} to train on",
            "run": f"{c.training.steps:,} steps of {c.training.batch_size} x {c.sequence_length} tokens on "
            f"{run.mesh.size} {run.mesh.devices.flat[0].platform} device(s) into {run.folder}",
        }
    )
    if c.training.dump_hlo:
        display.say(f"written: {', '.join(map(str, write_hlo(run)))}")
    result = train(run, display)
    if result.stopped_by is not None:
        display.say(f"{result.stopped_by}: saved step {result.step} in {result.folder}; run the same command to resume")
        return EXIT_SIGNAL[result.stopped_by]
    if result.sample is not None:
        display.console.rule("sample", style="dim")
        display.say(result.sample)
        display.console.rule(style="dim")
    if result.report is not None:
        display.say(f"validation: {in_words(result.report)}")
    elif result.loss is not None:
        display.say(f"validation loss {result.loss:.4f} (perplexity {math.exp(min(result.loss, 50)):.2f})")
    display.say(f"everything is in {result.folder}")
    if c.logging.report:
        display.say(f"report: {result.folder / PAGE}")
    return 0
