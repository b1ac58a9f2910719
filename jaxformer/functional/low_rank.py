"""A kernel with an update of low rank beside it, and the product that knows it."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.functional.dropout import dropout
from jaxformer.functional.product import matrix_product


@partial(jax.tree_util.register_dataclass, data_fields=["kernel", "a", "b", "keys"], meta_fields=["rate"])
@dataclass(frozen=True)
class LowRankKernel:
    """``W + A B`` of which the sum is never made: it may stand wherever a kernel does.

    Hu et al. 2022, "LoRA", eq. 3.

    Attributes:
        kernel: ``W [*inputs, *outputs]``.
        a: ``A [*inputs, rank]``.
        b: ``B [rank, *outputs]``, the scale included.
        keys: one key an example for the dropout of what enters ``A``, or None. Where an example has several rows (the
            two texts of a pair) they stand behind one another, and each drops otherwise.
        rate: of this dropout.
    """

    kernel: Any
    a: Any
    b: Any
    keys: Any = None
    rate: float = 0.0


def kernel_product(x: Float[Array, "..."], kernel: Any, *, contract: int = 1) -> Float[Array, "..."]:
    """``x W``, or ``x W + dropout(x) A B`` for a ``LowRankKernel``, in the dtype of ``x``.

    Args:
        x: ``[B, ..., *inputs]``.
        kernel: what ``matrix_product`` takes, or a ``LowRankKernel``.
        contract: number of the input axes.
    """
    if not isinstance(kernel, LowRankKernel):
        return matrix_product(x, kernel, contract=contract)
    y = matrix_product(x, kernel.kernel, contract=contract)
    keys = None if kernel.keys is None else _keys_of_rows(kernel.keys, len(x))
    inner = matrix_product(dropout(x, kernel.rate, keys), kernel.a, contract=contract)
    return y + matrix_product(inner, kernel.b)


def _keys_of_rows(keys: Array, rows: int) -> Array:
    each = rows // len(keys)
    if each == 1:
        return keys
    return jnp.ravel(jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, jnp.arange(each)))
