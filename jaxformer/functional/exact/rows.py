"""Norms, activations, products and log-probabilities whose bits for a row depend on the row alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.functional.exact.seal import TILE, by_rows, sealed
from jaxformer.functional.log_probs import token_log_probs
from jaxformer.functional.norm import layer_norm, rms_norm
from jaxformer.functional.positions import Rotary, apply_rotary
from jaxformer.functional.sampling import shape_logits

# Narrower matrices are filled up: with few columns XLA takes another loop, whose sums depend on the number of rows.
_NARROW = 512


def _product(args: Any, _: Any) -> Array:
    (x,), (matrix,) = args
    outputs = matrix.shape[1]
    if outputs < _NARROW and outputs % TILE:
        matrix = jnp.pad(matrix, ((0, 0), (0, -outputs % TILE)))
    return jnp.matmul(x, matrix)[:, :outputs]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExactKernel:
    """A kernel whose product gives a token the same bits whatever other tokens there are.

    Attributes:
        kernel: ``[*inputs, *outputs]`` float32.
    """

    kernel: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """``[*inputs, *outputs]``."""
        return tuple(self.kernel.shape)

    @property
    def T(self) -> "ExactKernel":  # noqa: N802 - as arrays call it
        """The transpose."""
        return ExactKernel(self.kernel.T)

    def product(self, x: Array, inputs: int, dtype: Any) -> Array:
        """``x @ kernel``; everything is float32, whatever ``dtype`` says."""
        lead, size = x.shape[: x.ndim - inputs], math.prod(self.shape[:inputs])
        matrix = self.kernel.astype(x.dtype).reshape(size, -1)
        y = by_rows(_product, lead, (x.reshape(*lead, size),), (matrix,), tiles=False)
        return y.reshape(*lead, *self.shape[inputs:])


def _layer_norm(args: Any, _: Any, *, epsilon: float) -> Array:
    (x,), (scale, bias) = args
    return layer_norm(x, scale, bias, epsilon=epsilon)


def _rms_norm(args: Any, _: Any, *, epsilon: float) -> Array:
    (x,), (scale,) = args
    return rms_norm(x, scale, epsilon=epsilon)


def exact_layer_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, " D"], bias: Float[Array, " D"] | None, *, epsilon: float
) -> Float[Array, "*batch D"]:
    """``layer_norm``, 64 rows at a time."""
    return by_rows(partial(_layer_norm, epsilon=epsilon), x.shape[:-1], (x,), (scale, bias))


def exact_rms_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, " D"], *, epsilon: float
) -> Float[Array, "*batch D"]:
    """``rms_norm``, 64 rows at a time."""
    return by_rows(partial(_rms_norm, epsilon=epsilon), x.shape[:-1], (x,), (scale,))


def exact_rotary(x: Float[Array, "B T N H"], rotary: Rotary) -> Float[Array, "B T N H"]:
    """``apply_rotary`` as a program of its own."""
    return sealed(apply_rotary, x, rotary)


def exact_elementwise(function: Callable[..., Array], *inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """``function(*inputs)`` of arrays of one shape, entry by entry, as a program of its own.

    The arrays are flat in it: over operands of several shapes XLA's loop is not always vectorised, and an exponential
    outside of vectors is rounded differently.
    """
    shape = inputs[0].shape
    flat = [x.reshape(-1, shape[-1]) for x in inputs]
    return sealed(lambda args, _: function(*args), flat).reshape(shape)


def _shaped(args: Any, _: Any, *, top_k: int | None) -> Array:
    (logits,), options = args
    return shape_logits(logits, top_k=top_k, **options)


def exact_shape_logits(logits: Float[Array, "B V"], *, top_k: int | None = None, **options: Any) -> Float[Array, "B V"]:
    """``shape_logits``, 64 rows at a time."""
    return by_rows(partial(_shaped, top_k=top_k), logits.shape[:1], (logits,), options)


def _log_probs(args: Any, facts: Any) -> Array:
    return token_log_probs(args[0][0], facts[0][0])


def exact_token_log_probs(logits: Float[Array, "*tokens V"], labels: Int[Array, "*tokens"]) -> Float[Array, "*tokens"]:
    """``token_log_probs``, 64 tokens at a time."""
    return by_rows(_log_probs, labels.shape, (logits,), (), (labels,))


def _log_softmax(args: Any, _: Any) -> Array:
    return jax.nn.log_softmax(args[0][0], axis=-1)


def exact_log_softmax(logits: Float[Array, "*tokens V"]) -> Float[Array, "*tokens V"]:
    """``log_softmax`` over the last axis, 64 tokens at a time."""
    return by_rows(_log_softmax, logits.shape[:-1], (logits,))
