"""Reads rows and documents of text, JSON lines, CSV, Parquet and Hugging Face datasets, one at a time."""

import json
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data.files import NamedFile, decode, reading, walk
from jaxformer.data.lines import BlankLineError, Quoting, read_lines
from jaxformer.schema import UserError, local_path

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


class ClassName(str):
    """The name of a class of a ``datasets.ClassLabel``, with its number."""

    number: int

    def __new__(cls, name: str, number: int) -> "ClassName":
        """The name of a class and its number."""
        found = super().__new__(cls, name)
        found.number = number
        return found


# Reads the rows of a file; the columns are those that will be used, None for all.
RowReader = Callable[..., Iterator[Row]]


def read_text(file: NamedFile, text_column: Columns) -> Iterator[Document]:
    """The whole file as one document, its line ends as they are."""
    with reading(file.path) as stream:
        yield Document(file.name, decode(stream.read(), file.path))


def read_line_rows(
    kind: str, file: NamedFile, columns: Columns | None = None, quoting: Quoting = "auto"
) -> Iterator[Row]:
    """The rows of a file of JSON lines or CSV; blank lines are skipped."""
    for line in read_lines(file.path, kind, quoting):
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
            names, convert = table.schema_arrow.names, _converters(_features_of(table.schema_arrow))
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=_require_column(columns, names, str(file.path))):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(_converted(values, convert), f"{file.name}:{number}", f"{file.path}, row {number}")
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {file.path} as Parquet: {_first_line(error)}") from error


def _features_of(schema: Any) -> Any:
    """The ``datasets.Features`` that a Parquet file was written with, None for a file of another library."""
    try:
        known = "features" in json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
    except ValueError:
        return None
    if not known:
        return None
    import datasets

    return datasets.Features.from_arrow_schema(schema)


def _converters(features: Mapping[str, Any] | None) -> dict[str, Callable[[Any], Any]]:
    """The functions that name the classes of each column that has classes."""
    found = {name: _converter(feature) for name, feature in (features or {}).items()}
    return {name: convert for name, convert in found.items() if convert is not None}


def _converter(feature: Any) -> Callable[[Any], Any] | None:
    """Numbers of classes to their names in a value of a ``datasets`` feature; a number below 0 is no class, null."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        names = feature.names or []

        def name_of(value: Any) -> Any:
            if value is None or value < 0:
                return None
            return ClassName(names[value], value) if value < len(names) else value

        return name_of if names else None
    if isinstance(feature, list):  # as datasets before 4 wrote a list
        return _converter(datasets.List(feature[0]))
    if isinstance(feature, datasets.List | datasets.LargeList):
        of_one = _converter(feature.feature)
        return None if of_one is None else lambda value: None if value is None else [of_one(item) for item in value]
    if isinstance(feature, dict):
        parts = _converters(feature)
        return (lambda value: None if value is None else _converted(value, parts)) if parts else None
    return None


def _converted(values: dict[str, Any], convert: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    return {**values, **{name: convert[name](value) for name, value in values.items() if name in convert}}


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


def _read_documents(kind: str, file: NamedFile, text_column: Columns, **options: Any) -> Iterator[Document]:
    yield from documents_of(ROW_READERS[kind](file, text_column, **options), text_column)


READERS: dict[str, Callable[..., Iterator[Document]]] = {
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

    folder = local_path(path)
    try:
        if is_saved_dataset(folder):
            opened = datasets.load_from_disk(str(folder))
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
    names, convert = _require_column(columns, dataset.column_names, name), _converters(dataset.features)
    number = 0
    for batch in dataset.select_columns(names).iter(batch_size=1024):
        for values in zip(*(batch[column] for column in names), strict=True):
            number += 1
            row = _converted(dict(zip(names, values, strict=True)), convert)
            yield Row(row, str(number), f"{name}, row {number}")


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
