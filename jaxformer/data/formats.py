"""Reads rows and documents of text, JSON lines, CSV, Parquet and Hugging Face datasets, one at a time."""

import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data.files import NamedFile, decode, reading, walk
from jaxformer.data.lines import BlankLineError, read_lines
from jaxformer.schema import UserError

Columns = str | Sequence[str]


class Document(NamedTuple):
    """One text of the corpus.

    Attributes:
        name: The same on every machine.
        text: All of it, never empty.
        complete: False for a part of a document that was cut in two: its end is no end of a document.
        row: Name of the row it comes from if that has several documents, else empty. The split by hash goes by the
            row, so that all of a row is in one split.
    """

    name: str
    text: str
    complete: bool = True
    row: str = ""


class Row(dict[str, Any]):
    """One row of a table, a dict of its columns that knows where it comes from.

    Attributes:
        name: What the split by hash goes by; the same on every machine.
        where: File and line, for errors.
    """

    def __init__(self, values: Mapping[str, Any], name: str, where: str) -> None:
        super().__init__(values)
        self.name = name
        self.where = where


# Reads the rows of a file; the columns are those that will be used, None for all.
RowReader = Callable[[NamedFile, Columns | None], Iterator[Row]]


def read_text(file: NamedFile, text_column: Columns) -> Iterator[Document]:
    """The whole file as one document, its line ends as they are."""
    with reading(file.path) as stream:
        yield Document(file.name, decode(stream.read(), file.path))


def read_line_rows(kind: str, file: NamedFile, columns: Columns | None = None) -> Iterator[Row]:
    """The rows of a file of JSON lines or CSV; blank lines are skipped."""
    for line in read_lines(file.path, kind):
        if isinstance(line.value, BlankLineError):
            continue
        where = f"{file.path}, line {line.number}"
        if isinstance(line.value, UserError):
            raise UserError(f"{where}: {line.value}")
        if isinstance(line.value, str):
            raise UserError(f"{where}: it is a JSON str, expected one object a line")
        yield Row(line.value, f"{file.name}:{line.row}", where)


def read_parquet_rows(file: NamedFile, columns: Columns | None = None) -> Iterator[Row]:
    """One row a row."""
    # Imported here: only those who read Parquet wait for it.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with pq.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=_require_column(columns, names, str(file.path))):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{file.name}:{number}", f"{file.path}, row {number}")
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {file.path} as Parquet: {_first_line(error)}") from error


ROW_READERS: dict[str, RowReader] = {
    "json": partial(read_line_rows, "json"),
    "csv": partial(read_line_rows, "csv"),
    "parquet": read_parquet_rows,
}


def documents_of(rows: Iterable[Row], text_column: Columns) -> Iterator[Document]:
    """The documents of rows: the one column named, or with a list every column of it that a row has.

    A document of a list is named after its row and column; a column that is null is one that the row does not have.

    Raises:
        UserError: A row has none of the columns, or one does not hold text.
    """
    for row in rows:
        found = _require_column(text_column, list(row), row.where)
        if isinstance(text_column, str):
            yield Document(row.name, _require_text(row[text_column], text_column, row.where))
            continue
        present = [column for column in found if row[column] is not None]
        if not present:
            raise UserError(f"{row.where}: expected text in one of the columns {', '.join(found)}, all hold null")
        for column in present:
            text = _require_text(row[column], column, row.where)
            yield Document(f"{row.name}:{column}", text, row=row.name)


def _read_documents(kind: str, file: NamedFile, text_column: Columns) -> Iterator[Document]:
    yield from documents_of(ROW_READERS[kind](file, text_column), text_column)


READERS: dict[str, Callable[[NamedFile, Columns], Iterator[Document]]] = {
    "text": read_text,
    **{kind: partial(_read_documents, kind) for kind in ROW_READERS},
}


def stdlib_files() -> list[NamedFile]:
    """The source files of Python's standard library, without its tests and what differs from machine to machine."""
    # pydoc_data is the whole language reference in one string: no source, and most of validation if it falls there.
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
    # Written when this Python was built: the compiler and the paths of one machine.
    built = ("_sysconfigdata", "config-")
    files = walk(Path(sysconfig.get_path("stdlib")), frozenset(left_out))
    return sorted(file for file in files if file.name.endswith(".py") and not file.name.startswith(built))


def read_stdlib(file: NamedFile, text_column: Columns) -> Iterator[Document]:
    """Like `read_text`, but a file that is not UTF-8 is left out: a user cannot correct the standard library."""
    with reading(file.path) as stream:
        data = stream.read()
    try:
        yield Document(file.name, data.decode("utf-8"))
    except UnicodeDecodeError:
        return


def open_huggingface(path: str) -> tuple[Any, Any | None]:
    """The training split of a dataset and its validation split, if it has one.

    Args:
        path: a `save_to_disk` folder, or whatever `datasets.load_dataset` takes; `name:config` names a configuration.
    """
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
        return opened, None
    if "train" not in opened:
        raise UserError(f"the dataset {path} has no split 'train', only {', '.join(opened)}")
    names = (name for name in ("validation", "valid", "dev", "test") if name in opened)
    return opened["train"], next((opened[name] for name in names), None)


def is_saved_dataset(folder: Path) -> bool:
    """Returns whether `datasets` wrote the folder with `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_huggingface_rows(dataset: Any, name: str, columns: Columns | None = None) -> Iterator[Row]:
    """One row a row; only the columns asked for are read."""
    names = _require_column(columns, dataset.column_names, name)
    number = 0
    for batch in dataset.select_columns(names).iter(batch_size=1024):
        for values in zip(*(batch[column] for column in names), strict=True):
            number += 1
            yield Row(dict(zip(names, values, strict=True)), str(number), f"{name}, row {number}")


def _require_column(wanted: Columns | None, columns: Sequence[str], where: str) -> list[str]:
    """The wanted columns that exist, at least one; with None all columns."""
    names = columns if wanted is None else [wanted] if isinstance(wanted, str) else wanted
    present = [name for name in names if name in columns]
    if not present and wanted is not None:
        found = ", ".join(columns) or "none"
        missing = repr(wanted) if isinstance(wanted, str) else " or ".join(map(repr, wanted))
        raise UserError(f"{where} has no column {missing}, only {found}: set data.text_column to one of them")
    return present


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
