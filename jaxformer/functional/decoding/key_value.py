"""Keys and values of earlier tokens, which the caller passes in and gets back, and attention that reads them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxformer.functional.attention import (
    attend,
    dot_product_attention,
    group_heads,
    heads_first,
    project_key_value,
    project_query,
    ungroup_heads,
    zero_padding,
)
from jaxformer.functional.decoding.int8 import Quantized, quantize
from jaxformer.functional.linear import linear
from jaxformer.functional.mask import Mask
from jaxformer.functional.positions import Rotary


class KeyValue(NamedTuple):
    """Keys and values of one layer, ``[B, K, S, H]`` each: heads before tokens, as the products read them.

    Arrays, or ``Quantized`` with a scale for each token and head.
    """

    key: Any
    value: Any


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


def _stored(x: Float[Array, "B T K H"], like: Any) -> Any:
    """Keys or values as a cache stores them: ``[B, K, T, H]`` in the dtype of ``like``, or quantized as it is."""
    x = heads_first(x)
    return quantize(x) if isinstance(like, Quantized) else x.astype(like.dtype)


def append_key_value(
    cache: KeyValue, key: Float[Array, "B T K H"], value: Float[Array, "B T K H"], slot: int | Int[Array, ""]
) -> KeyValue:
    """Writes ``T`` more keys and values from ``slot`` on; the caller makes room.

    If there are more tokens than places, the last tokens are kept.
    """

    def write(buffer: Any, x: Array) -> Any:
        places = jax.tree.leaves(buffer)[0].shape[2]
        new = _stored(x[:, -places:], buffer)
        return jax.tree.map(lambda old, part: lax.dynamic_update_slice(old, part, (0, 0, slot, 0)), buffer, new)

    return KeyValue(write(cache.key, key), write(cache.value, value))


def append_by_row(
    cache: KeyValue, key: Float[Array, "B T K H"], value: Float[Array, "B T K H"], slots: Int[Array, "B T"]
) -> KeyValue:
    """Writes keys and values to places of each row's own; what has a place past the end is not written."""
    rows = jnp.arange(len(slots))[:, None]

    def write(buffer: Any, x: Array) -> Any:
        # Tokens first, as an index of rows and places selects them.
        new = jax.tree.map(lambda part: jnp.swapaxes(part, 1, 2), _stored(x, buffer))
        return jax.tree.map(lambda old, part: old.at[rows, :, slots].set(part, mode="drop"), buffer, new)

    return KeyValue(write(cache.key, key), write(cache.value, value))


def cached_attention(
    query: Float[Array, "B T N H"],
    cache: KeyValue,
    *,
    mask: Mask | None = None,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B T N H"]:
    """``dot_product_attention`` of a few new queries with the keys and values of a cache.

    The cache is finite everywhere, with zeros at places without a token; the mask is over its ``S`` places.
    """
    T, (K, S) = query.shape[1], cache.key.shape[1:3]
    key, value = (part.astype(query.dtype) for part in cache)
    seen = None if mask is None else mask.array(T, S)
    bias = None if bias is None else jnp.broadcast_to(bias, (*bias.shape[:2], T, S))
    output = attend(group_heads(query, K), key, value, mask=seen, bias=bias, scale=scale, softcap=softcap).output
    return ungroup_heads(output)


def prefill_attention(
    x: Float[Array, "B T D"],
    weights: Mapping[str, Any],
    cache: KeyValue,
    *,
    context: Float[Array, "B S C"] | None = None,
    mask: Mask,
    rotary: Rotary | None = None,
    norm_epsilon: float = 1e-6,
    attention: Callable[..., Any] = dot_product_attention,
    **options: Any,
) -> tuple[Float[Array, "B T D"], KeyValue]:
    """``multi_head_attention`` that also returns its keys and values, in the dtype of an empty ``cache``.

    Those of ``x`` are written to the cache, those of a ``context`` are returned by themselves. Padding leaves zeros.
    The other arguments are those of ``multi_head_attention``, which is computed by the same program.
    """
    query = project_query(x, weights, rotary, norm_epsilon)
    key, value = project_key_value(x if context is None else context, weights, rotary, norm_epsilon)
    new = zero_padding(mask, key, value)
    if context is None:
        cache = append_key_value(cache, *new, slot=0)
    else:
        cache = KeyValue(*(_stored(array, like) for array, like in zip(new, cache, strict=True)))
    return linear(attention(query, key, value, mask=mask, **options), **weights["output"], inputs=2), cache


def cached_self_attention(
    x: Float[Array, "B T D"],
    weights: Mapping[str, Any],
    cache: KeyValue,
    slot: int | Int[Array, "..."],
    *,
    mask: Mask | None = None,
    rotary: Rotary | None = None,
    norm_epsilon: float = 1e-6,
    **options: Any,
) -> tuple[Float[Array, "B T D"], KeyValue]:
    """``multi_head_attention`` of new tokens to those in a cache and to themselves.

    Args:
        x: the new tokens.
        weights: as in ``multi_head_attention``.
        cache: keys and values of earlier tokens.
        slot: first place of the cache for the tokens of ``x``; or the place of each, ``[B, T]``, past the end for
            padding.
        mask: over the cache's ``S`` places.
        rotary: as in ``multi_head_attention``.
        norm_epsilon: likewise.
        **options: of ``cached_attention``: ``bias``, ``scale``, ``softcap``.

    Returns:
        The output, like ``x``, and the cache with the new tokens.
    """
    query = project_query(x, weights, rotary, norm_epsilon)
    append: Any = append_by_row if jnp.ndim(slot) == 2 else append_key_value
    cache = append(cache, *project_key_value(x, weights, rotary, norm_epsilon), slot)
    # Else XLA computes the new cache twice, for the loop and for the scores: on a CPU a step of GPT-2's size with int8
    # weights took 14.1 instead of 12.9 ms.
    cache = lax.optimization_barrier(cache)
    return linear(cached_attention(query, cache, mask=mask, **options), **weights["output"], inputs=2), cache


def cached_cross_attention(
    x: Float[Array, "B T D"],
    weights: Mapping[str, Any],
    context: KeyValue,
    *,
    mask: Mask | None = None,
    norm_epsilon: float = 1e-6,
    **options: Any,
) -> Float[Array, "B T D"]:
    """``multi_head_attention`` to a context whose keys and values are in a cache; arguments as there."""
    query = project_query(x, weights, None, norm_epsilon)
    return linear(cached_attention(query, context, mask=mask, **options), **weights["output"], inputs=2)
