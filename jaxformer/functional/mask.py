"""Attention masks as small values, which become arrays only where one is needed.

Booleans, True means "may attend". A ``Mask`` is a pytree; its static part (causal, window) lets an attention
implementation skip blocks of the score matrix, its array part (padding, segments) is data.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# "Minus infinity" of scores and logits everywhere. It is finite, so that inf - inf never makes a nan, and far
# from the float32 limit, so that sums of a few of them stay finite.
MASKED = -1e30
STATIC = {"static": True}  # fields that are a part of a pytree's type


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """The keys that each query may attend to; all conditions given must hold.

    Attributes:
        causal: query ``t`` sees key ``s`` only if ``s <= t + query_offset``.
        window: query and key must be less than ``window`` positions apart (on both sides when not causal), so a
            token sees itself and ``window - 1`` neighbours on a side.
        key_valid: ``[B, S]``, False at padding keys.
        key_prefix: ``[B, S]``, keys that all queries see, even earlier ones (prefix language models).
        reach: like ``window``, for a number that is known only when the program runs (it differs between the layers of
            one loop).
        query_segments: ``[B, T]``, document number of each query token in a packed row, 0 for padding.
        key_segments: ``[B, S]``, the same for keys; both or neither. Padding sees nothing and is seen by nothing.
        query_offset: index of the first query among the keys, where a cache holds earlier keys, or ``[B, 1, 1]``; None
            is 0 and, unlike a number, stays static when the mask passes through a transformation such as remat.
        query_positions: ``[B, T]``, positions by which ``window`` is measured where they differ from the index: when a
            cache has padding between a prompt and its continuation.
        key_positions: ``[B, S]``, the same for keys; both or neither.
    """

    causal: bool = field(default=False, metadata=STATIC)
    window: int | None = field(default=None, metadata=STATIC)
    key_valid: Bool[Array, "B S"] | None = None
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    query_offset: int | Int[Array, "..."] | None = None
    query_positions: Int[Array, "B T"] | None = None
    key_positions: Int[Array, "B S"] | None = None
    reach: Int[Array, ""] | None = None
    key_prefix: Bool[Array, "B S"] | None = None

    @property
    def key_padding(self) -> Bool[Array, "B S"] | None:
        """``[B, S]``, True at keys that hold data; None if every key does."""
        valid = self.key_valid
        if self.key_segments is not None:
            in_document = self.key_segments > 0
            valid = in_document if valid is None else valid & in_document
        return valid

    def block(
        self, query_start: int, query_stop: int, key_start: int, key_stop: int
    ) -> Bool[Array, "#B query key"] | None:
        """The part of the mask for these queries and keys; None if all of it is True by construction.

        Returns:
            ``[B or 1, query_stop - query_start, key_stop - key_start]``.

        Raises:
            ValueError: if segments or positions are given for queries only or for keys only.
        """
        for what in ("segments", "positions"):
            query_side, key_side = getattr(self, f"query_{what}"), getattr(self, f"key_{what}")
            if (query_side is None) != (key_side is None):
                given = "key" if query_side is None else "query"
                raise ValueError(f"mask: only {given}_{what} is given, expected query_{what} and key_{what} or neither")
        parts = []
        query = jnp.arange(query_start, query_stop)[None, :, None]
        if self.query_offset is not None:
            query = query + self.query_offset
        key = jnp.arange(key_start, key_stop)[None, None, :]
        if self.causal:
            before = key <= query
            if self.key_prefix is not None:
                before = before | self.key_prefix[:, None, key_start:key_stop]
            parts.append(before)
        if self.window is not None or self.reach is not None:
            if self.query_positions is not None and self.key_positions is not None:
                query = self.query_positions[:, query_start:query_stop, None]
                key = self.key_positions[:, None, key_start:key_stop]
            near = [limit for limit in (self.window, self.reach) if limit is not None]
            parts.extend(jnp.abs(query - key) < limit for limit in near)
        if self.key_valid is not None:
            parts.append(self.key_valid[:, None, key_start:key_stop])
        if self.query_segments is not None and self.key_segments is not None:
            query_segment = self.query_segments[:, query_start:query_stop, None]
            parts.append((query_segment == self.key_segments[:, None, key_start:key_stop]) & (query_segment > 0))
        if not parts:
            return None
        mask = parts[0]
        for part in parts[1:]:
            mask = mask & part
        return jnp.broadcast_to(mask, (mask.shape[0], query_stop - query_start, key_stop - key_start))

    def distance(self, query_length: int, key_length: int) -> Int[Array, "#B T S"]:
        """Key position minus query position, ``[B or 1, T, S]``: by positions where they are given, else by index."""
        if self.query_positions is not None and self.key_positions is not None:
            return self.key_positions[:, None, :] - self.query_positions[:, :, None]
        query = jnp.arange(query_length) + (0 if self.query_offset is None else self.query_offset)
        return jnp.arange(key_length)[None, None, :] - query[None, :, None]

    def array(self, query_length: int, key_length: int) -> Bool[Array, "#B T S"] | None:
        """The whole mask, ``[B or 1, T, S]``; None if all of it is True by construction.

        >>> Mask(causal=True, window=2).array(3, 3)[0].astype(int)
        Array([[1, 0, 0],
               [1, 1, 0],
               [0, 1, 1]], dtype=int32)
        """
        return self.block(0, query_length, 0, key_length)


def position_ids_from_mask(attention_mask: Int[Array, "B T"] | Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions that count only real tokens, so that padding on either side changes nothing; padding gets 0.

    >>> position_ids_from_mask(jnp.array([[0, 0, 1, 1], [1, 1, 1, 0]]))
    Array([[0, 0, 0, 1],
           [0, 1, 2, 0]], dtype=int32)
    """
    real = attention_mask.astype(jnp.int32)
    return (jnp.cumsum(real, axis=-1) - 1) * real


def position_ids_from_segments(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions that begin at 0 in every document of a packed row; padding (segment 0) gets 0.

    >>> position_ids_from_segments(jnp.array([[1, 1, 1, 2, 2, 0]]))
    Array([[0, 1, 2, 0, 1, 0]], dtype=int32)
    """
    index = jnp.arange(segment_ids.shape[-1], dtype=jnp.int32)
    begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    positions = index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    return positions * (segment_ids > 0)
