"""The protocol of an objective: rows of the data, features of a batch, a loss as a sum and a weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxformer import functional as F
from jaxformer.data.token_rows import Rows
from jaxformer.families import build_model
from jaxformer.models.config import Architecture, TransformerConfig
from jaxformer.models.experts import PRICES, ROUTER, has_router_losses, sums_of
from jaxformer.models.partition import shards
from jaxformer.schema import Schema
from jaxformer.tokenizers import PreTrainedTokenizer, Role, special_id

Batch = dict[str, Any]  # NumPy or JAX arrays, batch axis first


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
    """Base class of the objectives' configurations: all that is known of an objective before any data is read.

    Attributes:
        architectures: model architectures that it can train.
        reads: ``text``, documents cut into rows of tokens; ``records``, rows of a table.
        special_tokens: tokens that the tokenizer must have; missing ones are added.
        frame_tokens: further ones for a tokenizer that puts nothing around a text by itself.
        sentinels: number of sentinel tokens that the tokenizer must have.
        unit: what a loss is a mean over.
        report_at_end: the report is slow, so that only the last evaluation makes one.
        scored: the report uses the packages of the extra ``metrics``.
        generates: the model learns from responses that it writes itself; rows of the data are prompts.
        labels_tokens: each token has a class.
        predicts_tokens: the loss is ``token_loss``, to which the losses of routers are added.
    """

    architectures: ClassVar[tuple[Architecture, ...]]
    reads: ClassVar[Literal["text", "records"]]
    special_tokens: ClassVar[tuple[Role, ...]] = ()
    frame_tokens: ClassVar[tuple[Role, ...]] = ()
    sentinels: ClassVar[int] = 0
    unit: ClassVar[str] = "tokens"
    report_at_end: ClassVar[bool] = False
    scored: ClassVar[bool] = True
    generates: ClassVar[bool] = False
    labels_tokens: ClassVar[bool] = False
    predicts_tokens: ClassVar[bool] = False

    @property
    def minibatch_count(self) -> int:
        """Parts of a batch with an optimizer update each."""
        return 1

    @property
    def updates(self) -> int:
        """Optimizer updates in a training step."""
        return 1

    @property
    def responses_per_prompt(self) -> int:
        """Rows of a batch for each row of the data."""
        return 1

    @property
    def teacher_source(self) -> str | None:
        """The teacher model: a run's folder, a folder or a name on the Hub."""
        return None

    def longest_target(self, sequence_length: int) -> int:
        """Longest target of a decoder beside an encoder, whose rows have ``sequence_length`` tokens."""
        return sequence_length

    def check_run(self, run: Any) -> None:
        """Raises ``ValueError`` if the configuration of a run does not suit the objective."""

    @property
    def languages(self) -> tuple[str | None, str | None] | None:
        """Codes of the languages of source and target, for tokenizers that write them; None without two such texts."""
        return None

    @property
    def dialogue_template(self) -> str | None:
        """The configured chat template."""
        return None

    @property
    def weighting(self) -> str:
        """Note for log lines where the weight of a loss is not a count."""
        return ""

    def with_labels(self, labels: Sequence[str]) -> Self:
        """The configuration with the class names found in the data, where it names none."""
        return self

    def texts(self, record: Mapping[str, Any]) -> list[str]:
        """The texts of a record, on which a tokenizer is trained; only for objectives that read records."""
        raise NotImplementedError


