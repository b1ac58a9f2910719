"""The command line: ``python train.py`` and ``jaxformer train``, ``export``, ``generate``,
``predict``, ``best-of-n``, ``data`` and ``demo``.
"""

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from jaxformer.schema import UserError

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_SIGNAL = {"SIGTERM": 143, "SIGINT": 130}
EXIT_BROKEN_PIPE = 141


class _HelpAction(argparse.Action):
    """``--help`` lists every key of the configuration, which is only imported for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints the help and exits."""
        parser.print_help()
        print("\nkeys, with type, default and meaning:\n")
        print(key_help())
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> Any:
        """Prints it and exits with code 2."""
        self.exit(EXIT_USER_ERROR, f"error: {message}; {self.prog} --help lists options and keys\n")


def parse_arguments(arguments: Sequence[str], program: str) -> argparse.Namespace:
    """The options of a training run."""
    parser = _Parser(
        prog=program,
        description="Train a Transformer. Run the same command again to go on where it stopped.",
        usage=f"{program} --config FILE [key.path=value ...] [options]",
        add_help=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="keys laid over the file's")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--dry-run", action="store_true", help="print what the run would cost, from shapes, and stop")
    parser.add_argument(
        "--compile-for",
        metavar="CHIP:TOPOLOGY",
        help="compile the step for TPUs that need not be here (v5e:16x16), print its cost on each chip, and stop",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="evaluate the run's newest checkpoint on the validation data and stop"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and what the library chose")
    parser.add_argument("-h", "--help", action=_HelpAction, nargs=0, help="show options and every key")
    return parser.parse_intermixed_args(list(arguments))


def key_help() -> str:
    """Every key of the configuration, a line each: path, type, default, meaning."""
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
    from typing import Literal, Union, get_args, get_origin

    if annotation is NoneType:
        return "null"
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if origin in (Union, UnionType):
        return " or ".join(_type_name(part) for part in get_args(annotation))
    if origin is list:
        return f"list of {_type_name(get_args(annotation)[0])}"
    if "type" in getattr(annotation, "model_fields", ()):
        return f"{{type: {annotation.model_fields['type'].default}, ...}}"
    return getattr(annotation, "__name__", str(annotation))


def train_command(arguments: Sequence[str], program: str = "train.py") -> int:
    """Runs one training command and returns its exit code."""
    return guarded(lambda: _train(parse_arguments(arguments, program)), "--debug" in arguments)


def guarded(command: Callable[[], int], debug: bool) -> int:
    """Runs a command; whatever goes wrong is one line on standard error, with a traceback only in debug."""
    try:
        return command()
    except BrokenPipeError:
        # Whoever read our output has seen enough (| head); closing it once more at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if debug and not isinstance(error, KeyboardInterrupt):
            traceback.print_exc()
        code, text = _explain(error)
        # Loaded by the commands that may be one of several processes.
        hosts = sys.modules.get("jaxformer.parallel.hosts")
        if hosts is not None:
            if code == EXIT_FAILURE:
                hosts.lost_touch()
            hosts.give_up(code, text.strip())
        print(text if isinstance(error, KeyboardInterrupt) else f"error: {text}", file=sys.stderr)
        return code


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the line for what went wrong."""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR, str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_SIGNAL["SIGINT"], "\nstopped at once; the last checkpoint is intact, run the same command to go on"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EXIT_USER_ERROR, f"the disk is full ({error}); make room and run the same command to go on"
    text = " ".join(str(error).split())[:500]
    return EXIT_FAILURE, f"{type(error).__name__}: {text}; run again with --debug for the traceback"


def _train(options: argparse.Namespace) -> int:
    if options.config is None and not options.overrides and not options.print_config:
        raise UserError("no --config given, expected a YAML file, for instance --config configs/gpt_nano.yaml")
    from jaxformer.training.memory import keep_freed_memory

    # Before JAX allocates anything.
    keep_freed_memory()
    from jaxformer.training.config import dump_config, load_config

    config = load_config(options.config, options.overrides)
    if options.print_config:
        print(dump_config(config), end="")
        return 0
    from jaxformer.cost.dry_run import plan
    from jaxformer.parallel import hosts
    from jaxformer.parallel.accelerators import idle_accelerator, tell_libtpu_without_tpu
    from jaxformer.training.compilation import keep_compiled
    from jaxformer.training.console import Display, show_warnings
    from jaxformer.training.run import prepare

    # Before JAX looks for devices.
    tell_libtpu_without_tpu()
    if options.compile_for is not None:
        return _compile_for(config, options)
    hosts.start(config.parallel.start_timeout)
    display = Display(silent=not hosts.is_first())
    show_warnings(display.console, options.debug)
    idle = idle_accelerator()
    if idle is not None:
        display.warn(f"running on the CPU although this machine has {idle}")
    keep_compiled(config.compilation_folder)
    run = prepare(config, display)
    if options.dry_run:
        display.facts(plan(run))
        code = 0
    else:
        code = _evaluate(run, display) if options.evaluate else _run(run, display)
    hosts.finish()
    return code


def _compile_for(config: Any, options: argparse.Namespace) -> int:
    from jaxformer.cost.compile_for import compile_for
    from jaxformer.training.console import Display, show_warnings

    display = Display()
    show_warnings(display.console, options.debug)
    display.facts(compile_for(config, options.compile_for, display))
    return 0


def _evaluate(run: Any, display: Any) -> int:
    from jaxformer.training.evaluation import evaluate_checkpoint, headline, in_words, write_report

    step, values, weight, report = evaluate_checkpoint(run)
    said = f"step {step}: {headline(values, weight, run.config.task)}"
    display.say(said if report is None else f"{said}, {in_words(report)}")
    if report is not None:
        files = write_report(report, run.folder / "evaluation")
        display.say(f"written: {', '.join(map(str, files))}")
    return 0


def _run(run: Any, display: Any) -> int:
    import math

    from jaxformer.training.compilation import write_hlo
    from jaxformer.training.evaluation import in_words
    from jaxformer.training.loop import train

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
        display.say(f"{result.stopped_by}: saved step {result.step} in {result.folder}; run the same command to go on")
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
    return 0


def export_command(arguments: Sequence[str], program: str = "jaxformer export") -> int:
    """Writes a run's model in the Hugging Face format and returns the exit code."""
    parser = _Parser(prog=program, description="Write a run's model in the Hugging Face format.")
    parser.add_argument("run", metavar="RUN", help="output_dir of the run, for instance runs/korean_topics")
    parser.add_argument("folder", metavar="FOLDER", help="folder to write")
    parser.add_argument("--adapter", action="store_true", help="write the trained factors alone, as peft reads them")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the same files to the Hub")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the file's tensors")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(list(arguments))

    def command() -> int:
        from jaxformer.parallel.accelerators import tell_libtpu_without_tpu
        from jaxformer.training.console import Display
        from jaxformer.training.export import export, export_adapter

        tell_libtpu_without_tpu()
        if options.adapter:
            if options.push or options.dtype:
                raise UserError("--adapter is given with --push or --dtype, expected it alone: factors are float32")
            Display().say(f"written: {export_adapter(options.run, options.folder)}")
            return 0
        for place in export(options.run, options.folder, push=options.push, dtype=options.dtype):
            Display().say(f"written: {place}")
        return 0

    return guarded(command, options.debug)


