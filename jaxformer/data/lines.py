"""Reads the lines of a file one at a time; a bad line is an error in its place."""

import csv
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxformer.data.files import reading
from jaxformer.schema import UserError

logger = logging.getLogger(__name__)
# How fields are enclosed: auto is double in .csv files and none in .tsv files.
Quoting = Literal["auto", "double", "none"]
ENCLOSED = "quotes are text here; if they enclose fields, set data.quoting (or --quoting) to double"


class BlankLineError(UserError):
    """The line is blank."""


class Line(NamedTuple):
    """One line of text or JSON, or one row of CSV.

    Attributes:
        row: its number, counted from 1 (in CSV below the header).
        number: the number of the line in the file, in CSV of the last line of the row.
        size: bytes since the line before.
        value: a dict of columns, a text, or the ``UserError`` that says what is wrong with the line.
    """

    row: int
    number: int
    size: int
    value: Any


def is_quoted(path: Path, quoting: Quoting = "auto") -> bool:
    """Returns whether double quotes of a CSV file enclose fields."""
    return not _is_tsv(path) if quoting == "auto" else quoting == "double"


def read_lines(path: Path, kind: str, quoting: Quoting = "auto") -> Iterator[Line]:
    """The lines of a file in order, unpacked if its name ends in ".gz".

    Args:
        path: the file.
        kind: ``text``, ``json`` (one object or text a line) or ``csv`` (the first row names the columns, the first of
            several columns of one name counts; separated by commas, in ``.tsv`` files by tabs).
        quoting: of CSV; ``double``: double quotes may enclose a field, which may then hold separators, line ends and
            doubled quotes (RFC 4180); ``none``: quotes are text and a line is a row (IANA's tab-separated values).

    Raises:
        UserError: the file cannot be read.
    """
    with reading(path) as stream:
        if kind == "csv":
            yield from _csv(stream, path, is_quoted(path, quoting))
            return
        for number, raw in enumerate(stream, 1):
            try:
                text = _decode(raw, number).rstrip("\r\n")
                yield Line(number, number, len(raw), text if kind == "text" else _parse_json(text))
            except UserError as error:
                yield Line(number, number, len(raw), error)


def _decode(raw: bytes, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"it is not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}; convert the file, for example with "
            "`iconv -f ENCODING -t UTF-8`"
        ) from None


def _parse_json(text: str) -> dict[str, Any] | str:
    if not text.strip():
        raise BlankLineError("it is blank, expected a JSON object")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not JSON ({error}), expected one object a line") from None
    if not isinstance(value, dict | str):
        raise UserError(f"it is a JSON {type(value).__name__}, expected one object a line")
    return value


@cache
def _warn_once(message: str) -> None:
    """Warns of a file once, however often it is read."""
    logger.warning(message)


def _is_tsv(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".tsv")


def _csv(stream: Iterable[bytes], path: Path, quoted: bool) -> Iterator[Line]:
    csv.field_size_limit(sys.maxsize)  # the default refuses texts of more than 131,072 characters
    size = 0
    undecoded: UserError | None = None

    def lines() -> Iterator[str]:
        nonlocal size, undecoded
        for number, raw in enumerate(stream, 1):
            size += len(raw)
            try:
                yield _decode(raw, number)
            except UserError as error:
                undecoded = error
                yield raw.decode("utf-8", "surrogateescape")

    delimiter = "\t" if _is_tsv(path) else ","
    rows = csv.reader(
        lines(), delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    )
    header: list[str] | None = None
    index = enclosed = 0
    while True:
        value: Any
        try:
            row = next(rows)
            if undecoded is not None:
                raise undecoded
            if header is None:
                header = row
                continue
            if len(row) != len(header):
                kind = UserError if row else BlankLineError
                advice = "" if quoted or not any('"' in field for field in row) else f" ({ENCLOSED})"
                raise kind(f"it has {len(row)} fields, expected the header's {len(header)}{advice}")
            value = {}
            for name, field in zip(header, row, strict=True):
                value.setdefault(name, field)
            enclosed += not quoted and any(len(field) > 1 and field[0] == field[-1] == '"' for field in row)
        except StopIteration:
            if enclosed:
                _warn_once(f"{path}: {enclosed:,} of {index:,} rows have a field between double quotes ({ENCLOSED})")
            return
        except csv.Error as error:
            value = UserError(f"it is not CSV: {error}")
        except UserError as error:
            value = error
        if header is None:
            raise UserError(f"{path}, line {rows.line_num}: {value}")
        index += 1
        yield Line(index, rows.line_num, size, value)
        size, undecoded = 0, None
