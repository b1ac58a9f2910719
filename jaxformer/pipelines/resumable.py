"""Writes one row (a line of JSON, a vector) for each line of a file of any size; an interrupted output is resumed."""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jaxformer.atomic import write_atomically
from jaxformer.data.files import kind_of
from jaxformer.data.lines import Line, Quoting, read_lines
from jaxformer.schema import UserError
from jaxformer.signals import handling

# Bytes at the beginning of the input that identify it; the rest may grow.
HEAD = 1 << 16
ERROR = b'{"error": '


class MissingColumnError(UserError):
    """A line lacks the column that holds the input."""


@dataclass(frozen=True)
class Done:
    """The end of a run over a file."""

    lines: int  # of the output, those of earlier runs included
    errors: int  # how many of them are errors
    earlier: int  # lines that earlier runs had written
    stopped_by: str | None = None  # the signal that stopped it, None at the end of the input


@dataclass(frozen=True)
class RowFormat:
    """The rows of an output.

    Attributes:
        cut: truncates an output after its last whole row; returns its rows and the errors among them.
        errors: counts the errors among rows.
    """

    cut: Callable[[Path], tuple[int, int]]
    errors: Callable[[Sequence[bytes]], int]


def check_file(path: Path) -> str:
    """Returns the kind of a file by its suffix: ``text``, ``json`` (lines) or ``csv``; any other is refused."""
    expected = "expected lines of JSON (.jsonl), .csv, .tsv or .txt, also with .gz"
    if not path.is_file():
        raise UserError(f"no such file: {path}, {expected}")
    kind = kind_of(path)
    if kind not in ("text", "json", "csv"):
        raise UserError(f"{path} has an unknown suffix, {expected}")
    return kind


def write_lines(
    file: Path,
    out: Path,
    settings: Mapping[str, Any],
    read: Callable[[Line], Any],
    answer: Callable[[list[Any]], Sequence[Mapping[str, Any] | UserError]],
    window_size: int,
    progress: Callable[[int, int], None] = lambda lines, size: None,
    quoting: Quoting = "auto",
) -> Done:
    """Writes a JSON object for each line of the input, ``{"error": "line 17: ..."}`` for a bad one, by ``write_rows``.

    ``read`` makes an input of a line, or raises ``UserError`` for a bad one; ``answer`` makes records of the inputs of
    a window.

    Raises:
        UserError: as ``write_rows``, or none of the first lines has the column.
    """

    def rows_of(window: Sequence[Line], first: bool) -> list[bytes]:
        return _answers(window, read, answer, first)

    format = RowFormat(_cut_to_lines, lambda rows: sum(row.startswith(ERROR) for row in rows))
    return write_rows(file, out, settings, rows_of, format, window_size, progress, quoting)


def write_rows(
    file: Path,
    out: Path,
    settings: Mapping[str, Any],
    rows_of: Callable[[Sequence[Line], bool], Sequence[bytes]],
    format: RowFormat,
    window_size: int,
    progress: Callable[[int, int], None] = lambda lines, size: None,
    quoting: Quoting = "auto",
) -> Done:
    """Writes one row for each line of the input.

    One window of lines is in memory. The output is its own record of progress: a further run with the same settings
    resumes after its last complete row. Windows are the same lines in every run, so that the last bits of an answer,
    which may depend on its neighbours, do too. SIGINT and SIGTERM stop after the current window.

    ``OUT.about.json`` holds the settings, those that must be the same when the output is resumed; keys ending in
    ``_files`` are not shown. ``rows_of`` makes the rows of a window, of which it is told whether nothing is before it.
    ``progress`` is called after each window with the lines and the bytes done.

    Raises:
        UserError: the input cannot be read, or the output was begun with other settings or another input.
    """
    kind = check_file(file)
    if not out.absolute().parent.is_dir():
        raise UserError(f"the folder of {out} does not exist; make it, or choose another --out")
    if out.exists() and out.samefile(file):
        raise UserError(f"--file and --out are both {file}, expected two files")
    with _locked(out), _stop_signals() as stopped:
        earlier, errors = _begin_or_resume(file, out, settings, format)
        lines, seen, size = earlier, 0, 0
        source = read_lines(file, kind, quoting)
        with out.open("ab") as stream:
            while not stopped and (window := list(islice(source, window_size))):
                seen, size = seen + len(window), size + sum(line.size for line in window)
                if seen <= lines:
                    continue
                rows = rows_of(window, not lines)[lines - seen :]
                stream.write(b"".join(rows))
                stream.flush()
                os.fsync(stream.fileno())
                lines, errors = seen, errors + format.errors(rows)
                progress(lines, size)
    if seen < lines and not stopped:
        raise UserError(f"{out} has {lines:,} lines and {file} only {seen:,}; choose another --out")
    return Done(lines, errors, earlier, stopped[0] if stopped else None)


