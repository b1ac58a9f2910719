"""Output for the user: a few facts, a progress bar on a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


def duration(seconds: float) -> str:
    """``"1 h 02 min"``, ``"3 min 05 s"`` or ``"12 s"``.

    >>> duration(185.2)
    '3 min 05 s'
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def number(value: float) -> str:
    """A large number with a unit: ``"3.21M"``.

    >>> number(3_210_000), number(950), number(1.5e13)
    ('3.21M', '950', '15.00T')
    """
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


class Display:
    """Prints a run. On a terminal a progress bar moves; elsewhere each training record is a line."""

    def __init__(self, console: Console | None = None, silent: bool = False) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, quiet=silent)
        self._progress: Progress | None = None

    def facts(self, rows: dict[str, str]) -> None:
        """A table of names and values."""
        table = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            table.add_row(f"[bold]{name}[/]", escape(value))
        self.console.print(table)

    def table(self, rows: Sequence[Mapping[str, str]]) -> None:
        """A table of rows with the same names; columns in which every row is empty are left out."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        names = [name for name in names if any(row.get(name) for row in rows)]
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in names:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(escape(row.get(name, "")) for name in names))
        # A file or a pipe has no width: a line is then as long as it is.
        wide = self.console if self.console.is_terminal else Console(file=self.console.file, width=1000)
        wide.print(table)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """One warning line."""
        self.console.print(f"[yellow]warning:[/] {escape(text)}")

    @contextmanager
    def counting(self, title: str, unit: str) -> Iterator["Counter"]:
        """A counter of work of unknown length (documents tokenised)."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        with progress:
            yield Counter(progress, title, unit)

    @contextmanager
    def training(self, steps: int, start: int) -> Iterator[None]:
        """The training bar, from step ``start`` to ``steps``."""
        columns = (
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TextColumn("[dim]{task.fields[left]}[/]"),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            self._progress = progress
            self._task = progress.add_task("training", total=steps, completed=start, values="compiling ...", left="")
            try:
                yield
            finally:
                self._progress = None

    def record(self, step: int, steps: int, values: str, seconds_left: float | None) -> None:
        """Shows a training record."""
        left = "" if seconds_left is None else f"{duration(seconds_left)} left"
        if self._progress is not None and self.console.is_terminal:
            self._progress.update(self._task, completed=step, values=values, left=left)
        else:
            self.say("  ".join(part for part in (f"step {step}/{steps}", values, left) if part))


class Counter:
    """Shows how much is done, at most ten times a second."""

    def __init__(self, progress: Progress, title: str, unit: str) -> None:
        self._progress, self._title, self._unit = progress, title, unit
        self._task = progress.add_task(title, total=None)
        self._last = 0.0

    def __call__(self, done: int, size: int) -> None:
        """``done`` items and ``size`` bytes so far."""
        now = time.monotonic()
        if now - self._last > 0.1:
            self._last = now
            self._progress.update(self._task, description=f"{self._title}: {done:,} {self._unit}, {size / 1e6:,.1f} MB")

    def counted(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts, counted as they pass."""
        size = 0
        for count, text in enumerate(texts):
            size += len(text)
            self(count, size)
            yield text


def show_warnings(console: Console, debug: bool) -> None:
    """Sends the library's own log messages to the console, one line each; others' only in debug.

    Orbax logs a traceback from each of its threads for an error that reaches us as an exception anyway.
    """
    own = logging.getLogger("jaxformer")
    own.handlers = [RichHandler(console=console, show_time=False, show_path=False)]
    own.propagate = False
    own.setLevel(logging.INFO if debug else logging.WARNING)
    logging.getLogger("absl").setLevel(logging.INFO if debug else logging.CRITICAL)
