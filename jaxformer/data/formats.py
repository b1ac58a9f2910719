"""Reading documents out of text, JSON lines, CSV, Parquet and Hugging Face datasets, one at a time."""

import csv
import json
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data.files import NamedFile, decode, reading, walk
from jaxformer.schema import UserError


class Document(NamedTuple):
    """One text of the corpus.

    Attributes:
        name: What the split by hash goes by; the same on every machine.
        text: All of it, never empty.
        complete: False for a part of a document that was cut in two: its end is no end of a document.
    """

    name: str
    text: str
    complete: bool = True


def read_text(file: NamedFile, text_column: str) -> Iterator[Document]:
    """The whole file as one document, its line ends as they are."""
    with reading(file.path) as stream:
        yield Document(file.name, decode(stream.read(), file.path))


def read_json(file: NamedFile, text_column: str) -> Iterator[Document]:
    """One document a line: the value of `text_column` in the line's object. Blank lines are skipped."""
    offset = 0
    with reading(file.path) as stream:
        for number, line in enumerate(stream, 1):
            text, offset = decode(line, file.path, offset), offset + len(line)
            if not text.strip():
                continue
            where = f"{file.path}, line {number}"
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON ({error}): expected one object a line") from error
            if not isinstance(row, dict):
                raise UserError(f"{where} is a JSON {type(row).__name__}: expected one object a line")
            _require_column(text_column, list(row), where)
            yield Document(f"{file.name}:{number}", _require_text(row[text_column], text_column, where))


def read_csv(file: NamedFile, text_column: str) -> Iterator[Document]:
    """One document a row; the first row names the columns; a comma separates them, in .tsv files a tab."""
    csv.field_size_limit(sys.maxsize)  # the default refuses texts of more than 131,072 characters
    tab = file.path.name.removesuffix(".gz").endswith(".tsv")
    with reading(file.path) as stream:
        rows = csv.reader(_lines(stream, file.path), delimiter="\t" if tab else ",", strict=True)
        number = 0
        try:
            header = next(rows, None)
            if header is None:
                return
            _require_column(text_column, header, str(file.path))
            column = header.index(text_column)
            for number, row in enumerate(rows, 1):
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{file.path}, line {rows.line_num}: got {len(row)} fields, expected the header's {len(header)}"
                    )
                yield Document(f"{file.name}:{number}", row[column])
        except csv.Error as error:
            raise UserError(f"{file.path}, line {rows.line_num} is not CSV: {error}") from error


def _lines(stream: Iterable[bytes], path: Path) -> Iterator[str]:
    offset = 0
    for line in stream:
        yield decode(line, path, offset)
        offset += len(line)


def read_parquet(file: NamedFile, text_column: str) -> Iterator[Document]:
    """One document a row."""
    # Imported here: only those who read Parquet wait for it.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with pq.ParquetFile(file.path) as table:
            _require_column(text_column, table.schema_arrow.names, str(file.path))
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=[text_column]):
                for value in batch.column(0):
                    number += 1
                    text = _require_text(value.as_py(), text_column, f"{file.path}, row {number}")
                    yield Document(f"{file.name}:{number}", text)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {file.path} as Parquet: {_first_line(error)}") from error


READERS: dict[str, Callable[[NamedFile, str], Iterator[Document]]] = {
    "text": read_text,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
}


def stdlib_files() -> list[NamedFile]:
    """The source files of Python's standard library, without its tests and what differs from machine to machine."""
    # pydoc_data is the whole language reference in one string: no source, and most of validation if it falls there.
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
    # Written when this Python was built: the compiler and the paths of one machine.
    built = ("_sysconfigdata", "config-")
    files = walk(Path(sysconfig.get_path("stdlib")), frozenset(left_out))
    return sorted(file for file in files if file.name.endswith(".py") and not file.name.startswith(built))


def read_stdlib(file: NamedFile, text_column: str) -> Iterator[Document]:
    """As `read_text`, but a file that is not UTF-8 is left out: nobody can mend the standard library."""
    with reading(file.path) as stream:
        data = stream.read()
    try:
        yield Document(file.name, data.decode("utf-8"))
    except UnicodeDecodeError:
        return


class HuggingFaceSource(NamedTuple):
    """A dataset of the `datasets` library: its training part and, if it brings one, its validation part."""

    train: Any
    validation: Any | None


def open_huggingface(path: str) -> HuggingFaceSource:
    """Opens a `save_to_disk` folder, or whatever `datasets.load_dataset` takes; `name:config` names a configuration."""
    import datasets  # half a second, for those only who use it

    try:
        if is_saved_dataset(Path(path).expanduser()):
            opened = datasets.load_from_disk(str(Path(path).expanduser()))
        else:
            name, _, config = path.partition(":")
            opened = datasets.load_dataset(name, config or None)
    except Exception as error:  # the library raises nearly anything
        raise UserError(
            f"cannot open {path} as a Hugging Face dataset: {type(error).__name__}: {_first_line(error)}"
        ) from error
    if not isinstance(opened, datasets.DatasetDict):
        return HuggingFaceSource(opened, None)
    if "train" not in opened:
        raise UserError(f"the dataset {path} has no split 'train', only {', '.join(opened)}")
    names = (name for name in ("validation", "valid", "dev", "test") if name in opened)
    return HuggingFaceSource(opened["train"], next((opened[name] for name in names), None))


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote the folder with `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_huggingface(dataset: Any, text_column: str, name: str) -> Iterator[Document]:
    """One document a row."""
    _require_column(text_column, dataset.column_names, name)
    number = 0
    for batch in dataset.select_columns([text_column]).iter(batch_size=1024):
        for value in batch[text_column]:
            number += 1
            yield Document(str(number), _require_text(value, text_column, f"{name}, row {number}"))


def _require_column(text_column: str, columns: Sequence[str], where: str) -> None:
    if text_column not in columns:
        found = ", ".join(columns) or "none"
        raise UserError(f"{where} has no column {text_column!r}, only {found}: set data.text_column to one of them")


def _require_text(value: object, text_column: str, where: str) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise UserError(f"{where}: column {text_column!r} holds {kind}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud83d"
        raise UserError(f"{where}: column {text_column!r} is not Unicode text: {error}") from error
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