@dataclass(frozen=True)
class Report:
    """Results of an evaluation beside the loss.

    Attributes:
        metrics: for instance ``accuracy``, in ``[0, 1]`` unless the metric is defined otherwise.
        predictions: one JSON object per example, in the order of the data.
        labels: class names, where there are classes.
        confusion: example counts ``[true class, predicted class]``, or None.
        notes: how a metric was computed, for instance the signature of sacrebleu.
        reliability: ``confidence``, ``accuracy`` and ``count`` of bins of confidence, where there are probabilities.
        entities: for each kind of entity the numbers of correct ones and of each kind of error.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    labels: Sequence[str] = ()
    confusion: np.ndarray | None = None
    notes: dict[str, str] = field(default_factory=dict)
    reliability: dict[str, list[Any]] | None = None
    entities: dict[str, dict[str, int]] | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """An objective with all that it needs to know of a run; the full protocol that training uses.

    The defaults are those of a language model: rows are features, and the loss is the cross-entropy of ``labels``.

    Args:
        config: settings of the objective.
        tokenizer: has the objective's special tokens.
        sequence_length: longest row, tokens.
        architecture: of the model.
        start: special token that a decoder beside an encoder starts with: T5 the padding, BART the end.
        layout: how text is cut into rows.
        train_records: training data of objectives that read records.
    """

    config: Any
    tokenizer: PreTrainedTokenizer
    sequence_length: int
    architecture: Architecture = "decoder"
    start: Role = "pad"
    layout: Literal["packed", "stream"] = "packed"
    train_records: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    @property
    def reports(self) -> bool:
        """An evaluation has ``predict`` and ``report`` beside the loss."""
        return type(self).report is not Task.report

    @property
    def carried(self) -> Any:
        """Initial value of what the objective hands from step to step, None for most."""
        return None

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, where there are classes."""
        return ()

    @property
    def export_keys(self) -> dict[str, Any]:
        """Keys of ``config.json`` that tell pipelines how the model was evaluated."""
        return {}

    def generation(self, config: TransformerConfig) -> dict[str, Any]:
        """Settings of generation with which texts are written in an evaluation; none where none are written."""
        return config.generation_settings

    @property
    def reference_column(self) -> str | None:
        """Column of the rows with the values of ``reference``; None without a reference model."""
        return None

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher model, where there is one."""
        return None

    @property
    def joint(self) -> bool:
        """A row's loss depends on the other rows of the batch: the objective has ``vectors`` and ``loss_of``."""
        return False

    def vectors(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> jax.Array:
        """The vectors that ``loss_of`` compares, ``[B, ...]``, a function of each row alone."""
        raise NotImplementedError

    def loss_of(self, vectors: jax.Array, batch: Batch) -> LossSums:
        """Sums over the whole global batch, from the ``vectors`` of all its rows."""
        raise NotImplementedError

    @property
    def two_sided(self) -> bool:
        """The model has an encoder and a decoder."""
        return self.architecture == "encoder_decoder"

    @property
    def start_id(self) -> int:
        """Id of ``start``."""
        return special_id(self.tokenizer, self.start)

    def model(self, config: TransformerConfig) -> nn.Module:
        """The model to train: the backbone of a configuration with the head of this objective."""
        return build_model(config)

    def rows(self, data: Any) -> Rows:
        """The rows of one split: ``data`` is a ``TokenCache`` (``reads: text``) or a list of records."""
        raise NotImplementedError

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """Model inputs and labels, in NumPy, batch axis first, from a ``batch`` of ``rows.take``.

        Every random draw for a row comes from its generator, which is a function of (seed, epoch, example).
        """
        return batch

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over one batch; ``dropout_key`` None is evaluation. ``batch["example_ids"]`` numbers the examples."""
        return token_loss(model, params, batch, dropout_key, chunk_tokens=self.config.chunk_tokens)

    def label_losses(self, model: nn.Module, params: Any, batch: Batch) -> jax.Array | None:
        """Cross-entropy of each of the ``labels [B, M]``, nats, 0 at -100; None if the labels are not tokens.

        Jitted by the caller.
        """
        labels = batch.get("labels")
        if labels is None or labels.ndim != 2 or not hasattr(model, "hidden_and_head"):
            return None
        inputs = {name: array for name, array in batch.items() if name not in ("labels", "pair_labels")}
        hidden, head = apply(model, params, inputs, None, "hidden_and_head")
        size = global_chunk(self.config.chunk_tokens)
        return -F.chunked_token_log_probs(hidden, head, labels, chunk_tokens=size, of_logits=log_probs_of(model))

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct] | None:
        """Arrays of a training batch that the model itself generates, else None."""
        return None

    def reference(self, model: nn.Module, params: Any, batch: Batch) -> jax.Array:
        """Values of the reference model for ``reference_column``, batch axis first; jitted by the caller."""
        raise NotImplementedError

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """The model's outputs for the report, batch axis first; jitted by the caller."""
        raise NotImplementedError

    def report(self, data: Any, outputs: dict[str, np.ndarray]) -> Report:
        """Metrics and predictions from the records of a split and the ``outputs`` of ``predict`` for its rows."""
        raise NotImplementedError


def apply(
    model: nn.Module,
    params: Any,
    inputs: Mapping[str, Any],
    dropout_key: jax.Array | None,
    method: str | None = None,
    mutable: Any = False,
) -> Any:
    """The model's output for ``inputs``, with dropout if there is a key, and the collections that are ``mutable``."""
    return model.apply(
        {"params": params},
        **inputs,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method=method,
        mutable=mutable,
    )


def log_probs_of(model: nn.Module) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The log-probabilities of labels from logits, by the numerics of the model."""
    return F.exact_token_log_probs if model.config.exact else F.token_log_probs


def global_chunk(chunk_tokens: int) -> int:
    """``chunk_tokens`` per device as the tokens of a chunk over all devices that share the tokens of a batch."""
    return chunk_tokens * shards("batch") * shards("length")


def chunked_cross_entropy(
    hidden: jax.Array, head: F.HeadWeights, labels: jax.Array, *, chunk_tokens: int, **options: float
) -> F.TokenLoss:
    """``functional.chunked_cross_entropy`` with ``chunk_tokens`` on each device that has a part of the tokens."""
    return F.chunked_cross_entropy(hidden, head, labels, chunk_tokens=global_chunk(chunk_tokens), **options)


def router_sums(
    model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None
) -> tuple[F.RouterSums, jax.Array]:
    """The sums of a model's routers over a batch and the number of its labels, for ``router_prices``."""
    inputs = {name: array for name, array in batch.items() if name not in ("labels", PRICES)}
    _, sums = _with_router(model, params, inputs, dropout_key)
    return sums, _label_count(batch)


def router_prices(sums: F.RouterSums, labels: jax.Array) -> jax.Array:
    """``[E]``, what a token's probability of an expert adds to the objective's sum over a batch.

    The mean balance loss times the number of labels, by which that sum is divided.
    """
    return F.expert_prices(sums) * labels


def _label_count(batch: Batch) -> jax.Array:
    return jnp.sum(batch["labels"] != F.IGNORE, dtype=jnp.float32)


def _with_router(
    model: nn.Module, params: Any, inputs: Mapping[str, Any], dropout_key: jax.Array | None
) -> tuple[tuple[jax.Array, F.HeadWeights], F.RouterSums]:
    """``hidden_and_head``, and the sums of the routers."""
    output, state = apply(model, params, inputs, dropout_key, "hidden_and_head", mutable=ROUTER)
    return output, sums_of(state[ROUTER], model.config)


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
    """Cross-entropy summed over the labels that are not -100, nats; the rest of the batch is the model's input.

    With experts the losses of their routers are added: ``balance_loss`` is that of all tokens of the global batch,
    whose prices ``batch`` has where it is a part of one; ``router_z_loss`` is a sum over tokens, a mean over layers.
    """
    inputs = {name: array for name, array in batch.items() if name not in ("labels", PRICES)}
    routed = has_router_losses(model.config)
    if routed:
        (hidden, head), router = _with_router(model, params, inputs, dropout_key)
    else:
        hidden, head = apply(model, params, inputs, dropout_key, "hidden_and_head")
    sums = chunked_cross_entropy(
        hidden, head, batch["labels"], label_smoothing=label_smoothing, z_loss=z_loss, chunk_tokens=chunk_tokens
    )
    metrics, total = {"loss": sums.cross_entropy}, sums.total
    if routed:
        c = model.config
        prices = batch[PRICES][0] if PRICES in batch else router_prices(router, sums.tokens)
        metrics["balance_loss"] = jnp.sum(prices * router.probabilities)
        metrics["router_z_loss"] = router.squared_log_z / c.num_layers
        total = total + c.balance_loss * metrics["balance_loss"] + c.router_z_loss * metrics["router_z_loss"]
    if label_smoothing or z_loss or routed:
        metrics["objective"] = total
    return LossSums(total, sums.tokens, metrics)
