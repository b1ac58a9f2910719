"""The product of tokens with a kernel, written so that XLA meets a plain product of two matrices."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.functional.int8 import Quantized, quantized_product
from jaxformer.functional.packed import Packed, packed_product


def matrix_product(
    x: Float[Array, "..."], kernel: Float[Array, "..."] | Packed | Quantized, *, contract: int = 1, dtype: Any = None
) -> Float[Array, "..."]:
    """``x`` times ``kernel`` over the last ``contract`` axes of ``x`` and the first of ``kernel``.

    The same numbers as ``jnp.tensordot(x, kernel, contract)``, in the dtype of ``x``. All other axes of each are joined
    into one for the product and parted again: on a CPU XLA gives a product with several free axes another, slower loop
    (a whole training step at 6 x 384 took 862 ms so and 1,069 ms with ``einsum``, side by side). On a mesh of several
    devices the axes of ``x`` stay as they are: two axes of which the inner one is split cannot be joined without
    gathering it.

    Args:
        x: ``[*batch, *contracted]``.
        kernel: ``[*contracted, *outputs]``, also as int8 with a scale for each output, or packed for decoding.
        contract: how many axes are contracted.
        dtype: of the result; default that of the product.

    Returns:
        ``[*batch, *outputs]``.

    >>> matrix_product(jnp.ones((2, 3, 4)), jnp.ones((4, 5, 6))).shape
    (2, 3, 5, 6)
    """
    if isinstance(kernel, Packed):
        return packed_product(x, kernel, contract=contract, dtype=dtype)
    batch, outputs = x.shape[: x.ndim - contract], kernel.shape[contract:]
    size = math.prod(kernel.shape[:contract])
    joined = (-1,) if math.prod(jax.sharding.get_abstract_mesh().axis_sizes) == 1 else batch
    x = x.reshape(*joined, size)
    if isinstance(kernel, Quantized):
        matrix = Quantized(kernel.values.reshape(size, -1), kernel.scale.reshape(1, -1))
        return quantized_product(x, matrix, dtype).reshape(*batch, *outputs)
    y = jnp.matmul(x, kernel.astype(x.dtype).reshape(size, -1), preferred_element_type=dtype)
    return y.reshape(*batch, *outputs)
