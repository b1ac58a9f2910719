"""``jaxformer serve``."""

import argparse
import asyncio
import ipaddress
import os
from collections.abc import Iterable
from typing import Any

from jaxformer.commands.demo import check_address
from jaxformer.commands.options import add_options, parse_options, start_display
from jaxformer.schema import UserError, local_path
from jaxformer.signals import handling

SUMMARY = "Serve models over HTTP with the interface of OpenAI's."
KEY = "JAXFORMER_API_KEY"
QUIET = 20  # tenths of a second


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="[NAME=]MODEL",
        help="folder of a run, Hugging Face folder, or name on the Hub, and the name by which requests ask for it; may "
        "be given several times",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone; 0.0.0.0: any")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000; 0: any free port")
    parser.add_argument("--slots", type=int, default=8, metavar="N", help="texts written at once (default: 8)")
    parser.add_argument("--queue", type=int, default=256, metavar="N", help="requests that may wait (default: 256)")
    parser.add_argument("--context", type=int, metavar="N", help="most tokens of prompt and text; default: the model's")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="that a request may take (default: 600)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the parameters and computation")
    parser.add_argument("--numerics", choices=("fast", "exact", "bfloat16"), help="as of jaxformer generate")
    parser.add_argument("--cache-dtype", choices=("float32", "bfloat16", "int8"), help="type of keys and values")
    parser.add_argument(
        "--api-key-file", metavar="FILE", help=f"file with the key that requests must have; or set {KEY}"
    )
    parser.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="origin of web pages that may ask; several times"
    )
    parser.add_argument("--demo", action="store_true", help="also a page for each model, under /demo/NAME")
    add_options(parser, "the pipelines", "weights=int8")


def run(options: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM, finishes what runs and returns the exit code."""
    from jaxformer.external import need

    display = start_display(options.debug)
    uvicorn, _ = need("uvicorn", "serve"), need("fastapi", "serve")
    from jaxformer.serving.app import build_app
    from jaxformer.serving.served import Limits, open_served

    for name in ("slots", "queue", "timeout"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name} is {getattr(options, name)}, expected more than 0")
    key = read_key(options.api_key_file)
    check_address(options.host, options.port)
    if options.demo:
        from jaxformer.demo.page import load_gradio

        load_gradio()  # before a model is opened
        if key is not None:
            raise UserError("--demo and a key are both given, expected one: the pages cannot ask for it")
    limits = Limits(options.slots, options.queue, options.timeout, options.context)
    served = open_served(
        options.model,
        limits,
        display.say,
        dtype=options.dtype,
        numerics=options.numerics,
        cache_dtype=options.cache_dtype,
        **parse_options(options.options),
    )
    app = build_app(served, limits, key=key, origins=options.cors)
    if options.demo:
        from jaxformer.serving.pages import add_pages

        add_pages(app, served, options.host, options.port)
    if key is None and not is_loopback(options.host):
        display.warn(f"anyone who reaches {options.host} may ask: there is no key (--api-key-file)")

    class Server(uvicorn.Server):  # type: ignore[name-defined]
        async def startup(self, sockets: object = None) -> None:
            await super().startup(sockets)
            port = self.servers[0].sockets[0].getsockname()[1]
            models = ", ".join(f"{name} ({', '.join(one.uses)})" for name, one in served.items())
            display.say(f"{models}: http://{options.host}:{port}/v1 (Ctrl-C stops it)")
            if options.demo:
                display.say("\n".join(f"http://{options.host}:{port}/demo/{name}" for name in served))

        async def shutdown(self, sockets: object = None) -> None:
            # A page of the demo keeps a stream open as long as it is shown.
            watch = asyncio.create_task(leave_when_idle(self, served.values())) if options.demo else None
            await super().shutdown(sockets)
            if watch is not None:
                watch.cancel()

    server = Server(
        uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=int(options.timeout) + 1,
            server_header=False,
        )
    )
    # After it has finished what runs, the server would raise the signal again.
    with handling(lambda number, frame: None):
        server.run()
    return 0


async def leave_when_idle(server: Any, served: Iterable[Any]) -> None:
    """Lets a server that shuts down leave connections on which nothing has been written for a while."""
    quiet = 0
    while quiet < QUIET:
        await asyncio.sleep(0.1)
        busy = any(one.scheduler is not None and one.scheduler.running + one.scheduler.waiting for one in served)
        quiet = 0 if busy else quiet + 1
    server.force_exit = True


def read_key(file: str | None) -> str | None:
    """The key of the file, else of the variable; None if neither is given."""
    if file is None:
        return os.environ.get(KEY) or None
    try:
        key = local_path(file).read_text().strip()
    except OSError as error:
        raise UserError(f"--api-key-file: {error}") from None
    if not key or any(letter.isspace() for letter in key):
        raise UserError(f"{file} holds no key, expected one word")
    return key


def is_loopback(host: str) -> bool:
    """True for an address of this machine alone.

    >>> is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
