"""Causal language modelling: predict the next token of a document."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.token_cache import TokenCache
from jaxformer.data.token_rows import make_rows
from jaxformer.tasks.base import Batch, LossSums, Rows, Task, TaskSchema, token_loss


class CausalLMConfig(TaskSchema):
    """Predict each token from those before it."""

    architectures = ("decoder",)
    predicts_tokens = True
    reads = "text"

    type: Literal["causal_lm"] = Field("causal_lm", description="objective")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread evenly over the vocabulary")
    z_loss: float = Field(0.0, ge=0, description="weight of (log Z)^2, which keeps logits from drifting; PaLM: 1e-4")
    chunk_tokens: int = Field(2048, ge=1, description="tokens per device whose logits are in memory at once")


@dataclass(frozen=True, eq=False)
class CausalLM(Task):
    """``-log p(token t+1 | tokens <= t)``, summed over the tokens with a successor in the same document."""

    config: CausalLMConfig

    def rows(self, data: TokenCache) -> Rows:
        """Rows of ``T + 1`` tokens; neighbours share one token."""
        return make_rows(data, self.layout, self.sequence_length)

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """``T`` inputs, and as labels the ``T`` tokens shifted left by one; the last token of a document has none."""
        tokens, segments = batch["tokens"], batch.get("segment_ids")
        features = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:].copy()}
        if segments is not None:
            features["segment_ids"] = segments[:, :-1]
            features["position_ids"] = batch["position_ids"][:, :-1]
            features["labels"][(segments[:, 1:] != segments[:, :-1]) | (segments[:, 1:] == 0)] = F.IGNORE
        elif "valid" in batch:
            # Padding comes after all tokens of its row, so a causal model needs no mask against it.
            features["labels"][~batch["valid"][:, 1:]] = F.IGNORE
        return features

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over the labels that are not -100, nats."""
        options = self.config.model_dump(include={"chunk_tokens", "label_smoothing", "z_loss"})
        return token_loss(model, params, batch, dropout_key, **options)
