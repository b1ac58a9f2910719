"""Embeddings: vectors of texts, close to each other where the texts belong together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field, model_validator

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.models.config import TransformerConfig
from jaxformer.models.sentence_encoder import DenseLayer, SentenceEncoder
from jaxformer.tasks import metrics
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task
from jaxformer.tasks.preferences import flat_inputs
from jaxformer.tasks.text_pairs import PairConfig, numbered, real_texts, shown_pairs
from jaxformer.tokenizers import encode_batch, frame_of, special_id


class EmbeddingConfig(PairConfig):
    """Learn vectors of texts from pairs that belong together, or from their similarities."""

    architectures = ("encoder", "decoder")

    type: Literal["embedding"] = Field("embedding", description="objective")
    loss: Literal["ranking", "cosine", "cosent"] | None = Field(
        None,
        description="ranking: tell the text that belongs to a query from all others of the batch; of labels cosine: "
        "squared error of the cosine, or cosent: their order; default: ranking, with labels cosine",
    )
    scale: float = Field(20.0, gt=0, description="factor of the cosines in ranking and cosent, 1 / temperature")
    symmetric: bool = Field(False, description="ranking: tell the query that belongs to a text from all others, too")
    pooling: Literal["mean", "first", "last"] = Field("mean", description="from the states of a text to its vector")
    dense_size: int | None = Field(
        None, ge=1, description="outputs of a dense layer on the pooled state; default: none"
    )
    dense_activation: Literal["tanh", "relu", "gelu", "silu"] | None = Field(
        "tanh", description="activation of the dense layer; null: none"
    )
    normalize: bool = Field(True, description="scale the vectors to length 1")
    matryoshka: list[int] = Field(
        [], description="numbers of a vector's first entries that are trained as vectors themselves, beside all of it"
    )
    query_prompt: str = Field("", description="prefix of queries, for instance 'query: '")
    document_prompt: str = Field("", description="prefix of the other texts")

    @property
    def trained_loss(self) -> str:
        """The loss, resolved."""
        return self.loss or ("ranking" if self.label_column is None else "cosine")

    @model_validator(mode="after")
    def _loss_fits(self) -> "EmbeddingConfig":
        if (self.trained_loss == "ranking") != (self.label_column is None):
            fix = "leave label_column out" if self.label_column else "set label_column"
            raise ValueError(
                f"loss is {self.loss} and label_column {self.label_column}, expected ranking without labels "
                f"and cosine or cosent with them; {fix}, or leave loss out"
            )
        if self.symmetric and self.trained_loss != "ranking":
            raise ValueError(f"symmetric is true and loss {self.trained_loss}, expected ranking; leave symmetric out")
        return self

    def check_run(self, run: Any) -> None:
        """Refuses sizes that a vector does not have, and exact numerics of losses over the whole batch."""
        width = self.dense_size or run.model.hidden_size
        wrong = [size for size in self.matryoshka if not 0 < size < width]
        if wrong:
            raise ValueError(
                f"task.matryoshka has {wrong[0]}, expected sizes from 1 to {width - 1}, below the vector's"
            )
        if run.model.exact:
            raise ValueError("model.numerics is exact and task.type embedding, expected fast; leave numerics out")


@dataclass(frozen=True, eq=False)
class Embedding(Task):
    """Cross-entropy of the text that belongs to a query among all of the global batch, or a loss of similarities.

    Inputs are ``[B, n, T]``: query, positive, negatives. A text that is the same as a query or its positive, or belongs
    to the same query in another row, is no negative of it. The model's output has ``embedding [B n, E]``; with
    ``matryoshka`` the losses of its first entries are added (Kusupati et al. 2022, "Matryoshka Representation
    Learning", section 3).
    """

    config: EmbeddingConfig

    def __post_init__(self) -> None:
        R.check_length(self, 1)

    @property
    def joint(self) -> bool:
        """Texts are compared with all others of the batch, or similarities with each other."""
        return self.config.trained_loss != "cosine"

    def model(self, config: TransformerConfig) -> nn.Module:
        """The backbone with pooling and what follows it."""
        c = self.config
        dense = () if c.dense_size is None else (DenseLayer(c.dense_size, c.dense_activation),)
        prompts = (("query", c.query_prompt), ("document", c.document_prompt))
        named = prompts if c.query_prompt or c.document_prompt else ()
        return SentenceEncoder(config, c.pooling, dense, c.normalize, named, longest=self.sequence_length)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row a record."""
        c, frame = self.config, frame_of(self.tokenizer)
        fill: dict[str, int | float] = {"input_ids": special_id(self.tokenizer, "pad")}

        def read(record: R.Record) -> tuple[list[str], float]:
            first, *others = c.texts(record)
            texts = [c.query_prompt + first, *(c.document_prompt + text for text in others)]
            R.require_tokens(self, frame, *([text] for text in texts))
            return texts, 0.0 if c.label_column is None else c.target_of(record)

        usable, tally = R.read_answers(data, read, c.bad_rows)
        ids = iter(encode_batch(self.tokenizer, [text for _, (texts, _) in usable for text in texts]))
        numbers = numbered([c.texts(record) for record, _ in usable])  # a prompt makes no other text
        examples: list[Example] = []
        for (_, (texts, label)), number in zip(usable, numbers, strict=True):
            inputs = [
                {"input_ids": np.array(frame.join(next(ids), None, self.sequence_length).ids, np.int32)} for _ in texts
            ]
            examples.append({**R.stack_rows(inputs, fill), "text_numbers": number, "labels": label})
        fill |= {"text_numbers": -1, "labels": 0.0}
        rows = ExampleRows(examples, self.sequence_length, fill, stacked=["text_numbers"])
        return R.answered_rows(rows, usable, tally)

    def vectors(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> jax.Array:
        """``[B, n, E]`` float32, zeros for texts that are not there."""
        found = R.apply(model, params, flat_inputs(batch), dropout_key).embedding
        real = real_texts(batch)
        return jnp.where(real[..., None], found.reshape(*real.shape, -1), 0.0)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over the examples of the batch."""
        return self.loss_of(self.vectors(model, params, batch, dropout_key), batch)

    def loss_of(self, vectors: jax.Array, batch: Batch) -> LossSums:
        """Sums over the rows; the loss of a whole batch counts once for each row."""
        losses: dict[str, Callable[[jax.Array, Batch], tuple[jax.Array, dict[str, jax.Array]]]] = {
            "ranking": self._ranking,
            "cosine": self._cosine,
            "cosent": self._cosent,
        }
        loss = losses[self.config.trained_loss]
        total, values = loss(vectors, batch)
        found = {"loss": total, **values}
        for size in self.config.matryoshka:
            total = total + loss(vectors[..., :size], batch)[0]
        if self.config.matryoshka:
            found["objective"] = total
        return LossSums(total, jnp.sum(real_texts(batch)[:, 0], dtype=jnp.float32), found)

    def _ranking(self, vectors: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        B, n, E = vectors.shape
        real, numbers = real_texts(batch), jnp.asarray(batch["text_numbers"])
        queries, positives = numbers[:, 0], numbers[:, 1]
        # Candidates are the texts behind the query, row after row; each row's first is its positive.
        row, place = jnp.divmod(jnp.arange(B * (n - 1)), n - 1)
        candidates = numbers[:, 1:].ravel()
        own = (row == jnp.arange(B)[:, None]) & (place == 0)
        same = (candidates == queries[:, None]) | (candidates == positives[:, None])
        same |= (queries[row] == queries[:, None]) & (place == 0)
        allowed = real[:, 1:].ravel() & real[:, :1] & (own | ~same)
        labels = jnp.where(real[:, 0], jnp.arange(B) * (n - 1), F.IGNORE)
        scores = F.contrastive_scores(vectors[:, 0], vectors[:, 1:].reshape(-1, E), allowed, scale=self.config.scale)
        total = F.cross_entropy(scores, labels).total
        if self.config.symmetric:
            own = jnp.eye(B, dtype=bool)
            same = (queries == queries[:, None]) | (queries == positives[:, None]) | (positives == positives[:, None])
            allowed = real[:, 0] & real[:, :1] & (own | ~same)
            back = F.contrastive_scores(vectors[:, 1], vectors[:, 0], allowed, scale=self.config.scale)
            total = (total + F.cross_entropy(back, jnp.where(real[:, 0], jnp.arange(B), F.IGNORE)).total) / 2
        return total, {"accuracy": jnp.sum(jnp.argmax(scores, axis=-1) == labels, dtype=jnp.float32)}

    def _cosine(self, vectors: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        found, weights = F.cosines(vectors[:, 0], vectors[:, 1]), real_texts(batch)[:, 0].astype(jnp.float32)
        return F.squared_error(found, jnp.asarray(batch["labels"]), weights).total, {}

    def _cosent(self, vectors: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        found, weights = F.cosines(vectors[:, 0], vectors[:, 1]), real_texts(batch)[:, 0].astype(jnp.float32)
        loss = F.cosent_loss(found, jnp.asarray(batch["labels"]), weights, scale=self.config.scale)
        return loss * jnp.sum(weights), {}

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``cosines [B, sizes]`` of labelled pairs, for each trained size; else ``vectors [B, 2, E]``."""
        vectors = self.vectors(model, params, batch, None)[:, :2]
        if self.config.label_column is None:
            return {"vectors": vectors}
        each = [F.cosines(vectors[:, 0, :size], vectors[:, 1, :size]) for size in self._sizes.values()]
        return {"cosines": jnp.stack(each, axis=-1)}

    @cached_property
    def _sizes(self) -> dict[str, int | None]:
        """Trained sizes of a vector by the ends of their metrics' names."""
        return {"": None, **{f"_{size}": size for size in self.config.matryoshka}}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """Correlations of cosines and labels; or how well each query finds its text among all of the split."""
        c, shown = self.config, shown_pairs(self.config, data)
        found: dict[str, float] = {}
        if c.label_column is not None:
            targets = np.array([c.target_of(record) for record in data])
            for number, end in enumerate(self._sizes):
                values = metrics.regression(targets, outputs["cosines"][:, number])
                found |= {name + end: values[name] for name in ("spearman", "pearson")}
            pairs = zip(shown, R.rounded(targets), R.rounded(outputs["cosines"][:, 0]), strict=True)
            return Report(found, [texts | {"label": label, "cosine": cosine} for texts, label, cosine in pairs])
        numbers = numbered([c.texts(record)[:2] for record in data])
        ranks: dict[str, np.ndarray] = {}
        for end, size in self._sizes.items():
            queries, documents = outputs["vectors"][:, 0, :size], outputs["vectors"][:, 1, :size]
            ranks[end] = metrics.ranks(queries, documents, numbers)
            found |= {name + end: value for name, value in metrics.retrieval(ranks[end]).items()}
        return Report(found, [texts | {"rank": rank} for texts, rank in zip(shown, ranks[""].tolist(), strict=True)])