def _with_model(name: str, module: str, description: str) -> Callable[..., int]:
    """A command that opens a model; its module has the options and what it does."""

    def command(arguments: Sequence[str], program: str = f"jaxformer {name}") -> int:
        loaded = importlib.import_module(module)
        parser = _Parser(prog=program, description=description)
        loaded.add_arguments(parser)
        options = parser.parse_intermixed_args(list(arguments))
        return guarded(lambda: loaded.run(options), options.debug)

    return command


predict_command = _with_model(
    "predict", "jaxformer.pipelines.command", "Send a file through a model, a line out for each line in."
)
best_of_n_command = _with_model(
    "best-of-n",
    "jaxformer.pipelines.best_of_n_command",
    "Draw texts for each prompt and keep the one with the highest score.",
)
generate_command = _with_model(
    "generate", "jaxformer.pipelines.generate_command", "Write on from a prompt, a file of them, or in conversation."
)
demo_command = _with_model("demo", "jaxformer.demo.command", "Serve a web page for a model on this machine.")


def data_command(arguments: Sequence[str], program: str = "jaxformer data") -> int:
    """Shows rows as training would read them and returns the exit code."""
    parser = _Parser(prog=program, description="Show rows as training reads them, what is trained marked.")
    parser.add_argument("--config", metavar="FILE", required=True, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="keys laid over the file's")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="how many rows (default 3)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_intermixed_args(list(arguments))

    def command() -> int:
        from jaxformer.parallel.accelerators import tell_libtpu_without_tpu
        from jaxformer.training.config import load_config
        from jaxformer.training.console import Display, show_warnings
        from jaxformer.training.run import prepare
        from jaxformer.training.show import show_rows

        tell_libtpu_without_tpu()
        display = Display()
        show_warnings(display.console, options.debug)
        run = prepare(load_config(options.config, options.overrides), display)
        rows = run.train_batches.rows.num_rows
        display.say(f"{run.splits.name}: {run.splits.size} to train on, {rows:,} rows of {run.config.task.type}\n")
        show_rows(run, options.show, display.console)
        return 0

    return guarded(command, options.debug)


COMMANDS: dict[str, Callable[[Sequence[str], str], int]] = {
    "train": train_command,
    "export": export_command,
    "generate": generate_command,
    "predict": predict_command,
    "best-of-n": best_of_n_command,
    "data": data_command,
    "demo": demo_command,
}


def main() -> None:
    """Entry point of ``jaxformer``."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        asked = name in ("-h", "--help")
        print(f"usage: jaxformer {{{','.join(COMMANDS)}}} ...; jaxformer COMMAND --help says more", file=sys.stderr)
        sys.exit(0 if asked else EXIT_USER_ERROR)
    sys.exit(COMMANDS[name](rest, f"jaxformer {name}"))
