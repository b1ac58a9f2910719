"""Causal language modelling: predict the next token of the same document."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.schema import Schema
from jaxformer.tasks.base import Batch, LossSums


class CausalLMConfig(Schema):
    """Predict each token from those before it."""

    type: Literal["causal_lm"] = Field("causal_lm", description="objective")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over the vocabulary")
    z_loss: float = Field(0.0, ge=0, description="weight of (log Z)^2, which keeps logits from drifting; PaLM: 1e-4")
    chunk_tokens: int = Field(2048, ge=1, description="tokens whose logits are in memory at once, per step")


@dataclass(frozen=True)
class CausalLM:
    """``-log p(token t+1 | tokens <= t)``, summed over the tokens whose successor is in their document."""

    config: CausalLMConfig

    def features(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
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
