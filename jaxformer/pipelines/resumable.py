"""A line out for each line of a file of any size, in constant memory; an output is gone on with after a crash."""

import contextlib
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from jaxformer.atomic import write_atomically
from jaxformer.pipelines.base import NoColumnError
from jaxformer.pipelines.lines import Line, check_file
from jaxformer.schema import UserError

# Bytes at the start of the input by which it is known again: it may have grown since.
HEAD = 1 << 16
ERROR = b'{"error": '


class Written(NamedTuple):
    """What an output file holds: whole lines, and how many of them are errors."""

    lines: int
    errors: int


@dataclass(frozen=True)
class Done:
    """How a prediction ended.

    Attributes:
        lines: of the output, with those of earlier runs.
        errors: how many of them are errors.
        earlier: lines that were there already.
        stopped_by: the signal that stopped it, None at the end of the input.
    """

    lines: int
    errors: int
    earlier: int
    stopped_by: str | None = None


def about_path(out: Path) -> Path:
    """The file beside an output that says what it belongs to."""
    return out.with_name(f"{out.name}.about.json")


def describe_file(file: Path) -> dict[str, Any]:
    """What tells an input from another."""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    begins = {"bytes": len(head), "sha256": hashlib.sha256(head).hexdigest()}
    return {"file": str(file.absolute()), "begins_with": begins}


def check_same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any], file: Path) -> None:
    """Refuses to go on with an output that belongs to something else.

    Raises:
        UserError: naming what differs.
    """
    changed = [key for key in now if key != "begins_with" and before.get(key) != now[key]]
    size = before.get("begins_with", {}).get("bytes", 0)
    with file.open("rb") as stream:
        head = stream.read(size)
    if before.get("begins_with", {}).get("sha256") != hashlib.sha256(head).hexdigest():
        changed.append("the first lines of the file")
    if changed:
        shown = ", ".join(
            f"{key} {before.get(key)!r} -> {now[key]!r}" if key in now and not key.endswith("_files") else key
            for key in changed
        )
        raise UserError(
            f"{out} was begun with other settings: {shown}; expected the same to go on with it: undo the change, or "
            "choose another --out"
        )


def cut_to_lines(out: Path) -> Written:
    """Counts the whole lines of an output and cuts off what a crash left half-written."""
    lines = errors = whole = 0
    with out.open("r+b") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            lines, errors, whole = lines + 1, errors + line.startswith(ERROR), whole + len(line)
        stream.truncate(whole)
    return Written(lines, errors)


def begin(out: Path, about: Mapping[str, Any], file: Path) -> Written:
    """Makes the output, or finds how far it has got.

    Raises:
        UserError: it belongs to something else.
    """
    beside = about_path(out)
    if out.exists() and out.stat().st_size and not beside.exists():
        raise UserError(f"{out} exists and was not begun by this command; choose another --out, or remove it")
    if out.exists() and beside.exists():
        try:
            before = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{beside} is damaged; remove it and {out} to begin anew") from None
        check_same(out, before, json.loads(json.dumps(about)), file)
        return cut_to_lines(out)
    write_atomically(beside, json.dumps(about, indent=1) + "\n")
    out.touch()
    return Written(0, 0)


@contextlib.contextmanager
def taken(out: Path) -> Iterator[None]:
    """Keeps other processes from writing the same output.

    Raises:
        UserError: one does, or it cannot be written.
    """
    lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{out} is being written by another process; stop it or choose another --out") from None
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def until_stopped() -> Iterator[list[str]]:
    """The names of the signals that asked to stop; a second Ctrl-C stops at once."""
    asked: list[str] = []

    def note(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def record_line(record: Mapping[str, Any]) -> bytes:
    """A line of an output; one that begins with ``error`` is counted as such."""
    return json.dumps(record, ensure_ascii=False, default=lambda x: x.tolist()).encode("utf-8", "replace") + b"\n"


def write_lines(
    file: Path,
    out: Path,
    about: Mapping[str, Any],
    read: Callable[[], Iterator[Line]],
    answers: Callable[[list[Line]], list[bytes]],
    window_size: int,
    progress: Callable[[int, int], None] = lambda lines, size: None,
    whole_windows: bool = False,
) -> Done:
    """Writes a line for each line of the input.

    An output that a crash left is gone on with behind its last whole line. Only a window of lines is in memory.

    Args:
        file: the input.
        out: the file to write; beside it stands ``OUT.about.json``, which says what it belongs to.
        about: what that is: the settings and ``describe_file`` of the input.
        read: opens the input.
        answers: the lines to write for a window of lines.
        window_size: lines of a window.
        progress: is told the lines and the bytes of the input that are done.
        whole_windows: windows are the same lines in every run: the one that a crash cut is worked out anew, so that
            what a line's neighbours do to its last bits is done again.

    Raises:
        UserError: the input cannot be read, the output belongs to something else, or none of the first lines has the
            column.
    """
    check_file(file)
    if not out.absolute().parent.is_dir():
        raise UserError(f"the folder of {out} does not exist; make it, or choose another --out")
    if out.exists() and out.samefile(file):
        raise UserError(f"--file and --out are both {file}, expected two files")
    with taken(out), until_stopped() as asked:
        earlier = begin(out, about, file)
        lines, errors, size = earlier.lines, earlier.errors, 0
        there = lines % window_size if whole_windows else 0  # lines of the first window
        source = read()
        skipped = 0
        for line in islice(source, lines - there):
            skipped, size = skipped + 1, size + line.size
        if skipped < lines - there:
            raise _shorter(out, lines, file, skipped)
        with out.open("ab") as stream:
            while not asked and (window := list(islice(source, window_size))):
                if not lines:
                    _check_column(window)
                rows = answers(window)[there:] if len(window) > there else []
                if len(window) < there:
                    raise _shorter(out, lines, file, skipped + len(window))
                stream.write(b"".join(rows))
                stream.flush()
                os.fsync(stream.fileno())
                lines, errors = lines + len(rows), errors + sum(row.startswith(ERROR) for row in rows)
                size, there = size + sum(line.size for line in window), 0
                progress(lines, size)
    return Done(lines, errors, earlier.lines, asked[0] if asked else None)


def _shorter(out: Path, lines: int, file: Path, found: int) -> UserError:
    return UserError(f"{out} has {lines:,} lines and {file} only {found:,}; choose another --out")


def _check_column(window: list[Line]) -> None:
    """Refuses a file of whose first lines none is good and some lack the column: that is a wrong name, no bad line."""
    lacking = [line.item for line in window if isinstance(line.item, NoColumnError)]
    if lacking and all(isinstance(line.item, UserError) for line in window):
        raise lacking[0]
