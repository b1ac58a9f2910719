"""Kernels laid out for decoding, where a few tokens at a time meet all weights: outputs first, one matrix, maybe int8.

With few tokens a product takes as long as reading the weights, and their layout decides how fast they are read.
"""

import functools
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.functional.decoding.int8 import Quantized, quantize, two_digit_product

# Up to so many rows a CPU multiplies int8 weights as whole numbers and bfloat16 ones as such. Converted to float32 in a
# loop over tokens they would be converted once before it, and take the memory that they were to save.
FEW_ROWS = 8


@functools.cache
def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True if this machine's CPU has instructions for products of bfloat16 numbers, as Linux says."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", text) is not None


def two_part_product(x: Float[Array, "M I"], matrix: Float[Array, "O I"]) -> Float[Array, "M O"]:
    """``x @ matrix.T`` of a matrix in bfloat16, with ``x`` as a sum of two bfloat16 numbers, and sums in float32.

    ``x = a + b`` with ``a`` rounded to 8 bits and ``b`` the rest, rounded likewise: a relative error of at most 2^-16.
    On a CPU with AVX512-BF16 the product of 8 rows took 11.8 ms where float32 took 19.1, for 24 matrices of
    768 x 3,072, and 8.0 ms where it took 9.4 for one row; two cores.
    """
    high = x.astype(jnp.bfloat16)
    rest = [] if x.dtype == jnp.bfloat16 else [(x - high.astype(x.dtype)).astype(jnp.bfloat16)]
    parts = jnp.concatenate([high, *rest])
    sums = jax.lax.dot_general(parts, matrix, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return functools.reduce(jnp.add, jnp.split(sums, 1 + len(rest)))


@partial(jax.tree_util.register_dataclass, data_fields=["matrix"], meta_fields=["outputs", "platform"])
@dataclass(frozen=True)
class Packed:
    """A kernel ``[*inputs, *outputs]`` as a matrix ``[O, I]``.

    Attributes:
        matrix: ``[O, I]`` floating point, or ``Quantized`` with a scale for each output.
        outputs: shape of the outputs, of size ``O``.
        platform: what its products are compiled for; on a ``cpu`` they are written differently.
    """

    matrix: Any
    outputs: tuple[int, ...]
    platform: str

    def product(self, x: Array, inputs: int, dtype: Any) -> Array:
        """``x @ kernel``.

        The matrix stands on the left and the tokens on the right: on two CPU cores, 24 products of 768 x 3,072 took
        9.5 ms for 8 tokens in this order and 12.9 the other way round, 8.4 against 11.7 ms for 2.
        """
        batch, out = x.shape[: x.ndim - inputs], dtype or x.dtype
        tokens = x.reshape(-1, math.prod(x.shape[x.ndim - inputs :]))
        matrix, scale, count = self.matrix, None, len(tokens)
        on_cpu = self.platform == "cpu"
        if isinstance(matrix, Quantized):
            # A large matrix in float32 would not fit the caches on its way to the product.
            few = FEW_ROWS if matrix.values.size <= 2**24 else 2 * FEW_ROWS
            if on_cpu and count <= few:
                y = two_digit_product(tokens, matrix.values) * matrix.scale[:, 0]
                return y.astype(out).reshape(*batch, *self.outputs)
            matrix, scale = matrix.values, matrix.scale[:, 0]
        elif on_cpu and count <= FEW_ROWS and matrix.dtype == jnp.bfloat16 and multiplies_bfloat16():
            return two_part_product(tokens, matrix).astype(out).reshape(*batch, *self.outputs)
        if on_cpu and count == 1 and matrix.dtype != jnp.float32:
            # XLA has no fast product of one row with a matrix it must convert: 78 ms where two rows take 9.
            tokens = jnp.pad(tokens, ((0, 1), (0, 0)))
        y = jax.lax.dot_general(
            matrix.astype(x.dtype), tokens, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        # Without the barrier XLA would turn the transposed product round, to tokens on the left.
        y = jax.lax.optimization_barrier(y).T[:count] if on_cpu else y.T
        if scale is not None:
            y = y * scale
        return y.astype(out).reshape(*batch, *self.outputs)


def pack(kernel: Float[Array, "..."], outputs: int, weights: str | None = None, *, platform: str = "cpu") -> Packed:
    """Lays a kernel out for decoding.

    Args:
        kernel: ``[*inputs, *outputs]``.
        outputs: number of output axes, the last ones.
        weights: ``float32``, ``bfloat16``, or ``int8`` with one scale for each output (weight-only quantization);
            default: unchanged.
        platform: what its products are compiled for.

    Raises:
        ValueError: if ``weights`` is none of these.

    >>> pack(jnp.ones((4, 2, 3)), 2).matrix.shape
    (6, 4)
    """
    shape = kernel.shape[kernel.ndim - outputs :]
    matrix = kernel.reshape(-1, math.prod(shape)).T
    return Packed(_as(matrix, weights), shape, platform)


def pack_table(table: Float[Array, "V D"], weights: str | None = None, *, platform: str = "cpu") -> Packed:
    """Lays out an embedding table, whose rows are the outputs of a tied head; it has this layout already."""
    return Packed(_as(table, weights), (table.shape[0],), platform)


def _as(matrix: Array, weights: str | None) -> Any:
    if weights is None:
        return matrix
    if weights == "int8":
        return quantize(matrix)
    if weights not in ("float32", "bfloat16"):
        raise ValueError(f"weights is {weights!r}, expected float32, bfloat16 or int8")
    return matrix.astype(weights)


def take_rows(table: Any, ids: Int[Array, "*tokens"]) -> Float[Array, "*tokens D"]:
    """Rows of an embedding table, an array or packed."""
    if not isinstance(table, Packed):
        return jnp.take(table, ids, axis=0)
    rows = jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0), table.matrix)
    return rows.astype(jnp.float32) if isinstance(rows, Quantized) else rows
