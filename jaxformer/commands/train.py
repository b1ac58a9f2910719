"""``jaxformer train`` and ``python train.py``."""

import argparse
import math
from importlib.resources import files
from typing import Any

from jaxformer.commands.options import EXIT_SIGNAL, add_config
from jaxformer.schema import UserError

KEYS = "train_keys.txt"  # written by jaxformer.commands.key_help, which would take three seconds to import
SUMMARY = "Train a Transformer. Run the same command again to resume an interrupted run."


class _HelpAction(argparse.Action):
    """``--help`` also lists every key of the configuration."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints the help and exits."""
        parser.print_help()
        print("\nkeys, with type, default and meaning:\n")
        print(files("jaxformer.commands").joinpath(KEYS).read_text(encoding="utf-8"), end="")
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
