"""Multiple choice: choose the answer to a question from several texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import ExampleRows
from jaxformer.data.formats import ClassName
from jaxformer.models import heads
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task
from jaxformer.tokenizers import encode_batch, frame_of


class MultipleChoiceConfig(R.SupervisedConfig):
    """Choose the answer to a question from several texts."""

    unit = "examples"

    type: Literal["multiple_choice"] = Field("multiple_choice", description="objective")
    question_column: str = Field("question", description="column with the question or context")
    choices_column: str = Field("choices", description="column with the list of choices")
    label_column: str = Field("label", description="column with the number of the correct choice, from 0")

    def choices_of(self, record: R.Record) -> list[str]:
        """The choices, at least two."""
        choices = R.items(record, self.choices_column, "choices_column")
        if len(choices) < 2:
            raise UserError(f"{R.where(record)} has {len(choices)} choices, expected at least 2")
        return choices

    def label_of(self, record: R.Record) -> int:
        """The number of the correct choice; raises ``BadRow`` if it is missing."""
        value, count = R.answer(record, self.label_column, "label_column"), len(self.choices_of(record))
        if R.is_missing(value):
            raise R.BadRow(f"column {self.label_column!r} (task.label_column) holds no label but {R.said(value)}")
        value = value.number if isinstance(value, ClassName) else value
        if not str(value).isdecimal() or int(value) >= count:
            raise UserError(
                f"{R.where(record)}: column {self.label_column!r} (task.label_column) holds {value!r}, expected the "
                f"number of a choice from 0 to {count - 1}"
            )
        return int(value)

    def texts(self, record: R.Record) -> list[str]:
        """The question and its choices."""
        return [R.text(record, self.question_column, "question_column"), *self.choices_of(record)]


@dataclass(frozen=True, eq=False)
class MultipleChoice(Task):
    """Cross-entropy of the correct choice among the choices of its question.

    Inputs are ``[B, C, T]``, a row ``[CLS] question [SEP] choice [SEP]`` for each choice; missing choices have an
    ``attention_mask`` of zeros and probability 0. The model's output has ``logits [B, C]``.
    """

    config: MultipleChoiceConfig

    def __post_init__(self) -> None:
        R.check_length(self, 2)

    def model(self, config: TransformerConfig) -> nn.Module:
        """The backbone with a head that scores each choice."""
        return heads.MultipleChoice(config)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row per record with a label."""
        examples, fill, frame = [], R.encoder_fill(self.tokenizer), frame_of(self.tokenizer, pair=True)

        def read(record: R.Record) -> int:
            question, *choices = self.config.texts(record)
            R.require_tokens(self, frame, *([question, choice] for choice in choices))
            return self.config.label_of(record)

        usable, tally = R.read_answers(data, read, self.config.bad_rows)
        for record, label in usable:
            question, *choices = encode_batch(self.tokenizer, self.config.texts(record))
            inputs = [R.encoder_input(frame, question, choice, self.sequence_length) for choice in choices]
            examples.append(R.stack_rows(inputs, fill) | {"labels": label})
        return R.answered_rows(ExampleRows(examples, self.sequence_length, fill), usable, tally)

    def _logits(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> jax.Array:
        logits = R.apply(model, params, batch, dropout_key).logits.astype(jnp.float32)
        return jnp.where(jnp.any(batch["attention_mask"] == 1, axis=-1), logits, F.MASKED)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy over the choices, summed over the questions, nats."""
        sums = F.cross_entropy(self._logits(model, params, batch, dropout_key), batch["labels"])
        return LossSums(sums.total, sums.tokens, {"loss": sums.cross_entropy})

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``choice [B]``, the most probable one, and ``confidence [B]``, its probability."""
        logits = self._logits(model, params, batch, None)
        choice = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return {"choice": choice, "confidence": jnp.max(jax.nn.softmax(logits), axis=-1)}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """Accuracy, and for each record question, choices, label and prediction."""
        labels = np.array([self.config.label_of(record) for record in data])
        pairs = zip(data, labels.tolist(), outputs["choice"].tolist(), R.rounded(outputs["confidence"]), strict=True)
        predictions = [
            {
                "question": record[self.config.question_column],
                "choices": self.config.choices_of(record),
                "label": label,
                "predicted": choice,
                "probability": confidence,
            }
            for record, label, choice, confidence in pairs
        ]
        return Report({"accuracy": float(np.mean(labels == outputs["choice"]))}, predictions)
