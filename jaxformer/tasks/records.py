"""Tasks on records: columns of a record, unusable rows, labels, inputs of an encoder."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.models.config import Architecture
from jaxformer.schema import UserError
from jaxformer.tasks import base
from jaxformer.tasks.base import Batch, Task, TaskSchema
from jaxformer.tokenizers import Frame, PreTrainedTokenizer, encode_batch, frame_of, special_id

logger = logging.getLogger(__name__)
Record = Mapping[str, Any]
# Columns of a batch that are inputs of a model; the others are labels.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "example_ids")
BadRows = Literal["report", "error"]
MOST_NAMED = 3  # rows that a warning names for each reason


class SupervisedConfig(TaskSchema):
    """Base class of the objectives on records with a classification head."""

    bad_rows: BadRows = Field(
        "report", description="rows without a usable answer: report: skip them with a warning; error: stop"
    )

    architectures: ClassVar[tuple[Architecture, ...]] = ("encoder", "decoder", "encoder_decoder")
    reads = "records"
    special_tokens = ("pad",)
    frame_tokens = ("cls", "sep")


class LabelledConfig(SupervisedConfig):
    """Base class of the objectives with named classes."""

    labels: list[str] | None = Field(None, description="class names; default: those of the training data, sorted")

    def with_labels(self, labels: Sequence[str]) -> Self:
        """The configuration with the class names found in the data, where it names none."""
        return self.model_copy(update={"labels": list(labels)}) if labels and self.labels is None else self

    def label(self, value: Any, name: str, key: str) -> str:
        """The label in a column as text; raises ``BadRow`` if it is missing and ``labels`` does not name it."""
        if is_missing(value) and str(value) not in (self.labels or ()):
            raise BadRow(f"column {name!r} (task.{key}) holds no label but {said(value)}")
        return str(value)


@dataclass(frozen=True, eq=False)
class LabelledTask(Task):
    """Base class of the objectives with named classes."""

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.labels)}

    def label_number(self, label: str, record: Record) -> int:
        """The number of a class, else a ``UserError`` that names the record and the labels."""
        if label not in self._numbers:
            known = ", ".join(self.labels)
            raise UserError(f"{where(record)}: label {label!r} is not one of {known}: add it to task.labels or fix it")
        return self._numbers[label]


def where(record: Record) -> str:
    """File and line of a record, for messages."""
    return str(getattr(record, "where", "a record"))


class BadRow(Exception):  # noqa: N818  a property of the data, not an error of the program
    """Reason why a row cannot be used."""


def is_missing(value: Any) -> bool:
    """Returns whether a value stands for none: null, a blank text, or nan, also as text.

    >>> [is_missing(value) for value in (None, " ", float("nan"), "NaN", 0, "no", -1)]
    [True, True, True, True, False, False, False]
    """
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan")
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def said(value: Any) -> str:
    """A missing value, for messages."""
    return "null" if value is None else repr(value) if isinstance(value, str) else str(value)


@dataclass
class Tally:
    """Counts of the rows of a split that are skipped or truncated.

    The policy ``report`` skips an unusable row and warns, ``error`` stops at the first. ``left_out`` has file and line
    of each skipped row and the reason, ``cut`` those of each row with a truncated response.
    """

    policy: BadRows = "report"
    total: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def leave_out(self, record: Record, reason: str) -> None:
        """Skips a row; raises ``UserError`` if the policy is ``error``."""
        if self.policy == "error":
            raise UserError(f"{where(record)}: {reason}; fix the row, or set task.bad_rows to report")
        self.left_out.append((where(record), reason))

    def report(self, context: str = "") -> None:
        """Logs a warning for each reason; raises ``UserError`` if no row is left."""
        if self.total and len(self.left_out) == self.total:
            place, reason = self.left_out[0]
            raise UserError(f"none of the {self.total:,} rows can be used, the first is {place}: {reason}")
        reasons: dict[str, list[str]] = {}
        for place, reason in self.left_out:
            reasons.setdefault(reason, []).append(place)
        for reason, places in reasons.items():
            logger.warning(f"skipped {len(places):,} of {self.total:,} rows: {reason} ({few(places)})")
        if self.cut:
            logger.warning(f"truncated {len(self.cut):,} of {self.total:,} responses{context} ({few(self.cut)})")


def read_rows(records: Sequence[Record], read: Callable[[Record], Any], tally: Tally) -> list[tuple[Record, Any]]:
    """The usable records, each with the result of ``read``."""
    found = []
    for record in records:
        try:
            found.append((record, read(record)))
        except BadRow as reason:
            tally.leave_out(record, str(reason))
    return found


def read_answers(
    records: Sequence[Record], read: Callable[[Record], Any], policy: BadRows
) -> tuple[list[tuple[Record, Any]], Tally]:
    """The records with an answer, each with it; logs how many have none, a ``UserError`` if none is left."""
    tally = Tally(policy, len(records))
    usable = read_rows(records, read, tally)
    tally.report()
    return usable, tally


def answered_rows(rows: ExampleRows, usable: Sequence[tuple[Record, Any]], tally: Tally) -> ExampleRows:
    """The rows with the records that they are made of, and those skipped."""
    rows.records, rows.left_out = [record for record, _ in usable], tally.left_out
    return rows


def few(places: Sequence[str]) -> str:
    """The first few places and the number of the others, for messages."""
    more = f" and {len(places) - MOST_NAMED:,} more" if len(places) > MOST_NAMED else ""
    return "; ".join(places[:MOST_NAMED]) + more


def check_length(task: Task, texts: int) -> None:
    """Refuses rows too short for the special tokens and one token of each of one or two texts."""
    T = task.sequence_length
    shortest = frame_of(task.tokenizer, pair=texts > 1).size + texts
    if shortest > T:
        raise UserError(f"{task.config.type}: the sequence length is {T}, expected at least {shortest}; raise it")


def require_tokens(task: Task, frame: Frame, *inputs: Sequence[str]) -> None:
    """Raises ``BadRow`` if the texts of an input have no tokens and none are put around them: nothing could be read."""
    if not frame.size and not all(any(encode_batch(task.tokenizer, texts)) for texts in inputs):
        raise BadRow("the text has no tokens, and the tokenizer puts none around it")


def column(record: Record, name: str, key: str) -> Any:
    """The value in the column ``name``, configured as ``task.KEY``; a ``UserError`` if it is missing or null."""
    value = answer(record, name, key)
    if value is None:
        raise UserError(f"{where(record)}: column {name!r} (task.{key}) holds null, expected a value")
    return value


def answer(record: Record, name: str, key: str) -> Any:
    """The value in the column ``name``, which may be null; a ``UserError`` if there is no such column."""
    if name not in record:
        found = ", ".join(map(str, record)) or "none"
        raise UserError(f"{where(record)} has no column {name!r}, only {found}: set task.{key} to one of them")
    return record[name]


def text(record: Record, name: str, key: str) -> str:
    """The text in a column, else a ``UserError``."""
    value = column(record, name, key)
    if not isinstance(value, str):
        raise UserError(f"{where(record)}: column {name!r} (task.{key}) holds {type(value).__name__}, expected text")
    return value


def items(record: Record, name: str, key: str) -> list[str]:
    """The list of texts in a column, else a ``UserError``."""
    value = column(record, name, key)
    if not isinstance(value, list | tuple | np.ndarray) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where(record)}: column {name!r} (task.{key}) is {value!r:.60}, expected a list of texts")
    return [str(item) for item in value]


def find_labels(configured: Sequence[str] | None, found: Iterable[str]) -> tuple[str, ...]:
    """Class names: as configured, else those of the training records, sorted (as numbers if all are).

    Names of one number are sorted as text, so that every process has the same order.

    >>> find_labels(None, ["10", "1", "01", "2"])
    ('01', '1', '2', '10')
    """
    if configured is not None:
        if len(set(configured)) < len(configured):
            raise UserError(f"task.labels is {list(configured)}, expected each label once")
        return tuple(configured)
    names = set(found)
    numbers = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numbers else 0, name)))


def encoder_input(frame: Frame, first: Sequence[int], second: Sequence[int] | None, length: int) -> Batch:
    """``input_ids`` and ``token_type_ids`` of a text or a pair in the tokenizer's frame, truncated to ``length``.

    Types are 0 up to the first ``[SEP]`` and 1 after it (Devlin et al. 2019, "BERT", section 3), or all 0 for a model
    with one type.
    """
    framed = frame.join(first, second, length)
    return {"input_ids": np.array(framed.ids, np.int32), "token_type_ids": np.array(framed.types, np.int32)}


def encoder_fill(tokenizer: PreTrainedTokenizer) -> dict[str, int | float]:
    """Padding values of the columns of ``encoder_input``, and of ``labels``."""
    return {"input_ids": special_id(tokenizer, "pad"), "token_type_ids": 0, "labels": -100}


def apply(model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None, method: str | None = None) -> Any:
    """The model's output for the inputs in a batch; ``dropout_key`` None is evaluation."""
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    return base.apply(model, params, inputs, dropout_key, method)


def stack_rows(rows: Sequence[Mapping[str, Any]], fill: Mapping[str, int | float]) -> Example:
    """Columns ``[n, longest]`` of the rows, padded with ``fill``, and the ``attention_mask`` of ``input_ids``."""
    found: Example = {}
    for name in rows[0]:
        arrays = [row[name] for row in rows]
        column = np.full((len(rows), max(map(len, arrays))), fill[name], np.int32)
        for padded, array in zip(column, arrays, strict=True):
            padded[: len(array)] = array
        found[name] = column
    sizes = np.array([len(row["input_ids"]) for row in rows])
    return {**found, "attention_mask": (np.arange(sizes.max()) < sizes[:, None]).astype(np.int32)}


def pad_tokens(array: jax.Array, length: int, value: int) -> jax.Array:
    """Pads ``[B, T]`` to ``[B, length]``, so that the outputs of batches of different lengths can be concatenated."""
    return jnp.pad(array, ((0, 0), (0, length - array.shape[1])), constant_values=value)


def rounded(values: np.ndarray) -> list[float]:
    """Numbers for a JSON file, rounded to six decimals."""
    return [round(float(value), 6) for value in values]
