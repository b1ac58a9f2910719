"""The command ``jaxformer demo``."""

import argparse
import socket
import threading
from typing import Any

from jaxformer.pipelines.tasks import ALIASES, TASKS
from jaxformer.schema import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    tasks = ", ".join([*TASKS, *ALIASES])
    parser.add_argument(
        "--model", metavar="MODEL", required=True, help="a run's folder, a folder, or a name on the Hub"
    )
    parser.add_argument("--task", metavar="TASK", help=f"default: what the model was trained for; {tasks}")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone; 0.0.0.0: all")
    parser.add_argument("--port", type=int, metavar="N", help="default: 7860, or the next one that is free")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of parameters and computation")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of the task, for instance top_k=3")


def run(options: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C and returns the exit code."""
    from jaxformer.demo.page import build_page, launch_options, load_gradio
    from jaxformer.pipelines import pipeline
    from jaxformer.pipelines.command import begin, parse_options

    display = begin(options.debug)
    # Before a model is opened.
    load_gradio()
    check_address(options.host, options.port)
    pipe = pipeline(options.task, options.model, dtype=options.dtype, **parse_options(options.options))
    page = build_page(pipe)
    _, address, _ = page.launch(**launch_options(options.host, options.port))
    display.say(f"{pipe.task} with {pipe.name}: {address} (Ctrl-C ends it)")
    wait(page)
    return 0


def wait(page: Any) -> None:
    """Returns when Ctrl-C was pressed, with the server closed."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


def check_address(host: str, port: int | None) -> None:
    """Refuses an address that cannot be had.

    Raises:
        UserError: another program listens there, or did a moment ago, or the host is not this machine.
    """
    with socket.socket() as trial:
        try:
            trial.bind((host, port or 0))
        except (OSError, OverflowError) as error:
            asked = host if port is None else f"{host}:{port}"
            raise UserError(
                f"{asked} cannot be had ({error}), expected an address of this machine and a free port; leave out "
                "--port to get one"
            ) from None
