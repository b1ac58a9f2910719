"""Linear layers of heads: alone, and with activation and norm before an output layer."""

from typing import Any

import flax.linen as nn
import jax

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.layers import Norm, Projection, activate, kernel_deviation


class Dense(nn.Module):
    """A linear layer, ``[..., D]`` to ``[..., size]``."""

    config: TransformerConfig
    size: int
    axis: str | None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it."""
        width = x.shape[-1]
        std = kernel_deviation(self.config, width)
        nn.share_scope(
            self,
            projection := Projection(
                (width, self.size), ("embed", self.axis), self.use_bias, std, self.config.numerics
            ),
        )
        return F.linear(x, **projection())


class MLMHead(nn.Module):
    """Dense layer to the width of the embedding, activation, norm, and the bias of the output layer that follows."""

    config: TransformerConfig

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        self.dense = Dense(c, c.token_size, None, c.use_bias)
        self.norm = Norm(c)
        self.bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)), (c.vocabulary,))

    def states(self, hidden: jax.Array) -> jax.Array:
        """``[B, T, D]`` to the states ``[B, T, E]`` that the output layer reads."""
        c = self.config
        states: jax.Array = self.norm(activate(c, c.activation, self.dense(hidden)))
        return states

    def __call__(self, hidden: jax.Array) -> tuple[jax.Array, Any]:
        """States ``[B, T, E]`` and the bias ``[V]`` of the output layer."""
        return self.states(hidden), self.bias
