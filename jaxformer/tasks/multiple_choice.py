"""Multiple choice: which of several texts goes with a question."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.models import heads
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task, TaskSchema
from jaxformer.tokenizers import PreTrainedTokenizer, encode_batch


class MultipleChoiceConfig(TaskSchema):
    """Choose the text that goes with a question."""

    architectures = ("encoder", "decoder", "encoder_decoder")
    reads = "records"
    unit = "examples"
    special_tokens = ("pad", "cls", "sep")

    type: Literal["multiple_choice"] = Field("multiple_choice", description="objective")
    question_column: str = Field("question", description="column with the question, or the beginning to be continued")
    choices_column: str = Field("choices", description="column with the list of choices")
    label_column: str = Field("label", description="column with the number of the right choice, counted from 0")

    def choices_of(self, record: R.Record) -> list[str]:
        """The choices, at least two."""
        choices = R.items(record, self.choices_column, "choices_column")
        if len(choices) < 2:
            raise UserError(f"{R.where(record)} has {len(choices)} choices, expected at least 2")
        return choices

    def label_of(self, record: R.Record) -> int:
        """The number of the right choice."""
        value, count = R.column(record, self.label_column, "label_column"), len(self.choices_of(record))
        if not str(value).isdecimal() or int(value) >= count:
            raise UserError(
                f"{R.where(record)}: column {self.label_column!r} (task.label_column) holds {value!r}, expected the "
                f"number of a choice from 0 to {count - 1}"
            )
        return int(value)

    def texts(self, record: R.Record) -> list[str]:
        """The question and its choices; what a tokenizer is trained on."""
        return [R.text(record, self.question_column, "question_column"), *self.choices_of(record)]


@dataclass(frozen=True, eq=False)
class MultipleChoice(Task):
    """Cross-entropy of the right choice among the choices of its question.

    Inputs are ``[B, C, T]``, a row `[CLS] question [SEP] choice [SEP]` for each choice; those that a question lacks
    have an ``attention_mask`` of zeros and probability 0. The model's output has ``logits [B, C]``.
    """

    config: MultipleChoiceConfig
    tokenizer: PreTrainedTokenizer
    sequence_length: int
    train_records: Sequence[R.Record] = field(repr=False)

    def __post_init__(self) -> None:
        R.check_length(self.sequence_length, 5, self.config.type)

    def model(self, config: TransformerConfig) -> nn.Module:
        """The body with a head that gives each choice a score."""
        return heads.MultipleChoice(config)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row a record."""
        examples = []
        for record in data:
            question, *choices = encode_batch(self.tokenizer, self.config.texts(record))
            inputs = [R.encoder_input(self.tokenizer, question, choice, self.sequence_length) for choice in choices]
            examples.append(self._stacked(inputs) | {"labels": self.config.label_of(record)})
        return ExampleRows(examples, self.sequence_length, R.encoder_fill(self.tokenizer))

    def _stacked(self, inputs: Sequence[Batch]) -> Example:
        """The rows of one record under one another, padded to the longest."""
        sizes = np.array([len(row["input_ids"]) for row in inputs])
        fill = R.encoder_fill(self.tokenizer)
        example: Example = {"attention_mask": (np.arange(sizes.max()) < sizes[:, None]).astype(np.int32)}
        for name in ("input_ids", "token_type_ids"):
            padded = np.full((len(inputs), sizes.max()), fill[name], np.int32)
            for row, size in enumerate(sizes):
                padded[row, :size] = inputs[row][name]
            example[name] = padded
        return example

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """The rows as they are."""
        return batch

    def _logits(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> jax.Array:
        logits = R.apply(model, params, batch, dropout_key).logits.astype(jnp.float32)
        return jnp.where(jnp.any(batch["attention_mask"] == 1, axis=-1), logits, F.MASKED)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy over the choices, summed over the questions, nats."""
        sums = F.cross_entropy(self._logits(model, params, batch, dropout_key), batch["labels"])
        return LossSums(sums.total, sums.tokens, {"loss": sums.cross_entropy})

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``choice [B]``, the most likely one, and ``confidence [B]``, its probability."""
        logits = self._logits(model, params, batch, None)
        choice = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return {"choice": choice, "confidence": jnp.max(jax.nn.softmax(logits), axis=-1)}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """Accuracy and, a record each, the question, its choices, the right and the chosen number."""
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
