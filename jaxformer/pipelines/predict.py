"""A file of any size through a pipeline: a line out for each line in, in constant memory, resumed after a crash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxformer.hub.repository import model_files
from jaxformer.pipelines.base import Pipeline
from jaxformer.pipelines.lines import Line, check_file, read_lines
from jaxformer.pipelines.resumable import Done, describe_file, record_line, write_lines
from jaxformer.schema import UserError


def describe(pipe: Pipeline, file: Path, column: str) -> dict[str, Any]:
    """What an output belongs to: the input, the model and the options."""
    return {
        "task": pipe.task,
        "model": pipe.name,
        "model_files": model_files(pipe.name),
        "options": dict(sorted(pipe.given.items())),
        "text_column": column,
        **describe_file(file),
    }


def predict(
    pipe: Pipeline,
    file: Path,
    out: Path,
    column: str = "text",
    progress: Callable[[int, int], None] = lambda lines, size: None,
) -> Done:
    """Writes a line for each line of the input: a JSON object with the result, or ``{"error": "line 17: ..."}``.

    An output that a crash left is gone on with behind its last whole line. Only a window of lines is in memory.

    Args:
        pipe: the pipeline.
        file: lines of JSON, ``.csv``, ``.tsv`` or ``.txt``, also with ``.gz``.
        out: the file to write; beside it stands ``OUT.about.json``, which says what it belongs to.
        column: the column with the text.
        progress: is told the lines and the bytes of the input that are done.

    Raises:
        UserError: the input cannot be read, the output belongs to another input, model or options, or none of the first
            lines has the column.
    """
    check_file(file)  # before it is described
    return write_lines(
        file,
        out,
        describe(pipe, file, column),
        lambda: read_lines(file, column, lambda record: pipe.from_record(record, column)),
        lambda window: _answers(pipe, window),
        pipe.window_size,
        progress,
    )


def _answers(pipe: Pipeline, window: list[Line]) -> list[bytes]:
    """The lines to write for some lines of the input."""
    results = iter(pipe.window([line.item for line in window if not isinstance(line.item, UserError)], pipe.options))
    rows = []
    for line in window:
        if isinstance(line.item, UserError):
            record = {"error": str(line.item)}
        else:
            result = next(results)
            failed = isinstance(result, UserError)
            record = {"error": f"line {line.number}: {result}"} if failed else pipe.record(result)
        rows.append(record_line(record))
    return rows
