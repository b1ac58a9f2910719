"""SIGINT and SIGTERM, handled while a block runs."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Calls ``handler(number, frame)`` for SIGINT and SIGTERM while the block runs, and restores what was before.

    Only the main thread can; in another nothing changes, and whoever runs that thread decides when to stop.
    """
    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
