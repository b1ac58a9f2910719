"""Sequence classification and regression: labels or a number for a text or a pair of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.data.formats import ClassName
from jaxformer.models import heads
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError
from jaxformer.tasks import metrics
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch, LossSums, Report, Rows
from jaxformer.tokenizers import encode_batch, frame_of


class SequenceClassificationConfig(R.LabelledConfig):
    """Predict labels or a number for a text or a pair of texts."""

    unit = "examples"

    type: Literal["sequence_classification"] = Field("sequence_classification", description="objective")
    text_column: str = Field("text", description="column with the text")
    text_pair_column: str | None = Field(None, description="column with the second text of a pair")
    label_column: str = Field("label", description="column with the label, a list of labels, or the number")
    problem: Literal["single_label", "multi_label", "regression"] = Field(
        "single_label", description="one class per text, any number of classes per text, or a number"
    )
    class_weights: dict[str, float] | Literal["balanced"] | None = Field(
        None, description="weights of the classes in the loss; balanced: examples / (classes * examples of the class)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread evenly over the classes")

    @property
    def weighting(self) -> str:
        """With class weights, the weight of a loss is not the number of examples."""
        return " by class weight" if self.class_weights else ""

    def texts(self, record: R.Record) -> list[str]:
        """The texts of a record."""
        pairs = ((self.text_column, "text_column"), (self.text_pair_column, "text_pair_column"))
        return [R.text(record, name, key) for name, key in pairs if name is not None]

    def labels_of(self, record: R.Record) -> list[str]:
        """The labels of a record as text; exactly one unless the problem is ``multi_label``.

        Raises ``BadRow`` if a label is missing.
        """
        value = R.answer(record, self.label_column, "label_column")
        if self.problem == "multi_label" and not R.is_missing(value):
            if not isinstance(value, list | tuple | np.ndarray):
                raise UserError(
                    f"{R.where(record)}: column {self.label_column!r} (task.label_column) is {value!r:.60}, expected a "
                    "list of labels for task.problem 'multi_label'"
                )
            return [self.label(label, self.label_column, "label_column") for label in value]
        return [self.label(value, self.label_column, "label_column")]

    def target_of(self, record: R.Record) -> float:
        """The number to predict; raises ``BadRow`` if it is missing."""
        value = R.answer(record, self.label_column, "label_column")
        if R.is_missing(value):
            raise R.BadRow(f"column {self.label_column!r} (task.label_column) holds no number but {R.said(value)}")
        try:
            number = float(value.number if isinstance(value, ClassName) else value)
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number):
            raise UserError(
                f"{R.where(record)}: column {self.label_column!r} (task.label_column) holds {value!r:.60}, expected a "
                "number for task.problem 'regression'"
            )
        return number


@dataclass(frozen=True, eq=False)
class SequenceClassification(R.LabelledTask):
    """Cross-entropy of the label, binary cross-entropy of each label, or squared error of the number.

    The model's output has ``logits [B, C]``, C 1 for regression.
    """

    config: SequenceClassificationConfig

    def __post_init__(self) -> None:
        c = self.config
        R.check_length(self, 1 if c.text_pair_column is None else 2)
        if c.problem != "single_label" and (c.class_weights is not None or c.label_smoothing):
            raise UserError(f"task.problem is {c.problem!r}, without class_weights and label_smoothing: leave them out")
        if c.problem == "regression" and c.labels is not None:
            raise UserError(f"task.problem is 'regression' but task.labels is {c.labels}: leave it out")

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Class names by number; none for regression."""
        c = self.config
        if c.problem == "regression":
            return ()
        known = R.read_rows(self.train_records if c.labels is None else (), c.labels_of, R.Tally())
        labels = R.find_labels(c.labels, (label for _, labels in known for label in labels))
        if len(labels) < (2 if c.problem == "single_label" else 1):
            raise UserError(f"the training records have the labels {list(labels)}, expected at least two classes")
        return labels

    @cached_property
    def class_weights(self) -> np.ndarray | None:
        """``[C]`` float32, or None for equal weights."""
        c = self.config
        if c.class_weights is None:
            return None
        if c.class_weights == "balanced":
            known = R.read_rows(self.train_records, c.labels_of, R.Tally())
            numbers = [self.label_number(labels[0], record) for record, labels in known]
            counts = np.bincount(numbers, minlength=len(self.labels))
            if not counts.all():
                missing = self.labels[int(np.argmin(counts))]
                raise UserError(f"task.class_weights is 'balanced' but no training record has the label {missing!r}")
            return (len(numbers) / (len(self.labels) * counts)).astype(np.float32)
        if set(c.class_weights) != set(self.labels):
            found = sorted(c.class_weights)
            raise UserError(f"task.class_weights has the labels {found}, expected {sorted(self.labels)}")
        return np.array([c.class_weights[label] for label in self.labels], np.float32)

    @property
    def export_keys(self) -> dict[str, Any]:
        """The problem, as transformers names it."""
        problem = self.config.problem
        return {"problem_type": problem if problem == "regression" else f"{problem}_classification"}

    def model(self, config: TransformerConfig) -> nn.Module:
        """The backbone with a classification head."""
        return heads.SequenceClassifier(config, len(self.labels) or 1, self.labels)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row per record with a label."""
        frame = frame_of(self.tokenizer, pair=self.config.text_pair_column is not None)

        def read(record: R.Record) -> Example:
            R.require_tokens(self, frame, self.config.texts(record))
            return self._answer(record)

        usable, tally = R.read_answers(data, read, self.config.bad_rows)
        texts = [self.config.texts(record) for record, _ in usable]
        ids = [encode_batch(self.tokenizer, column) for column in zip(*texts, strict=True)]
        examples: list[Example] = []
        for number, (_, answer) in enumerate(usable):
            second = ids[1][number] if len(ids) > 1 else None
            example: Example = dict(R.encoder_input(frame, ids[0][number], second, self.sequence_length))
            examples.append(example | answer)
        fill = R.encoder_fill(self.tokenizer) | ({"labels": 0.0} if self.config.problem == "regression" else {})
        rows = ExampleRows(examples, self.sequence_length, {**fill, "label_weights": 0.0}, stacked=["labels"])
        return R.answered_rows(rows, usable, tally)

    def _answer(self, record: R.Record) -> Example:
        if self.config.problem == "regression":
            return {"labels": self.config.target_of(record), "label_weights": 1.0}
        numbers = [self.label_number(label, record) for label in self.config.labels_of(record)]
        if self.config.problem == "single_label":
            return {"labels": numbers[0]}
        several = np.zeros(len(self.labels), np.int32)
        several[numbers] = 1
        return {"labels": several}

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over the examples; the weight is the sum of the labels' class weights."""
        logits = R.apply(model, params, batch, dropout_key).logits
        c = self.config
        if c.problem == "regression":
            error = F.squared_error(logits[:, 0], batch["labels"], batch["label_weights"])
            return LossSums(error.total, error.weight, {"loss": error.total})
        if c.problem == "multi_label":
            yes_no = F.binary_cross_entropy(logits, batch["labels"])
            return LossSums(yes_no.total, yes_no.weight, {"loss": yes_no.total})
        weights = jnp.ones(len(self.labels)) if self.class_weights is None else jnp.asarray(self.class_weights)
        plain = F.class_weighted_cross_entropy(logits, batch["labels"], weights)
        if not c.label_smoothing:
            return LossSums(plain.total, plain.weight, {"loss": plain.total})
        smooth = F.class_weighted_cross_entropy(logits, batch["labels"], weights, label_smoothing=c.label_smoothing)
        return LossSums(smooth.total, smooth.weight, {"loss": plain.total, "objective": smooth.total})

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``scores [B, C]``: probabilities of the classes, or the number."""
        logits = R.apply(model, params, batch, None).logits.astype(jnp.float32)
        functions = {"single_label": jax.nn.softmax, "multi_label": jax.nn.sigmoid, "regression": lambda x: x}
        return {"scores": functions[self.config.problem](logits)}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """Metrics, and for each example texts, label, prediction and probabilities."""
        c, scores = self.config, outputs["scores"]
        names = [n for n in (c.text_column, c.text_pair_column) if n is not None]
        shown = [{name: record[name] for name in names} for record in data]
        if c.problem == "regression":
            targets = np.array([c.target_of(record) for record in data])
            pairs = zip(shown, targets.tolist(), R.rounded(scores[:, 0]), strict=True)
            predictions = [texts | {"label": target, "predicted": value} for texts, target, value in pairs]
            return Report(metrics.regression(targets, scores[:, 0]), predictions)
        answers = np.array([self._answer(record)["labels"] for record in data])
        predicted = np.argmax(scores, axis=-1) if c.problem == "single_label" else (scores > 0.5).astype(int)
        predictions = [
            texts
            | {"label": self._names(label), "predicted": self._names(ours)}
            | {"probabilities": dict(zip(self.labels, R.rounded(row), strict=True))}
            for texts, label, ours, row in zip(shown, answers, predicted, scores, strict=True)
        ]
        if c.problem == "multi_label":
            return Report(metrics.multi_label(answers, predicted), predictions, self.labels)
        count = len(self.labels)
        confusion = metrics.confusion(answers, predicted, count)
        bins = metrics.reliability(scores.max(axis=-1), answers == predicted)
        found = metrics.classification(answers, predicted, count)
        return Report(found, predictions, self.labels, confusion, reliability=bins)

    def _names(self, answer: np.ndarray) -> str | list[str]:
        if self.config.problem == "single_label":
            return self.labels[int(answer)]
        return [label for label, yes in zip(self.labels, answer.tolist(), strict=True) if yes]
