"""Pairs of texts, with negatives or with the number that says how well they match: settings and rows."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from jaxformer.schema import UserError
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch


class PairConfig(R.SupervisedConfig):
    """Base class of the objectives on pairs of texts."""

    unit = "examples"

    text_column: str = Field("text", description="column with the query, or the first text")
    text_pair_column: str = Field("positive", description="column with a text that belongs to it, or the second text")
    negatives_column: str | None = Field(
        None, description="column with a text that does not belong to it but could seem to, or a list of such texts"
    )
    label_column: str | None = Field(
        None, description="column with a number that says how well the two texts match; default: every pair belongs"
    )
    label_range: tuple[float, float] = Field((0.0, 1.0), description="least and greatest label, scaled to 0 and 1")

    @model_validator(mode="after")
    def _labels_or_negatives(self) -> "PairConfig":
        if self.label_column is not None and self.negatives_column is not None:
            raise ValueError("label_column and negatives_column are given, expected one of them; leave one out")
        if self.label_range[0] >= self.label_range[1]:
            raise ValueError(f"label_range is {list(self.label_range)}, expected the least label before the greatest")
        return self

    def texts(self, record: R.Record) -> list[str]:
        """The two texts, then the negatives."""
        pair = ((self.text_column, "text_column"), (self.text_pair_column, "text_pair_column"))
        return [R.text(record, name, key) for name, key in pair] + self.negatives_of(record)

    def negatives_of(self, record: R.Record) -> list[str]:
        """The negatives; none if the column holds null."""
        if self.negatives_column is None:
            return []
        value = R.answer(record, self.negatives_column, "negatives_column")
        if value is None:
            return []
        if isinstance(value, str):
            return [value]
        return R.items(record, self.negatives_column, "negatives_column")

    def target_of(self, record: R.Record) -> float:
        """The label in [0, 1]; raises ``BadRow`` if it is missing."""
        assert self.label_column is not None, "asked of labelled pairs only"
        value = R.answer(record, self.label_column, "label_column")
        if R.is_missing(value):
            raise R.BadRow(f"column {self.label_column!r} (task.label_column) holds no number but {R.said(value)}")
        try:
            number = float(getattr(value, "number", value))
        except (TypeError, ValueError):
            number = float("nan")
        low, high = self.label_range
        if not low <= number <= high:
            raise UserError(
                f"{R.where(record)}: column {self.label_column!r} (task.label_column) holds {value!r:.60}, expected a "
                f"number from {low:g} to {high:g}; fix it, or set task.label_range"
            )
        return (number - low) / (high - low)


def shown_pairs(config: PairConfig, data: Sequence[R.Record]) -> list[dict[str, Any]]:
    """The two texts of each record, for predictions."""
    return [{name: record[name] for name in (config.text_column, config.text_pair_column)} for record in data]


def real_texts(batch: Batch) -> jax.Array:
    """``[B, n]``, False at texts that a row does not have and in rows of padding."""
    return jnp.any(jnp.asarray(batch["attention_mask"]) == 1, axis=-1)


def numbered(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """``[rows, n]`` numbers of the texts, equal texts with the same number; -1 where a row has fewer.

    >>> numbered([["a", "b"], ["b", "c", "a"]]).tolist()
    [[0, 1, -1], [1, 2, 0]]
    """
    numbers: dict[str, int] = {}
    found = np.full((len(texts), max(map(len, texts), default=0)), -1, np.int32)
    for row, group in zip(found, texts, strict=True):
        row[: len(group)] = [numbers.setdefault(text, len(numbers)) for text in group]
    return found
