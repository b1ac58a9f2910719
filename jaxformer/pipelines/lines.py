"""The lines of a file as inputs of a pipeline, one at a time; a line that is none is an error in its place."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data.files import kind_of, reading
from jaxformer.schema import UserError

Take = Callable[[dict[str, Any]], Any]


class Line(NamedTuple):
    """A line of a file: where it is, its bytes, and the input it holds or what is wrong with it."""

    number: int
    size: int
    item: Any


def check_file(path: Path) -> str:
    """The kind of file that its suffix tells: ``text``, ``json`` (lines) or ``csv``.

    Raises:
        UserError: it does not exist, or is of another kind.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}, expected lines of JSON (.jsonl), .csv, .tsv or .txt, also with .gz")
    kind = kind_of(path)
    if kind not in READERS:
        raise UserError(
            f"{path} is of a kind that is not read here, expected .jsonl, .csv, .tsv or .txt, also with .gz"
        )
    return str(kind)


def read_lines(path: Path, column: str, take: Take) -> Iterator[Line]:
    """The inputs of a file in order: one for each line, of a table one for each row below its header.

    Args:
        path: the file.
        column: what a line that is a text alone is called, so that ``take`` finds it.
        take: from the columns of a line to the input.

    Raises:
        UserError: the file cannot be read.
    """
    with reading(path) as stream:
        tab = path.name.removesuffix(".gz").endswith(".tsv")
        for number, size, read in READERS[check_file(path)](stream, column, tab):
            try:
                yield Line(number, size, take(read()))
            except UserError as error:
                yield Line(number, size, type(error)(f"line {number}: {error}"))


Found = Iterator[tuple[int, int, Callable[[], dict[str, Any]]]]


def _decode(raw: bytes, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"it is not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}") from None


def _text(raw: bytes, number: int, column: str) -> dict[str, Any]:
    return {column: _decode(raw, number)}


def _texts(stream: Iterable[bytes], column: str, tab: bool) -> Found:
    """Every line is a text."""
    for number, raw in enumerate(stream, 1):
        yield number, len(raw), partial(_text, raw, number, column)


def _json(stream: Iterable[bytes], column: str, tab: bool) -> Found:
    """Every line is an object, or a text."""

    def read(raw: bytes, number: int) -> dict[str, Any]:
        text = _decode(raw, number)
        if not text.strip():
            raise UserError("it is blank, expected a JSON object")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"it is not JSON ({error}), expected an object") from None
        if isinstance(value, str):
            return {column: value}
        if not isinstance(value, dict):
            raise UserError(f"it is a JSON {type(value).__name__}, expected an object")
        return value

    for number, raw in enumerate(stream, 1):
        yield number, len(raw), partial(read, raw, number)


def _csv(stream: Iterable[bytes], column: str, tab: bool) -> Found:
    """Every row below the header, of as many fields; a row is numbered by the line that it ends on."""
    csv.field_size_limit(sys.maxsize)  # the default refuses texts of more than 131,072 characters
    sizes = [0]

    def lines() -> Iterator[str]:
        for number, raw in enumerate(stream, 1):
            sizes[0] += len(raw)
            # What is not UTF-8 becomes half surrogates, which no pipeline takes for text.
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")

    rows = csv.reader(lines(), delimiter="\t" if tab else ",")
    header = next(rows, None)

    def read(row: list[str]) -> dict[str, Any]:
        if header is None or len(row) != len(header):
            raise UserError(f"it has {len(row)} fields, expected the header's {len(header or [])}")
        return dict(zip(header, row, strict=True))

    while True:
        before = sizes[0]
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield rows.line_num, sizes[0] - before, partial(_raise, f"it is not CSV: {error}")
            continue
        if row is None:
            return
        yield rows.line_num, sizes[0] - before, partial(read, row)


def _raise(text: str) -> dict[str, Any]:
    raise UserError(text)


READERS: dict[str, Callable[[Iterable[bytes], str, bool], Found]] = {"text": _texts, "json": _json, "csv": _csv}
