"""The command line: ``jaxformer COMMAND`` and ``python train.py``."""

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from jaxformer.commands.options import EXIT_SIGNAL, EXIT_USER_ERROR
from jaxformer.schema import UserError

EXIT_FAILURE = 1
EXIT_BROKEN_PIPE = 141
# Modules of jaxformer.commands, each with SUMMARY, add_arguments(parser) and run(options).
COMMANDS = (
    *("train", "plan", "check", "verify", "runs", "compare", "sweep"),
    *("export", "inspect", "generate", "predict", "embed", "best-of-n", "data", "demo", "serve", "evaluate", "judge"),
)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> Any:
        """Prints the message and exits with code 2."""
        self.exit(EXIT_USER_ERROR, f"error: {message}; {self.prog} --help lists the options\n")


def command_module(name: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f"jaxformer.commands.{name.replace('-', '_')}")


def parse_arguments(name: str, arguments: Sequence[str], program: str | None = None) -> argparse.Namespace:
    """The options of a command; messages call it ``program``."""
    module = command_module(name)
    # The help of train lists the keys of the configuration too.
    parser = _Parser(prog=program or f"jaxformer {name}", description=module.SUMMARY, add_help=name != "train")
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks and all warnings")
    return parser.parse_intermixed_args(list(arguments))


def run(name: str, arguments: Sequence[str], program: str | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 for a failure, 2 for what the user can mend, or a signal's."""
    options = parse_arguments(name, arguments, program)
    return guarded(lambda: int(command_module(name).run(options)), options.debug)


def guarded(command: Callable[[], int], debug: bool) -> int:
    """Runs a function; any error becomes one line on standard error, with a traceback only in debug."""
    try:
        return command()
    except BrokenPipeError:
        # The reader of our output has closed it (| head); flushing at exit must not fail again.
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
                hosts.wait_for_notice()
            hosts.give_up(code, text.strip())
        print(text if isinstance(error, KeyboardInterrupt) else f"error: {text}", file=sys.stderr)
        return code


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the message for an error."""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR, str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_SIGNAL["SIGINT"], "\nstopped at once; the last checkpoint is intact, run the same command to resume"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EXIT_USER_ERROR, f"the disk is full ({error}); make room and run the same command to resume"
    text = " ".join(str(error).split())[:500]
    return EXIT_FAILURE, f"{type(error).__name__}: {text}; run again with --debug for the traceback"


def main() -> None:
    """Entry point of ``jaxformer``."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.exit(run(name, rest))
    if name not in ("-h", "--help"):
        print(f"error: unknown command {name!r}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    print("usage: jaxformer COMMAND ...\n")
    for command in COMMANDS:
        print(f"  {command:<10} {command_module(command).SUMMARY}")
    print("\njaxformer COMMAND --help lists the options of a command.")
