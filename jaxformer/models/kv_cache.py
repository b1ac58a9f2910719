"""The KV cache: keys and values of earlier tokens, a value that the caller passes in and gets back."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.mamba import empty_states
from jaxformer.schema import UserError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer for ``S`` tokens of ``B`` rows.

    Attributes:
        layers: ``key`` and ``value`` ``[L, B, K, S, H]``; for a model that is not stacked a tuple with those of each
            layer, ``[B, K, S, H]``. Of a state-space model the states, ``[L, B, ...]`` or a tuple of ``[B, ...]``,
            which have no places.
        valid: ``[B, S]``, True where a place holds a real token.
        positions: ``[B, S]``, position id of each place.
        length: number of places written, padding included; the same in every row and layer.
        context: keys and values of the context for cross-attention, laid out as ``layers``; None before the first call
            and for models without cross-attention.
        empty: True before the first call, whose tokens attend among themselves by the same program as without a cache.
            It is part of the type: a ``lax.while_loop`` takes the cache after that call.
        ring: whether the place of a token is its number modulo ``S``. After the first call tokens then come one by one.
        by_row: whether the tokens of each row stand without gaps from place 0 on, whatever other rows hold; new tokens
            of a row are then its first ones, before any padding. ``length`` is not used.
    """

    layers: Any
    valid: jax.Array
    positions: jax.Array
    length: jax.Array
    context: Any = None
    empty: bool = field(default=True, metadata=F.STATIC)
    ring: bool = field(default=False, metadata=F.STATIC)
    by_row: bool = field(default=False, metadata=F.STATIC)

    @property
    def slot(self) -> jax.Array:
        """Place of the next token."""
        return self.length % self.valid.shape[1] if self.ring else self.length


def init_cache(
    config: TransformerConfig,
    batch_size: int,
    max_length: int,
    *,
    dtype: str | None = None,
    stacked: bool = True,
    ring: bool = False,
) -> KVCache:
    """An empty cache with room for ``max_length`` tokens a row, padding included.

    Args:
        config: of the model.
        batch_size: B.
        max_length: S.
        dtype: of keys and values, ``float32``, ``bfloat16`` or ``int8`` (a scale for each token and head); default the
            compute dtype.
        stacked: whether the parameters of the layers are stacked; not if they are prepared.
        ring: keep only the last ``max_length`` tokens, for a model whose window is not longer.

    Raises:
        ValueError: if a ring is shorter than the window, or the model has layers without one.
        UserError: with exact numerics, if keys are to be rounded or a ring is asked for.
    """
    if config.exact and (ring or (dtype or "float32") != "float32"):
        raise UserError(
            f"a cache of {dtype or 'float32'}{' with ring' if ring else ''} is asked for and numerics is exact, "
            "expected float32 and no ring: every key keeps its bits and its place"
        )
    if ring and (config.window is None or config.has_mixed_windows or max_length < config.window):
        raise ValueError(
            f"ring is true with a cache of {max_length} tokens, expected at least the model's window "
            f"({config.window}) in every layer; make the cache longer, or leave ring out"
        )
    config = config.decoder_side
    shape, num_layers = (batch_size, config.kv_heads, max_length, config.head_width), config.num_layers
    layers: Any
    if config.mixer != "attention":
        if stacked:
            layers = empty_states(config, (num_layers, batch_size), dtype)
        else:
            layers = tuple(empty_states(config, (batch_size,), dtype) for _ in range(num_layers))
    elif stacked:
        layers = F.empty_key_value((num_layers, *shape), dtype or config.dtype)
    else:
        layers = tuple(F.empty_key_value(shape, dtype or config.dtype) for _ in range(num_layers))
    places = (batch_size, max_length)
    return KVCache(layers, jnp.zeros(places, bool), jnp.zeros(places, jnp.int32), jnp.int32(0), ring=ring)


def extend_cache(
    cache: KVCache, real: jax.Array | None, position_ids: jax.Array, window: int | None
) -> tuple[KVCache, F.Mask]:
    """Reserves places of the cache for new tokens and makes their mask. Keys and values follow in each layer.

    Raises:
        ValueError: if several tokens at once are added to a ring, in which they would overwrite what they still read.
    """
    B, T = position_ids.shape
    if cache.ring and not cache.empty and T > 1:
        raise ValueError(f"{T} tokens are added to a ring cache, expected one at a time; use a cache with ring=False")
    places = cache.valid.shape[1]
    slot: Any = 0 if cache.empty else cache.slot
    now = jnp.ones((B, T), bool) if real is None else real
    valid = jax.lax.dynamic_update_slice(cache.valid, now[:, -places:], (0, slot))
    positions = jax.lax.dynamic_update_slice(cache.positions, position_ids[:, -places:], (0, slot))
    extended = replace(cache, valid=valid, positions=positions, length=cache.length + min(T, places), empty=False)
    if cache.empty:
        return extended, F.Mask(causal=True, window=window, key_valid=real)
    mask = F.Mask(
        causal=not cache.ring,  # all that a ring holds came before
        window=window,
        key_valid=valid,
        query_offset=cache.length,
        query_positions=position_ids,
        key_positions=positions,
    )
    return extended, mask


def extend_by_row(
    cache: KVCache, real: jax.Array, position_ids: jax.Array, window: int | None
) -> tuple[KVCache, F.Mask, jax.Array | None]:
    """``extend_cache`` where the tokens of each row stand without gaps from place 0 on, as exact numerics needs them.

    Rows may then begin and end at different times. ``real [B, T]`` is True at the first tokens of a row. Also returns
    the place ``[B, T]`` of each new token, past the end for padding; None where the cache was empty.
    """
    B, T = position_ids.shape
    rows, places = jnp.arange(B)[:, None], cache.valid.shape[1]
    count = jnp.sum(cache.valid, axis=1, dtype=jnp.int32)[:, None]
    slots = jnp.where(real, count + jnp.arange(T), places)
    valid = cache.valid.at[rows, slots].set(True, mode="drop")
    positions = cache.positions.at[rows, slots].set(position_ids, mode="drop")
    extended = replace(cache, valid=valid, positions=positions, length=cache.length + T, empty=False)
    if cache.empty:
        return extended, F.Mask(causal=True, window=window, key_valid=real), None
    mask = F.Mask(
        causal=True,
        window=window,
        key_valid=valid,
        query_offset=count[:, :, None],
        query_positions=position_ids,
        key_positions=positions,
    )
    return extended, mask, slots


def repeat_rows(cache: KVCache, times: int) -> KVCache:
    """Repeats each row ``times`` times, adjacent; for a cache whose layers are not stacked."""
    return take_rows(cache, jnp.repeat(jnp.arange(cache.valid.shape[0]), times))


def take_rows(cache: KVCache, rows: jax.Array, *, context: bool = True) -> KVCache:
    """Selects rows of a cache whose layers are not stacked.

    Args:
        cache: with ``B`` rows.
        rows: ``[R]``, numbers of rows.
        context: whether rows of the context are selected too; not where every row keeps its context.
    """
    take = partial(jax.tree.map, lambda leaf: jnp.take(leaf, rows, axis=0))
    return replace(
        cache,
        layers=take(cache.layers),
        valid=take(cache.valid),
        positions=take(cache.positions),
        context=take(cache.context) if context else cache.context,
    )