def _answers(
    window: Sequence[Line],
    read: Callable[[Line], Any],
    answer: Callable[[list[Any]], Sequence[Mapping[str, Any] | UserError]],
    check_column: bool,
) -> list[bytes]:
    """The rows of JSON for a window."""
    inputs: list[Any] = []
    for line in window:
        try:
            inputs.append(line.value if isinstance(line.value, UserError) else read(line))
        except UserError as error:
            inputs.append(error)
    good = [item for item in inputs if not isinstance(item, UserError)]
    if check_column and not good:
        # No good line and some without the column: the name of the column is wrong, not the lines.
        for line, item in zip(window, inputs, strict=True):
            if isinstance(item, MissingColumnError):
                raise UserError(f"line {line.number}: {item}")
    answers = iter(answer(good))
    rows = []
    for line, item in zip(window, inputs, strict=True):
        record = item if isinstance(item, UserError) else next(answers)
        if isinstance(record, UserError):
            record = {"error": f"line {line.number}: {record}"}
        text = json.dumps(record, ensure_ascii=False, default=lambda array: array.tolist())
        rows.append(text.encode("utf-8", "replace") + b"\n")
    return rows


def about_path(out: Path) -> Path:
    """The file beside an output that holds its settings."""
    return out.with_name(f"{out.name}.about.json")


def _head(file: Path, size: int) -> dict[str, Any]:
    with file.open("rb") as stream:
        head = stream.read(size)
    return {"bytes": len(head), "sha256": hashlib.sha256(head).hexdigest()}


def _begin_or_resume(file: Path, out: Path, settings: Mapping[str, Any], format: RowFormat) -> tuple[int, int]:
    """Starts the output, or checks the one that is there; returns its whole rows and the errors among them."""
    about, beside = json.loads(json.dumps({**settings, "file": str(file.absolute())})), about_path(out)
    if not out.exists() or (not out.stat().st_size and not beside.exists()):
        write_atomically(beside, json.dumps({**about, "begins_with": _head(file, HEAD)}, indent=1) + "\n")
        out.touch()
        return format.cut(out)
    if not beside.exists():
        raise UserError(f"{out} exists and was not begun by this command; choose another --out, or remove it")
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
        head = before.pop("begins_with")
        same_input = _head(file, head["bytes"]) == head
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{beside} is damaged; remove it and {out} to start again") from None
    changed = [
        key if key.endswith("_files") else f"{key} {before.get(key)!r} -> {value!r}"
        for key, value in about.items()
        if before.get(key) != value
    ]
    changed += [] if same_input else ["the first lines of the file"]
    if changed:
        raise UserError(
            f"{out} was begun with other settings: {', '.join(changed)}; expected the same to resume it: undo the "
            "change, or choose another --out"
        )
    return format.cut(out)


def _cut_to_lines(out: Path) -> tuple[int, int]:
    """Truncates an output after its last complete line; returns its lines and the errors among them."""
    lines = errors = whole = 0
    with out.open("r+b") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            lines, errors, whole = lines + 1, errors + line.startswith(ERROR), whole + len(line)
        stream.truncate(whole)
    return lines, errors


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keeps other processes from writing the same output."""
    try:
        lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0).acquire()
    except Timeout:
        raise UserError(f"{out} is being written by another process; stop it or choose another --out") from None
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from None
    with lock:
        yield


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """Yields the names of the signals received; a second Ctrl-C stops immediately."""
    received: list[str] = []

    def note(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    with handling(note):
        yield received
