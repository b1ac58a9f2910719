"""``jaxformer demo``."""

import argparse
import socket
import threading

from jaxformer.commands.options import add_model, add_task, parse_options, start_display
from jaxformer.schema import UserError

SUMMARY = "Serve a web page for a model on this machine."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_model(parser)
    add_task(parser)
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone; 0.0.0.0: any")
    parser.add_argument("--port", type=int, metavar="N", help="default: 7860, or the next free port")


def run(options: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C and returns the exit code."""
    from jaxformer.demo.page import build_page, launch_options, load_gradio
    from jaxformer.pipelines import pipeline

    display = start_display(options.debug)
    # Before a model is opened.
    load_gradio()
    check_address(options.host, options.port)
    pipe = pipeline(
        options.task, options.model, dtype=options.dtype, numerics=options.numerics, **parse_options(options.options)
    )
    page = build_page(pipe)
    _, address, _ = page.launch(**launch_options(options.host, options.port))
    display.say(f"{pipe.task} with {pipe.name}: {address} (Ctrl-C stops it)")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)
    return 0


def check_address(host: str, port: int | None) -> None:
    """Refuses an address where another program listens, or that is not this machine's."""
    with socket.socket() as trial:
        try:
            trial.bind((host, port or 0))
        except (OSError, OverflowError) as error:
            asked = host if port is None else f"{host}:{port}"
            raise UserError(
                f"{asked} is not available ({error}), expected an address of this machine and a free port; leave out "
                "--port to use a free one"
            ) from None
