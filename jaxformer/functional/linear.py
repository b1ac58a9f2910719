"""A linear layer, ``x @ kernel + bias``. A kernel is an array, or a value that brings its own product."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.functional.random import dropout


@runtime_checkable
class Kernel(Protocol):
    """A kernel ``[*inputs, *outputs]`` that brings its own product."""

    def product(self, x: Array, inputs: int, dtype: Any) -> Array:
        """``x @ kernel`` over the last ``inputs`` axes of ``x``; ``dtype`` of the result, None: that of ``x``."""


def linear(
    x: Float[Array, "..."],
    kernel: Float[Array, "..."] | Kernel,
    bias: Float[Array, "..."] | None = None,
    *,
    inputs: int = 1,
    dtype: Any = None,
) -> Float[Array, "..."]:
    """``x @ kernel + bias``, contracting the last ``inputs`` axes of ``x`` with the first of ``kernel``.

    Computed in the dtype of ``x``.

    Args:
        x: ``[*batch, *inputs]``.
        kernel: ``[*inputs, *outputs]``, an array or a ``JoinedKernel``, ``LowRankKernel``, ``Quantized`` or ``Packed``.
        bias: ``[*outputs]``.
        inputs: number of input axes.
        dtype: of the result; default that of ``x``.

    Returns:
        ``[*batch, *outputs]``.

    >>> linear(jnp.ones((2, 3, 4)), jnp.ones((4, 5, 6))).shape
    (2, 3, 5, 6)
    """
    if isinstance(kernel, Kernel):
        y = kernel.product(x, inputs, dtype)
    else:
        # Two matrices: on a CPU XLA gives a product with several free axes another, slower loop.
        size = math.prod(kernel.shape[:inputs])
        matrix = kernel.astype(x.dtype).reshape(size, -1)
        y = jnp.matmul(x.reshape(*x.shape[: x.ndim - inputs], size), matrix, preferred_element_type=dtype)
        y = y.reshape(*x.shape[: x.ndim - inputs], *kernel.shape[inputs:])
    return y if bias is None else y + bias.astype(y.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class JoinedKernel:
    """A kernel whose product joins the axes of the tokens into one, for programs of one device.

    On a CPU a whole training step at 6 x 384 took 862 ms so and 1,069 ms with the axes apart. On several devices the
    axes stay: two axes of which the inner one is split cannot be joined without gathering it.
    """

    kernel: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """``[*inputs, *outputs]``."""
        return tuple(self.kernel.shape)

    @property
    def T(self) -> "JoinedKernel":  # noqa: N802 - as arrays call it
        """The transpose."""
        return JoinedKernel(self.kernel.T)

    def product(self, x: Array, inputs: int, dtype: Any) -> Array:
        """``x @ kernel``."""
        tokens = x.reshape(-1, *x.shape[x.ndim - inputs :])
        y = linear(tokens, self.kernel, inputs=inputs, dtype=dtype)
        return y.reshape(*x.shape[: x.ndim - inputs], *y.shape[1:])


@partial(jax.tree_util.register_dataclass, data_fields=["kernel", "a", "b", "keys"], meta_fields=["rate"])
@dataclass(frozen=True)
class LowRankKernel:
    """LoRA's ``W + A B`` as a kernel; the sum is never computed (Hu et al. 2022, "LoRA", eq. 3).

    Attributes:
        kernel: ``W [*inputs, *outputs]``.
        a: ``A [*inputs, rank]``.
        b: ``B [rank, *outputs]``, multiplied by the scale.
        keys: one key per example for the dropout of the input of ``A``, or None. Where an example has several rows (the
            two texts of a pair) they are adjacent, and each has dropout of its own.
        rate: of this dropout.
    """

    kernel: Any
    a: Any
    b: Any
    keys: Any = None
    rate: float = 0.0

    def product(self, x: Array, inputs: int, dtype: Any) -> Array:
        """``x W + dropout(x) A B`` for ``x [B, ..., *inputs]``."""
        keys = self.keys
        if keys is not None and (rows := len(x) // len(keys)) > 1:
            keys = jnp.ravel(jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, jnp.arange(rows)))
        inner = linear(dropout(x, self.rate, keys), self.a, inputs=inputs)
        return linear(x, self.kernel, inputs=inputs, dtype=dtype) + linear(inner, self.b, dtype=dtype)
