"""Peers timed side by side: each in a process of its own, started once, taking turns while the others are idle.

A process of its own keeps allocators and thread pools apart; turns spread the machine's slow and fast minutes over all.
Parent and worker talk in JSON, a line each way; a worker that waits for its next line uses no CPU.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


class WorkerError(RuntimeError):
    """A worker ended; the message is the last it wrote."""


class Worker:
    """The parent's end of one process."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts it, with ``environment`` over this process's."""
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed in close
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Sends a request and waits for the answer.

        Raises:
            WorkerError: if the process ended instead.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or ["nothing on standard error"]
            raise WorkerError(f"{self.name} ended with code {code}: {last[0]}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def serve(answer: Callable[..., Any]) -> None:
    """The worker's end: answers requests until the parent is gone. What libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=replies, flush=True)


def time_calls(call: Callable[[], Any], seconds: float, at_least: int) -> list[float]:
    """Milliseconds of each call, made one after the other for so long and so many times."""
    times: list[float] = []
    start = last = time.perf_counter()
    while len(times) < at_least or last - start < seconds:
        call()
        now = time.perf_counter()
        times.append(1e3 * (now - last))
        last = now
    return times


def take_turns(workers: Sequence[Worker], rounds: int, **request: Any) -> dict[str, list[float]]:
    """All times each worker reports over so many rounds, in which each is asked once."""
    times: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            times[worker.name] += worker.ask(**request)
    return times


@contextlib.contextmanager
def closing_all() -> Iterator[list[Worker]]:
    """A list for workers; whatever happens, those in it are ended."""
    workers: list[Worker] = []
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> None:
    """Prints a table for people or for a document; numbers stand on the right.

    Rows that share their first column are grouped.
    """
    if markdown:
        marks = ["---:" if text[:1].isdigit() else "---" for text in rows[0]]
        lines = [header, marks, *rows]
        print(f"{title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
        return
    table = Table(*header, title=title, title_justify="left")
    for column, text in zip(table.columns, rows[0], strict=True):
        column.justify = "right" if text[:1].isdigit() else "left"
    previous = ""
    for row in rows:
        if row[0] == previous:
            row = ["", *row[1:]]
        elif previous:
            table.add_section()
        previous = row[0] or previous
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
