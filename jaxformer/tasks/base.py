"""What an objective is: rows of the data, features of a batch made on the host, a loss that is a sum and a count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import numpy as np
from flax import linen as nn

from jaxformer import functional as F
from jaxformer.data.token_rows import Rows
from jaxformer.models.config import Architecture, TransformerConfig
from jaxformer.models.partition import shards
from jaxformer.schema import Schema
from jaxformer.tokenizers import Role

Batch = dict[str, Any]  # arrays of NumPy or JAX, batch in front


class LossSums(NamedTuple):
    """Sums over a (micro-)batch; the step divides by ``weight`` once, over all devices and micro-batches.

    Attributes:
        objective: what is minimised.
        weight: what the sums are divided by, for instance the number of trained tokens.
        metrics: further sums; ``loss`` is always there.
    """

    objective: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]


class TaskSchema(Schema):
    """Base of the objectives' configurations: what can be said of an objective before any data is seen.

    Attributes:
        architectures: the shapes of model it can train.
        reads: ``text``, documents cut into rows of tokens; ``records``, rows of a table with an answer each.
        special_tokens: what the tokenizer must have; what it lacks is added to it.
        sentinels: how many sentinel tokens the tokenizer must have.
        unit: what a loss is a mean over.
        report_at_end: whether its report takes so long that only the last evaluation makes one.
        scored: whether its report uses the packages of the extra ``metrics``.
        generates: whether the model learns from responses that it writes itself: rows of the data are prompts.
        labels_tokens: whether each token has a class.
    """

    architectures: ClassVar[tuple[Architecture, ...]]
    reads: ClassVar[Literal["text", "records"]]
    special_tokens: ClassVar[tuple[Role, ...]] = ()
    sentinels: ClassVar[int] = 0
    unit: ClassVar[str] = "tokens"
    report_at_end: ClassVar[bool] = False
    scored: ClassVar[bool] = True
    generates: ClassVar[bool] = False
    labels_tokens: ClassVar[bool] = False

    @property
    def updates(self) -> int:
        """Updates of the optimizer in a training step."""
        return 1

    @property
    def minibatch_count(self) -> int:
        """Parts of a batch that get an update each."""
        return 1

    @property
    def responses_per_prompt(self) -> int:
        """Rows of a batch for each row of the data."""
        return 1

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss compares with a mean over the batch, so that it cannot be accumulated."""
        return False

    @property
    def teacher_source(self) -> str | None:
        """The model that this one learns from: a run's folder, a folder or a name on the Hub."""
        return None

    @property
    def dialogue_template(self) -> str | None:
        """The chat template that the configuration names."""
        return None

    @property
    def longest_target(self) -> int:
        """Most tokens of a decoder's target where that is a length of its own, else 0."""
        return 0

    @property
    def problem_type(self) -> str | None:
        """A classifier's problem in the terms of transformers, by which its pipeline turns logits into scores."""
        return None

    @property
    def weighting(self) -> str:
        """How the weight of a loss differs from a count, for people."""
        return ""

    def with_labels(self, labels: Sequence[str]) -> Self:
        """The configuration with the class names that were found in the data, where it has none of its own."""
        return self

    def texts(self, record: Mapping[str, Any]) -> list[str]:
        """The texts of a record, which a tokenizer is trained on; only for objectives that read records."""
        raise NotImplementedError


