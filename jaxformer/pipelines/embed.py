"""A file into vectors: one row for each line, in an array of NumPy or a Parquet file."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxformer.atomic import replacing
from jaxformer.data.lines import Line, Quoting
from jaxformer.pipelines.features import FeatureExtraction
from jaxformer.pipelines.predict import read_input, settings_of
from jaxformer.pipelines.resumable import Done, RowFormat, about_path, write_rows
from jaxformer.schema import UserError

DTYPE = np.dtype("<f4")
PARQUET_ROWS = 8192  # in memory at once while a Parquet file is written


def check_out(out: Path) -> None:
    """Refuses an output of another kind, or a finished Parquet file."""
    if out.suffix not in (".npy", ".parquet"):
        raise UserError(f"--out is {out}, expected a name that ends in .npy or .parquet")
    if out.suffix == ".parquet" and out.exists():
        raise UserError(f"{out} exists; choose another --out, or remove it")


def embed(
    pipe: FeatureExtraction,
    file: Path,
    out: Path,
    column: str = "text",
    progress: Callable[[int, int], None] = lambda lines, size: None,
    quoting: Quoting = "auto",
) -> Done:
    """Writes the vector of each line of a file, float32, by ``resumable.write_rows``.

    A Parquet file is written from an array beside it when that is whole, with one column ``embedding``.

    Raises:
        UserError: as ``write_rows``, the model says no way to a vector, or a line is bad: a row would be missing.
    """
    check_out(out)
    if pipe.format(pipe.options) is None:
        raise UserError(f"{pipe.name} is no sentence encoder, expected one, or pooling=mean, first or last for another")

    def rows_of(window: Sequence[Line], first: bool) -> list[bytes]:
        inputs = []
        for line in window:
            if isinstance(line.value, UserError):
                raise _bad(line, line.value)
            try:
                inputs.append(read_input(pipe, line, column))
            except UserError as error:
                raise _bad(line, error) from None
        found = pipe.window(inputs, pipe.options)
        for line, vector in zip(window, found, strict=True):
            if isinstance(vector, UserError):
                raise _bad(line, vector)
        return [np.asarray(vector, DTYPE).tobytes() for vector in found]

    array = out if out.suffix == ".npy" else out.with_name(f".{out.name}.npy")
    width, settings = pipe.width, settings_of(pipe, column, quoting)
    format = RowFormat(lambda path: _cut_to_vectors(path, width), lambda rows: 0)
    done = write_rows(file, array, settings, rows_of, format, pipe.window_size, progress, quoting)
    with array.open("r+b") as stream:
        stream.write(_header(done.lines, width))
    if array != out and done.stopped_by is None:
        _write_parquet(array, out)
        array.unlink()
        about_path(array).unlink()
    return done


def _bad(line: Line, error: UserError) -> UserError:
    return UserError(f"line {line.number}: {error}; every line needs a vector: fix it and run the command again")


def _header(rows: int, width: int) -> bytes:
    """The head of a ``.npy`` file; NumPy leaves room in it for any number of rows."""
    stream = io.BytesIO()
    shape = {"descr": DTYPE.str, "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(stream, shape)
    return stream.getvalue()


def _cut_to_vectors(path: Path, width: int) -> tuple[int, int]:
    """Begins an array, or truncates one after its last whole row; returns its rows."""
    head, row = _header(0, width), width * DTYPE.itemsize
    rows = max(path.stat().st_size - len(head), 0) // row
    with path.open("r+b") as stream:
        stream.write(head)
        stream.truncate(len(head) + rows * row)
    return rows, 0


def _write_parquet(array: Path, out: Path) -> None:
    """Writes the rows of an array, a part at a time."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetWriter  # type: ignore[import-untyped]

    vectors = np.load(array, mmap_mode="r")
    kind = pa.list_(pa.float32(), vectors.shape[1])
    with replacing(out) as path, ParquetWriter(path, pa.schema([("embedding", kind)])) as writer:
        for start in range(0, len(vectors), PARQUET_ROWS):
            values = pa.array(np.ravel(vectors[start : start + PARQUET_ROWS]))
            writer.write_table(pa.table({"embedding": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])}))
