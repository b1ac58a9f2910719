"""A file through a pipeline: one line out for each line in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxformer.data.lines import Line, Quoting
from jaxformer.hub.repository import model_files
from jaxformer.pipelines.base_pipeline import Pipeline
from jaxformer.pipelines.resumable import Done, write_lines
from jaxformer.schema import UserError


def predict(
    pipe: Pipeline,
    file: Path,
    out: Path,
    column: str = "text",
    progress: Callable[[int, int], None] = lambda lines, size: None,
    quoting: Quoting = "auto",
) -> Done:
    """Writes the pipeline's result for each line of a file by ``resumable.write_lines``."""

    def read(line: Line) -> Any:
        return read_input(pipe, line, column)

    def answer(inputs: list[Any]) -> list[Any]:
        results = pipe.window(inputs, pipe.options)
        return [result if isinstance(result, UserError) else pipe.record(result) for result in results]

    settings = settings_of(pipe, column, quoting)
    return write_lines(file, out, settings, read, answer, pipe.window_size, progress, quoting)


def settings_of(pipe: Pipeline, column: str, quoting: Quoting) -> dict[str, Any]:
    """The settings that must be the same when an output is resumed."""
    return {
        "task": pipe.task,
        "model": pipe.name,
        "model_files": model_files(pipe.name),
        "options": dict(sorted(pipe.given.items())),
        "text_column": column,
        **({} if quoting == "auto" else {"quoting": quoting}),
    }


def read_input(pipe: Pipeline, line: Line, column: str) -> Any:
    """The pipeline's input on a line."""
    return pipe.from_record({column: line.value} if isinstance(line.value, str) else line.value, column)
