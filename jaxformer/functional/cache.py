"""Keys and values of earlier tokens, kept for later queries: plain arrays that the caller passes in and gets back."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxformer.functional.int8 import Quantized, quantize


class KeyValue(NamedTuple):
    """Keys and values of one layer, ``[B, K, S, H]`` each: heads before tokens, as the products read them.

    Arrays, or ``Quantized`` with a scale for each token and head.
    """

    key: Any
    value: Any


def kept(x: Float[Array, "B T K H"], like: Any) -> Any:
    """Keys or values as a cache holds them: ``[B, K, T, H]`` in the dtype of ``like``, or quantized where it is."""
    x = x.transpose(0, 2, 1, 3)
    return quantize(x) if isinstance(like, Quantized) else x.astype(like.dtype)


def append_key_value(
    cache: KeyValue, key: Float[Array, "B T K H"], value: Float[Array, "B T K H"], slot: int | Int[Array, ""]
) -> KeyValue:
    """The cache with ``T`` more keys and values written from ``slot`` on; the caller makes room.

    Of more tokens than it has places the last are kept.
    """

    def write(buffer: Any, x: Array) -> Any:
        places = jax.tree.leaves(buffer)[0].shape[2]
        new = kept(x[:, -places:], buffer)
        return jax.tree.map(lambda old, part: lax.dynamic_update_slice(old, part, (0, 0, slot, 0)), buffer, new)

    return KeyValue(write(cache.key, key), write(cache.value, value))


def empty_key_value(shape: tuple[int, ...], dtype: Any) -> KeyValue:
    """A cache without tokens.

    Args:
        shape: ``[*, K, S, H]``.
        dtype: of the arrays; ``"int8"`` for quantized ones.
    """

    def zeros() -> Any:
        if jnp.dtype(dtype) == jnp.int8:
            return Quantized(jnp.zeros(shape, jnp.int8), jnp.zeros((*shape[:-1], 1), jnp.float32))
        return jnp.zeros(shape, dtype)

    return KeyValue(zeros(), zeros())
