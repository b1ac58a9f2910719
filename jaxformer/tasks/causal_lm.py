"""Causal language modelling: predict the next token of the same document."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.cache import TokenCache
from jaxformer.data.rows import make_rows
from jaxformer.families import build_model
from jaxformer.models.config import TransformerConfig
from jaxformer.tasks.base import Batch, LossSums, Rows, TaskSchema


class CausalLMConfig(TaskSchema):
    """Predict each token from those before it."""

    architectures = ("decoder",)
    reads = "text"

    type: Literal["causal_lm"] = Field("causal_lm", description="objective")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over the vocabulary")
    z_loss: float = Field(0.0, ge=0, description="weight of (log Z)^2, which keeps logits from drifting; PaLM: 1e-4")
    chunk_tokens: int = Field(2048, ge=1, description="tokens whose logits are in memory at once, per step")


@dataclass(frozen=True)
class CausalLM:
    """``-log p(token t+1 | tokens <= t)``, summed over the tokens whose successor is in their document."""

    config: CausalLMConfig
    sequence_length: int
    layout: Literal["packed", "stream"] = "packed"

    def model(self, config: TransformerConfig) -> nn.Module:
        """The decoder with its language-model head."""
        return build_model(config)

    def rows(self, data: TokenCache) -> Rows:
        """Rows of ``T + 1`` tokens; neighbours share one."""
        return make_rows(data, self.layout, self.sequence_length)

    def features(self, rows: Batch, generators: list[np.random.Generator]) -> Batch:
        """Rows of ``T + 1`` tokens to ``T`` inputs and the ``T`` labels one to the right of them.

        Where a row holds several documents (``segment_ids``), the last token of each has no label: the next
        document's first token does not follow from it.
        """
        tokens, segments = rows["tokens"], rows.get("segment_ids")
        batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:].copy()}
        if segments is not None:
            batch["segment_ids"] = segments[:, :-1]
            batch["position_ids"] = rows["position_ids"][:, :-1]
            batch["labels"][(segments[:, 1:] != segments[:, :-1]) | (segments[:, 1:] == 0)] = F.IGNORE
        elif "valid" in rows:
            # Padding stands behind all tokens of its row, so a causal model needs no mask against it.
            batch["labels"][~rows["valid"][:, 1:]] = F.IGNORE
        return batch

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over the labels that are not -100, nats."""
        inputs = {name: array for name, array in batch.items() if name != "labels"}
        hidden, head = model.apply(
            {"params": params},
            **inputs,
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            method="hidden_and_head",
        )
        c = self.config
        sums = F.chunked_cross_entropy(
            hidden,
            head,
            batch["labels"],
            label_smoothing=c.label_smoothing,
            z_loss=c.z_loss,
            chunk_tokens=c.chunk_tokens,
        )
        metrics = {"loss": sums.cross_entropy}
        if c.label_smoothing or c.z_loss:
            metrics["objective"] = sums.total
        return LossSums(sums.total, sums.tokens, metrics)
