"""Attention to a neighbourhood, computed in blocks: time and memory grow with the length, not with its square.

LongT5 (Guo et al. 2022, "LongT5: Efficient Text-To-Text Transformer for Long Sequences", section 3.1) adds summaries of
the whole text to what each token sees.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxformer.functional.attention import (
    Attended,
    attend,
    group_heads,
    heads_first,
    join,
    ungroup_heads,
    zero_padding,
)
from jaxformer.functional.mask import Mask, position_ids_from_segments
from jaxformer.functional.random import dropout


@jax.tree_util.register_static
@dataclass(frozen=True)
class Layout:
    """The blocks of a row.

    Attributes:
        size: queries of a block, ``b``.
        blocks: their number, ``n``.
        before: blocks of keys before its own that a block of queries may see.
        after: likewise after its own.
    """

    size: int
    blocks: int
    before: int
    after: int

    @property
    def keys(self) -> int:
        """Keys of a block, ``k``."""
        return self.size * (1 + self.before + self.after)

    def split(self, x: Array) -> Array:
        """``[B, T, ...]`` in blocks ``[B, n, b, ...]``, zeros where the last one has no tokens."""
        end = self.size * self.blocks - x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, end), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(x.shape[0], self.blocks, self.size, *x.shape[2:])

    def around(self, x: Array) -> Array:
        """``[B, T, ...]`` as the keys of each block, ``[B, n, k, ...]``, zeros beyond the ends of the row."""
        blocks = self.split(x)
        blocks = jnp.pad(blocks, ((0, 0), (self.before, self.after), *((0, 0),) * (blocks.ndim - 2)))
        parts = [blocks[:, i : i + self.blocks] for i in range(1 + self.before + self.after)]
        return jnp.concatenate(parts, axis=2)

    def distance(self) -> Int[Array, "1 b k"]:
        """Key position minus query position, the same in every block."""
        keys = jnp.arange(self.keys) - self.before * self.size
        return (keys[None, :] - jnp.arange(self.size)[:, None])[None]


def local_layout(length: int, window: int, *, causal: bool = False) -> Layout:
    """The blocks by which ``length`` tokens attend to less than ``window`` on a side; one where that saves nothing."""
    if length <= 2 * window:
        return Layout(length, 1, 0, 0)
    return Layout(window, -(-length // window), 1, 0 if causal else 1)


class Summaries(NamedTuple):
    """Further keys that the window does not limit: LongT5's transient global tokens, ``G`` a row.

    Attributes:
        key: ``[B, G, K, H]``.
        value: ``[B, G, K, H]``.
        visible: ``[B, T, G]`` bool, those that each query may attend to.
        bias: ``[B, N, T, G]``, added to the scaled scores.
    """

    key: Array
    value: Array
    visible: Array
    bias: Array


def local_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    *,
    mask: Mask,
    layout: Layout | None = None,
    bias: Float[Array, "1 #N b k"] | None = None,
    summaries: Summaries | None = None,
    return_weights: bool = False,
    dropout_keys: Array | None = None,
    **options: Any,
) -> Any:
    """``dot_product_attention`` where ``mask.window`` limits it, in blocks of queries with the keys around them.

    Args:
        query: of ``T`` tokens.
        key: of the same tokens; heads as in ``dot_product_attention``.
        value: like ``key``.
        mask: with a window that is measured by index; padding, documents and causality as usual.
        layout: of the blocks; default: ``local_layout``.
        bias: added to the scaled scores, by the distance alone, that of ``layout.distance()``.
        summaries: further keys.
        return_weights: also return the weights ``[B, N, T, T + G]``; only of a layout of one block.
        dropout_keys: one key per example; None (evaluation) drops nothing.
        **options: ``scale``, ``softcap`` and ``dropout_rate``, as in ``dot_product_attention``.

    Returns:
        An array like ``query``, same dtype, and with ``return_weights`` the weights.

    Raises:
        ValueError: if the mask has no window by index, or weights of several blocks are asked for.
    """
    (B, T, N, _), K = query.shape, key.shape[2]
    if mask.window is None or mask.query_positions is not None or mask.query_offset is not None:
        raise ValueError("local_attention: the mask has no window by index, expected one; use dot_product_attention")
    layout = local_layout(T, mask.window, causal=mask.causal) if layout is None else layout
    if return_weights and layout.blocks > 1:
        raise ValueError(f"local_attention: weights of {layout.blocks} blocks are asked for, expected a layout of one")
    key, value = zero_padding(mask, key, value)
    dropout_rate = options.pop("dropout_rate", 0.0)

    def drop_by(number: Any) -> Any:
        if dropout_keys is None:
            return None
        keys = dropout_keys if layout.blocks == 1 else jax.vmap(partial(jax.random.fold_in, data=number))(dropout_keys)
        return lambda weights: dropout(weights, dropout_rate, keys)

    def block(number: Any, query: Array, key: Array, value: Array, seen: Array) -> tuple[Array, Array, Any]:
        found = attend(
            group_heads(query, K),
            heads_first(key),
            heads_first(value),
            mask=seen,
            bias=bias,
            drop=drop_by(number),
            **options,
        )
        return found.output, found.log_total(), found.weights() if return_weights else None

    parts = (layout.split(query), layout.around(key), layout.around(value), _seen(mask, mask.window, layout, T))
    output, log_total, weights = jax.vmap(block, (0, 1, 1, 1, 1), (3, 3, 0))(jnp.arange(layout.blocks), *parts)
    # [B, K, G, n, b, ...] to [B, K, G, T, ...]
    output, log_total = (x.reshape(*x.shape[:3], -1, *x.shape[5:])[:, :, :, :T] for x in (output, log_total))
    found = Attended(output, lambda: log_total, lambda: weights[0])
    if summaries is not None:
        grouped = group_heads(query, K)
        further = attend(
            grouped,
            heads_first(summaries.key),
            heads_first(summaries.value),
            mask=summaries.visible,
            bias=summaries.bias,
            drop=drop_by(layout.blocks),
            **options,
        )
        found = join(found, further)
    output = ungroup_heads(found.output)
    return (output, found.weights().reshape(B, N, T, -1)) if return_weights else output


def _seen(mask: Mask, window: int, layout: Layout, length: int) -> Bool[Array, "B n b k"]:
    """The mask of each block."""
    index = jnp.arange(length)[None]
    inside = jnp.ones((1, length), bool)
    # Index 0 also stands beyond the ends of the row, where ``inside`` is False.
    query, key = layout.split(index)[..., None], layout.around(index)[:, :, None]
    seen = layout.around(inside)[:, :, None] & (jnp.abs(query - key) < window)
    if mask.causal:
        seen = seen & (key <= query)
    if mask.key_valid is not None:
        seen = seen & layout.around(mask.key_valid)[:, :, None]
    if mask.query_segments is not None and mask.key_segments is not None:
        of_query = layout.split(mask.query_segments)[..., None]
        seen = seen & (of_query == layout.around(mask.key_segments)[:, :, None]) & (of_query > 0)
    return seen


def summary_blocks(segment_ids: Int[Array, "B T"], size: int) -> tuple[Int[Array, "B T"], Int[Array, "B G"]]:
    """The blocks of ``size`` tokens that are summed into one key each, ``G = T // size`` a row.

    Tokens after a document's last whole block belong to that; a document shorter than a block has none (Guo et al.
    2022, section 3.1.2, and the code published with it).

    Args:
        segment_ids: document of each token, whose tokens are consecutive; 0 for padding. All 1 where a row is one text.
        size: tokens of a block.

    Returns:
        The block of each token, ``G`` where it has none; and the document of each block, 0 where it has none.

    >>> summary_blocks(jnp.array([[1, 1, 1, 1, 1, 2, 2, 0]]), 2)
    (Array([[0, 0, 1, 1, 1, 2, 2, 4]], dtype=int32), Array([[1, 1, 2, 0]], dtype=int32))
    """
    T = segment_ids.shape[1]
    G = T // size
    index = jnp.arange(T, dtype=jnp.int32)
    position = position_ids_from_segments(segment_ids)
    first = index - position
    ends = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    last = jax.lax.cummin(jnp.where(ends, index, T), axis=1, reverse=True)
    whole = jnp.where(segment_ids > 0, (last - first + 1) // size, 0)
    earlier = jnp.cumsum(jnp.where(position == 0, whole, 0), axis=1) - whole
    block = jnp.where(whole > 0, earlier + jnp.minimum(position // size, whole - 1), G)
    document = jax.vmap(lambda block, segments: jax.ops.segment_max(segments, block, G + 1))(block, segment_ids)
    used = jnp.arange(G) < jnp.sum(jnp.where(position == 0, whole, 0), axis=1, keepdims=True)
    return block, jnp.where(used, document[:, :G], 0)


def block_sums(x: Float[Array, "B T D"], blocks: Int[Array, "B T"], count: int) -> Float[Array, "B G D"]:
    """The sum of the states of each of ``count`` blocks of ``summary_blocks``, in the dtype of ``x``."""
    return jax.vmap(lambda x, block: jax.ops.segment_sum(x, block, count + 1)[:count])(x, blocks)