@dataclass(frozen=True)
class Report:
    """What an evaluation says beyond the loss.

    Attributes:
        metrics: for instance ``accuracy``, in ``[0, 1]`` unless the name's definition is another.
        predictions: one JSON object an example, in the order of the data.
        labels: names of the classes, where there are classes.
        confusion: ``[true class, predicted class]``, examples counted; None where there are no classes.
        notes: how a metric was computed where its name does not say it, for instance the signature of sacrebleu.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    labels: Sequence[str] = ()
    confusion: np.ndarray | None = field(default=None)
    notes: dict[str, str] = field(default_factory=dict)


class Task:
    """An objective, bound to a tokenizer and a sequence length: all that training asks of one.

    Attributes:
        reports: whether an evaluation says more than a loss, by ``predict`` and ``report``.
        carried: what the objective hands from step to step, as it begins; None for most.
        labels: names of the classes, where there are classes.
        reference_column: column of the rows that holds values of ``reference``; None where there is no reference model.
        teacher: the model that this one learns from, None for most.
    """

    @property
    def reports(self) -> bool:
        """See above."""
        return type(self).report is not Task.report

    @property
    def carried(self) -> Any:
        """See above."""
        return None

    @property
    def labels(self) -> tuple[str, ...]:
        """See above."""
        return ()

    @property
    def reference_column(self) -> str | None:
        """See above."""
        return None

    @property
    def teacher(self) -> nn.Module | None:
        """See above."""
        return None

    def model(self, config: TransformerConfig) -> nn.Module:
        """The model to train: the body that a configuration describes, with the head of this objective."""
        raise NotImplementedError

    def rows(self, data: Any) -> Rows:
        """The rows of one split: ``data`` is a ``TokenCache`` (``reads: text``) or a list of records."""
        raise NotImplementedError

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """Model inputs and labels from rows of the data, in NumPy, batch in front; by default the rows as they are.

        Args:
            batch: what ``rows.take`` gave.
            generators: one a row; all that is drawn at random for a row comes from its generator, which is a function
                of (seed, epoch, example).
            rows: the table the rows are from, for objectives that need a further one.
        """
        return batch

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums of one batch; ``dropout_key`` None is evaluation. ``batch["example_ids"]`` numbers the examples."""
        raise NotImplementedError

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct] | None:
        """The arrays of a training batch, where the model makes them itself; else None."""
        return None

    def reference(self, model: nn.Module, params: Any, batch: Batch) -> jax.Array:
        """Values of the reference model for ``reference_column``, batch in front; jitted by the caller."""
        raise NotImplementedError

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """What the report needs of the model's outputs, batch in front; jitted by the caller."""
        raise NotImplementedError

    def report(self, data: Any, outputs: dict[str, np.ndarray]) -> Report:
        """Metrics and predictions.

        Args:
            data: the records of the rows, in their order.
            outputs: of ``predict``, joined over all rows of the split, padding rows cut off.
        """
        raise NotImplementedError


def apply(
    model: nn.Module, params: Any, inputs: Mapping[str, Any], dropout_key: jax.Array | None, method: str | None = None
) -> Any:
    """What the model makes of ``inputs``: with dropout if there is a key, else as in evaluation."""
    return model.apply(
        {"params": params},
        **inputs,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method=method,
    )


def chunked_cross_entropy(
    hidden: jax.Array, head: F.HeadWeights, labels: jax.Array, *, chunk_tokens: int, **options: float
) -> F.TokenLoss:
    """``functional.chunked_cross_entropy`` with ``chunk_tokens`` on each device the tokens are split over."""
    tokens = chunk_tokens * shards("batch") * shards("length")
    return F.chunked_cross_entropy(hidden, head, labels, chunk_tokens=tokens, **options)


def token_loss(
    model: nn.Module,
    params: Any,
    batch: Batch,
    dropout_key: jax.Array | None,
    *,
    chunk_tokens: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> LossSums:
    """Cross-entropy summed over the labels that are not -100, nats; all else in the batch is the model's input."""
    inputs = {name: array for name, array in batch.items() if name != "labels"}
    hidden, head = apply(model, params, inputs, dropout_key, "hidden_and_head")
    sums = chunked_cross_entropy(
        hidden, head, batch["labels"], label_smoothing=label_smoothing, z_loss=z_loss, chunk_tokens=chunk_tokens
    )
    metrics = {"loss": sums.cross_entropy}
    if label_smoothing or z_loss:
        metrics["objective"] = sums.total
    return LossSums(sums.total, sums.tokens, metrics)


__all__ = [
    "Batch",
    "LossSums",
    "Report",
    "Rows",
    "Task",
    "TaskSchema",
    "apply",
    "chunked_cross_entropy",
    "token_loss",
]
