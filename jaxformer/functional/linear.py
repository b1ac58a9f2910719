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
        kernel: ``[*inputs, *outputs]``, an array, or a ``JoinedKernel``, ``RoundedKernel``, ``LowRankKernel``,
            ``Quantized``, ``IntegerKernel`` or ``Packed``.
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


@jax.custom_vjp
def rounded_product(x: Float[Array, "*batch I"], matrix: Float[Array, "I O"]) -> Float[Array, "*batch O"]:
    """``x @ matrix`` of both rounded to bfloat16, with sums and result in float32; so is the gradient of ``x``.

    This is what a TPU computes of float32 arrays by default. A CPU with AVX512-BF16 or AMX multiplies such numbers
    faster (benchmarks/pipeline.py); not where rows are summed over, so the matrix's gradient is of what was not
    rounded. The relative error of a product of two numbers is at most 2^-7, and sums have less.
    """
    return _of_rounded(x, matrix)


def _of_rounded(x: Array, matrix: Array) -> Array:
    return jnp.matmul(x.astype(jnp.bfloat16), matrix.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _rounded_forward(x: Array, matrix: Array) -> tuple[Array, Any]:
    return _of_rounded(x, matrix), (x, matrix)


def _rounded_backward(kept: Any, gradient: Array) -> tuple[Array, Array]:
    x, matrix = kept
    rows = tuple(range(x.ndim - 1))
    to_matrix = jnp.tensordot(x, gradient, (rows, rows)).astype(matrix.dtype)
    return _of_rounded(gradient, matrix.T).astype(x.dtype), to_matrix


rounded_product.defvjp(_rounded_forward, _rounded_backward)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RoundedKernel:
    """A kernel ``[*inputs, *outputs]`` with which activations are multiplied by ``rounded_product``."""

    kernel: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """``[*inputs, *outputs]``."""
        return tuple(self.kernel.shape)

    @property
    def T(self) -> "RoundedKernel":  # noqa: N802 - as arrays call it
        """The transpose."""
        return RoundedKernel(self.kernel.T)

    def product(self, x: Array, inputs: int, dtype: Any) -> Array:
        """``x @ kernel``."""
        size, batch = math.prod(self.shape[:inputs]), x.shape[: x.ndim - inputs]
        y = rounded_product(x.reshape(*batch, size), self.kernel.reshape(size, -1))
        return y.astype(dtype or x.dtype).reshape(*batch, *self.shape[inputs:])


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
