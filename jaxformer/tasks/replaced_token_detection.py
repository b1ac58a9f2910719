"""Replaced token detection (ELECTRA): a small generator fills masked tokens, the model detects the wrong ones."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.piece_rows import PieceRows
from jaxformer.data.token_cache import TokenCache
from jaxformer.models.config import TransformerConfig
from jaxformer.models.masked_lm import Discriminator
from jaxformer.tasks.base import Batch, LossSums, Rows, Task, apply, chunked_cross_entropy
from jaxformer.tasks.masked_lm import Masking, MaskingConfig, join, make_masking, masked_features
from jaxformer.tasks.packing import pieces_of
from jaxformer.tokenizers import find_special


class ReplacedTokenDetectionConfig(MaskingConfig):
    """Detect the tokens replaced by a generator."""

    architectures = ("encoder",)
    special_tokens: ClassVar = ("pad", "cls", "sep", "mask")

    type: Literal["replaced_token_detection"] = Field("replaced_token_detection", description="objective")
    generator_size: float = Field(0.25, gt=0, le=1, description="width of the generator relative to the model")
    embedding_sharing: Literal["shared", "disentangled"] = Field(
        "shared",
        description="token table of both models; disentangled: the generator's, to which the discriminator adds one of "
        "its own, DeBERTa v3",
    )
    discriminator_weight: float = Field(
        50.0, gt=0, description="weight of the detection loss; the generator's loss has weight 1"
    )


def generator_config(config: TransformerConfig, share: float) -> TransformerConfig:
    """The generator's configuration: depth and token embedding of the model, ``share`` of its width and heads.

    Clark et al. 2020, section 3.2: a quarter to a half of the width works best.
    """
    heads = max(1, round(config.num_heads * share))
    width = heads * config.head_width
    return config.model_copy(
        update={
            "hidden_size": width,
            "num_heads": heads,
            "num_kv_heads": None,
            "intermediate_size": max(1, round(config.inner_size * width / config.hidden_size)),
            "embedding_size": config.token_size if config.token_size != width else None,
        }
    )


def sample_replacements(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """Draws a token for each position from ``softmax(logits)``, ``[B, M, V]`` to ``[B, M]``; one key per example.

    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> sample_replacements(jnp.array([[[0.0, 90.0], [90.0, 0.0]]]), keys)
    Array([[1, 0]], dtype=int32)
    """
    return jax.vmap(lambda key, rows: jax.random.categorical(key, rows))(keys, logits)


@dataclass(frozen=True, eq=False)
class ReplacedTokenDetection(Task):
    """``L_generator + weight * L_discriminator``, both as means (Clark et al. 2020, section 2).

    ``L_generator`` is the cross-entropy of the masked tokens, ``L_discriminator`` the binary cross-entropy of "was this
    token replaced" over all real tokens. No gradient flows through the sampled tokens. A sampled token that equals the
    true one counts as not replaced.
    """

    config: ReplacedTokenDetectionConfig

    @cached_property
    def masking(self) -> Masking:
        """Settings of ``mask_tokens``."""
        return make_masking(self.config, self.tokenizer, 1.0, 0.0)

    def model(self, config: TransformerConfig) -> nn.Module:
        """Discriminator and generator."""
        c = self.config
        return Discriminator(config, generator_config(config, c.generator_size), c.embedding_sharing == "disentangled")

    def rows(self, data: TokenCache) -> PieceRows:
        """As for masked language modelling."""
        return PieceRows(data, lambda n: (n + 2,), (self.sequence_length,), find_special(self.tokenizer, "eos"))

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """As for masked language modelling; every masked token is the mask token."""
        rows_of_pieces = [[[piece] for piece in pieces] for pieces in pieces_of(batch)]
        texts = [join(pieces, self.tokenizer, self.sequence_length) for pieces in rows_of_pieces]
        return masked_features(texts, self.masking, generators)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Both losses summed over the batch, nats; the weight is the number of real tokens.

        The generator's sum is divided by the masking rate, so that dividing by all real tokens makes it a mean over the
        masked ones. Special tokens, which are never masked, lower that mean by their share.
        """
        c, labels = self.config, batch["labels"]
        inputs = {name: array for name, array in batch.items() if name != "labels"}
        hidden, head = apply(model, params, inputs, dropout_key, "generator_hidden_and_head")
        generator = chunked_cross_entropy(hidden, head, labels, chunk_tokens=c.chunk_tokens)

        # Sampling has no gradient, so none flows back to the generator.
        replaced, is_replaced = self._replace(batch, F.head_logits(hidden, head), dropout_key)
        kept: Batch = {name: inputs[name] for name in ("segment_ids", "example_ids") if name in inputs}
        logits = apply(model, params, {**kept, "input_ids": replaced}, dropout_key).logits
        real = batch["segment_ids"] > 0
        detection, tokens = F.binary_cross_entropy(logits, jnp.where(real, is_replaced, F.IGNORE))
        metrics = {"generator_loss": generator.total / c.rate, "detection_loss": detection}
        objective = metrics["generator_loss"] + c.discriminator_weight * detection
        right = (((logits > 0) == is_replaced) & real).sum(dtype=jnp.float32)
        return LossSums(objective, tokens, {"loss": objective, **metrics, "detection_accuracy": right})

    def _replace(self, batch: Batch, logits: jax.Array, dropout_key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """The text with the generator's tokens at the masked positions, and where they differ from the true ones."""
        labels, positions = batch["labels"], batch["masked_positions"]
        # An evaluation draws the same tokens every time.
        key = F.purpose_key(0, "replace") if dropout_key is None else jax.random.fold_in(dropout_key, 1)
        examples = batch["example_ids"] if "example_ids" in batch else jnp.arange(len(labels))
        sampled = sample_replacements(logits, F.example_keys(key, examples))
        trained = labels != F.IGNORE
        rows = jnp.arange(len(labels))[:, None]
        # Positions of padding are sent past the end of the row, where a write is dropped.
        places = jnp.where(trained, positions, batch["input_ids"].shape[1])
        replaced = batch["input_ids"].at[rows, places].set(sampled, mode="drop")
        is_replaced = jnp.zeros(replaced.shape, bool).at[rows, places].set(sampled != labels, mode="drop")
        return replaced, is_replaced
