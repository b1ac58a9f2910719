"""Flax modules that declare parameters (shape, logical axes, initializer) and call the pure functions on them.

Logical axes: ``embed`` D, ``heads`` N, ``kv_heads`` K, ``head`` H, ``mlp`` F, ``vocab`` V, ``position``, ``layers`` L.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig

Weights = dict[str, Any]


class Projection(nn.Module):
    """Declares ``kernel`` and, if asked, ``bias`` of one linear map and returns them.

    Attributes:
        shape: of the kernel, inputs first.
        axes: logical axis names of the kernel.
        outputs: how many of the last axes are outputs; the bias has their shape.
        use_bias: whether there is a bias.
        standard_deviation: of the initial kernel.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    outputs: int
    use_bias: bool
    standard_deviation: float

    @nn.compact
    def __call__(self) -> Weights:
        """The weights, ``{"kernel": ..., "bias": ...}``."""
        normal = nn.initializers.normal(self.standard_deviation)
        weights = {"kernel": self.param("kernel", nn.with_logical_partitioning(normal, self.axes), self.shape)}
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[-self.outputs :])
            weights["bias"] = self.param("bias", zeros, self.shape[-self.outputs :])
        return weights


class Norm(nn.Module):
    """Layer norm or RMS norm, by the configuration."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        size = (x.shape[-1],)
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        scale = self.param("scale", ones, size)
        if self.config.norm == "rms_norm":
            return F.rms_norm(x, scale, epsilon=self.config.norm_epsilon)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        bias = self.param("bias", zeros, size) if self.config.use_bias else None
        return F.layer_norm(x, scale, bias, epsilon=self.config.norm_epsilon)


class Embedding(nn.Module):
    """Declares one embedding table ``[size, D]`` and returns it."""

    size: int
    width: int
    axes: tuple[str, str]
    standard_deviation: float

    @nn.compact
    def __call__(self) -> jax.Array:
        """The table."""
        normal = nn.with_logical_partitioning(nn.initializers.normal(self.standard_deviation), self.axes)
        return self.param("embedding", normal, (self.size, self.width))


class DropoutKeys(nn.Module):
    """One dropout key per example, from Flax's ``dropout`` stream and the example's number."""

    @nn.compact
    def __call__(self, rate: float, example_ids: jax.Array | None) -> jax.Array | None:
        """The keys, or None where nothing is dropped (``example_ids`` None is evaluation)."""
        if rate == 0.0 or example_ids is None:
            return None
        return F.example_keys(self.make_rng("dropout"), example_ids)


def residual_scale(config: TransformerConfig) -> float:
    """``1/sqrt(2L)``: kernels that write to the residual stream start smaller (Radford et al. 2019, section 2.3)."""
    return 1.0 / math.sqrt(2 * config.num_layers)


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads, rotary positions and a cache, by the configuration."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: F.Mask,
        rotary: F.Rotary | None,
        cache: F.KeyValue | None,
        example_ids: jax.Array | None,
    ) -> tuple[jax.Array, F.KeyValue | None]:
        """Attends within ``x`` and the cache."""
        c = self.config
        D, N, K, H = c.hidden_size, c.num_heads, c.kv_heads, c.head_width
        std = c.initializer_range
        weights = {
            "query": Projection((D, N, H), ("embed", "heads", "head"), 2, c.use_bias, std, name="query")(),
            "key": Projection((D, K, H), ("embed", "kv_heads", "head"), 2, c.use_bias, std, name="key")(),
            "value": Projection((D, K, H), ("embed", "kv_heads", "head"), 2, c.use_bias, std, name="value")(),
            "output": Projection(
                (N, H, D), ("heads", "head", "embed"), 1, c.use_bias, std * residual_scale(c), name="output"
            )(),
        }
        return F.multi_head_attention(
            x,
            weights,
            mask=mask,
            rotary=rotary,
            cache=cache,
            dropout_rate=c.attention_dropout,
            dropout_keys=DropoutKeys(name="attention_dropout")(c.attention_dropout, example_ids),
            implementation=c.attention_implementation,
        )


class FeedForward(nn.Module):
    """The feed-forward network, plain or gated, by the configuration."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to every token."""
        c = self.config
        D, inner, std = c.hidden_size, c.inner_size, c.initializer_range
        weights = {"up": Projection((D, inner), ("embed", "mlp"), 1, c.use_bias, std, name="up")()}
        if c.gated:
            weights["gate"] = Projection((D, inner), ("embed", "mlp"), 1, c.use_bias, std, name="gate")()
        weights["down"] = Projection(
            (inner, D), ("mlp", "embed"), 1, c.use_bias, std * residual_scale(c), name="down"
        )()
        return F.feed_forward(x, weights, activation=c.activation)


class Embeddings(nn.Module):
    """Token embedding plus learned or sinusoidal positions, with dropout; the token table also serves a tied head."""

    config: TransformerConfig

    def setup(self) -> None:
        """Declares the tables."""
        c = self.config
        self.token = Embedding(c.vocabulary, c.hidden_size, ("vocab", "embed"), c.initializer_range)
        if c.positions == "learned":
            self.position = Embedding(c.max_length, c.hidden_size, ("position", "embed"), c.initializer_range)
        self.dropout_keys = DropoutKeys()

    def __call__(
        self,
        input_ids: jax.Array,
        position_ids: jax.Array,
        real: jax.Array | None,
        example_ids: jax.Array | None,
    ) -> jax.Array:
        """Embeds the tokens; padding (``real`` False) becomes zeros, so that nothing in its row spreads."""
        c = self.config
        x = jnp.take(self.token(), input_ids, axis=0)
        if c.positions == "learned":
            x = x + F.learned_positions(self.position(), position_ids)
        elif c.positions == "sinusoidal":
            x = x + F.sinusoidal_positions(position_ids, c.hidden_size)
        if real is not None:
            x = jnp.where(real[..., None], x, 0.0)
        x = F.dropout(x, c.dropout, self.dropout_keys(c.dropout, example_ids))
        return x.astype(c.dtype)

    def head(self) -> F.HeadWeights:
        """The tied output layer."""
        return F.HeadWeights(self.token(), tied=True)
