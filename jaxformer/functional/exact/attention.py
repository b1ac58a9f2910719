"""Attention whose bits for a query depend on the query and the keys it sees alone.

The real keys of a row stand first, and are summed in tiles of 64 from the first on, tile after tile. A tile without a
key adds zeros, so that neither padding nor room in a cache changes a sum.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxformer.functional.attention import (
    clipped,
    group_heads,
    head_norm,
    heads_first,
    ungroup_heads,
    zero_padding,
)
from jaxformer.functional.decoding.key_value import KeyValue, append_by_row
from jaxformer.functional.exact.rows import exact_rms_norm, exact_rotary
from jaxformer.functional.exact.seal import TILE, call, sealed
from jaxformer.functional.linear import linear
from jaxformer.functional.mask import MASKED, Mask
from jaxformer.functional.positions import Rotary
from jaxformer.functional.random import dropout

# Queries are filled up to a multiple of 8, the width of queries and keys to one of 16, and that of values to one of 64:
# products of one query, and under AVX-512 those of fewer than 56 with more than 16 columns that are no multiple of 64,
# have another order of sums. So has a sum along a row, which therefore is a product with ones.
_QUERIES, _WIDTH, _COLUMNS = 8, 16, 64


def _filled(x: Array, axis: int, unit: int) -> Array:
    missing = -x.shape[axis] % unit
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths) if missing else x


def _attend(args: Any, facts: Any, *, scale: float, softcap: float | None, causal: bool, dropout_rate: float) -> Array:
    """Grouped queries ``[B, K, G, T, H]``, keys and values ``[B, K, S, H]``, tiles of keys one after the other."""
    query, key, value, bias = args
    mask, dropout_keys = facts
    (B, K, G, T, H), S = query.shape, key.shape[2]
    seen = mask.array(T, S)
    seen = jnp.ones((1, T, S), bool) if seen is None else seen
    query = _filled(_filled(query * scale, 3, _QUERIES), 4, _WIDTH)
    key, value = (_filled(_filled(x, 2, TILE), 3, unit) for x, unit in ((key, _WIDTH), (value, _COLUMNS)))
    seen = _filled(_filled(seen, 1, _QUERIES), 2, TILE)[:, None, None]
    rows, keys = query.shape[3], key.shape[2]
    if bias is not None:
        heads = (1, 1) if bias.shape[1] == 1 else (K, G)
        bias = bias.reshape(bias.shape[0], *heads, *bias.shape[2:])
        bias = _filled(_filled(bias, 3, _QUERIES), 4, TILE).astype(jnp.float32)
    keep = None
    if dropout_keys is not None and dropout_rate > 0:
        keep = dropout(jnp.ones((B, K, G, T, S)), dropout_rate, dropout_keys)
        keep = _filled(_filled(keep, 3, _QUERIES), 4, TILE)
    # The first query that sees something of a tile: what is above the diagonal is not computed.
    tiles = [(start, min(start, rows) if causal else 0) for start in range(0, keys, TILE)]
    tiles = [(start, first) for start, first in tiles if first < rows]
    scores = []
    for start, first in tiles:
        part = slice(start, start + TILE)
        score = jnp.einsum("bkgth,bksh->bkgts", query[:, :, :, first:], key[:, :, part])
        if softcap is not None:
            score = softcap * call(jnp.tanh, (score / softcap).reshape(-1, TILE)).reshape(score.shape)
        if bias is not None:
            score = score + bias[..., first:, part]
        scores.append(jnp.where(seen[..., first:, part], score, MASKED))

    def from_top(x: Array, first: int, fill: float = 0.0) -> Array:
        return jnp.pad(x, ((0, 0),) * 3 + ((first, 0), (0, 0)), constant_values=fill) if first else x

    maximum = jnp.full((B, K, G, rows, 1), MASKED / 2)
    for score, (_, first) in zip(scores, tiles, strict=True):
        maximum = jnp.maximum(maximum, from_top(jnp.max(score, axis=-1, keepdims=True), first, MASKED / 2))
    maximum = lax.stop_gradient(maximum)
    output, total = jnp.zeros((B, K, G, rows, value.shape[-1])), jnp.zeros((B, K, G, rows, 1))
    ones = jnp.ones((TILE, _WIDTH))
    for score, (start, first) in zip(scores, tiles, strict=True):
        part = slice(start, start + TILE)
        # By itself: joined with the difference, whose operands differ in shape, its loop is not always vectorised, and
        # its rounding is then another.
        weights = call(jnp.exp, (score - maximum[..., first:, :]).reshape(-1, TILE)).reshape(score.shape)
        total = total + from_top(jnp.einsum("bkgts,sh->bkgth", weights, ones)[..., :1], first)
        if keep is not None:
            weights = weights * keep[..., first:, part]
        output = output + from_top(jnp.einsum("bkgts,bksh->bkgth", weights, value[:, :, part]), first)
    return (output / jnp.where(total > 0, total, 1.0))[:, :, :, :T, :H]


def exact_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    *,
    mask: Mask,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_keys: Array | None = None,
) -> Float[Array, "B T N H"]:
    """``dot_product_attention`` with keys and values as a cache stores them, real ones first; float32.

    Arguments are those of ``dot_product_attention``; a mask without an offset that is causal and has no prefix leaves
    the products above the diagonal out.
    """
    (_, T, _, H), S = query.shape, key.shape[2]
    bias = None if bias is None else jnp.broadcast_to(bias, (*bias.shape[:2], T, S))
    causal = mask.causal and mask.query_offset is None and mask.key_prefix is None
    scale = 1.0 / math.sqrt(H) if scale is None else scale
    attend = partial(_attend, scale=scale, softcap=softcap, causal=causal, dropout_rate=dropout_rate)
    args = (group_heads(query, key.shape[1]), key, value, bias)
    return ungroup_heads(sealed(attend, args, (mask, dropout_keys)))


def exact_multi_head_attention(
    x: Float[Array, "B T D"],
    weights: Mapping[str, Any],
    *,
    mask: Mask,
    context: Any = None,
    cache: KeyValue | None = None,
    slots: Int[Array, "B T"] | None = None,
    rotary: Rotary | None = None,
    norm_epsilon: float = 1e-6,
    **options: Any,
) -> tuple[Float[Array, "B T D"], KeyValue | None]:
    """``multi_head_attention``, with a cache or without, by the same programs.

    Args:
        x: source of the queries.
        weights: as in ``multi_head_attention``; kernels are ``ExactKernel``.
        mask: over the keys: those of ``x``, of the cache after ``slots`` are written, or of the context.
        context: source of keys and values ``[B, S, C]``, or these as ``KeyValue``.
        cache: of earlier tokens, or empty.
        slots: places of the tokens of ``x`` in the cache; None: the cache is empty.
        rotary: as in ``multi_head_attention``.
        norm_epsilon: likewise.
        **options: of ``exact_attention``.

    Returns:
        The output, and keys and values of the cache or the context; None without a cache.
    """

    def normed(states: Array, name: str) -> Array:
        if name in weights:
            states = head_norm(states, weights[name], epsilon=norm_epsilon, norm=exact_rms_norm)
        states = clipped(states, weights)
        return states if rotary is None else exact_rotary(states, rotary)

    query = normed(linear(x, **weights["query"]), "query_norm")
    kept = context if isinstance(context, KeyValue) else None
    if kept is None:
        source = x if context is None else context
        key = normed(linear(source, **weights["key"]), "key_norm")
        value = clipped(linear(source, **weights["value"]), weights)
        if cache is not None and slots is not None and context is None:
            kept = cache = append_by_row(cache, key, value, slots)
        else:
            key, value = zero_padding(mask, key, value)
            kept = KeyValue(heads_first(key), heads_first(value))
            if cache is not None and context is None:
                starts = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
                cache = append_by_row(cache, key, value, starts)
            elif cache is not None:
                cache = kept
    output = exact_attention(query, kept.key, kept.value, mask=mask, **options)
    return linear(output, **weights["output"], inputs=2), cache if context is None or cache is None else kept
