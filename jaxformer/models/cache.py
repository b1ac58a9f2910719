"""The KV cache: keys and values of earlier tokens as a value that the caller passes in and gets back."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig


@partial(jax.tree_util.register_dataclass, data_fields=["layers", "valid", "positions"], meta_fields=[])
@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer for ``S`` tokens of ``B`` rows; the caller passes it in and gets it back.

    Attributes:
        layers: each array with a leading layer axis, ``key`` and ``value`` ``[L, B, S, K, H]``, ``length`` ``[L]``.
        valid: ``[B, S]``, True where a place holds a real token.
        positions: ``[B, S]``, position id of each place.
    """

    layers: F.KeyValue
    valid: jax.Array
    positions: jax.Array

    @property
    def length(self) -> jax.Array:
        """How many places are taken, the same in every row and layer."""
        return self.layers.length[0]


def init_cache(config: TransformerConfig, batch_size: int, max_length: int) -> KVCache:
    """An empty cache with room for ``max_length`` tokens a row, padding included, in the compute dtype."""
    num_layers = config.decoder_layers if config.architecture == "encoder_decoder" else config.num_layers
    shape = (num_layers, batch_size, max_length, config.kv_heads, config.head_width)
    layers = F.KeyValue(
        jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype), jnp.zeros(num_layers, jnp.int32)
    )
    empty = (batch_size, max_length)
    return KVCache(layers, jnp.zeros(empty, bool), jnp.zeros(empty, jnp.int32))


def extend_cache(
    cache: KVCache, real: jax.Array, position_ids: jax.Array, window: int | None
) -> tuple[KVCache, F.Mask]:
    """Books the new tokens' places in the cache and makes the mask over it. Keys and values follow in each layer."""
    start = (0, cache.length)
    valid = jax.lax.dynamic_update_slice(cache.valid, real, start)
    positions = jax.lax.dynamic_update_slice(cache.positions, position_ids, start)
    mask = F.Mask(
        causal=True,
        window=window,
        key_valid=valid,
        query_offset=cache.length,
        query_positions=position_ids,
        key_positions=positions,
    )
    return KVCache(cache.layers, valid, positions), mask
