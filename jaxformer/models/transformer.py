"""Block, stack of blocks and the GPT-style decoder."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.layers import Attention, DropoutKeys, Embeddings, FeedForward, Norm, Projection


class Block(nn.Module):
    """Attention and feed-forward with their norms and residuals.

    Pre-norm (Xiong et al. 2020): ``x += f(norm(x))``; post-norm (Vaswani et al. 2017): ``x = norm(x + f(x))``;
    parallel residual (GPT-J, GPT-NeoX): ``x += attention(norm1(x)) + feed_forward(norm2(x))``.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: F.KeyValue | None,
        mask: F.Mask,
        rotary: F.Rotary | None,
        example_ids: jax.Array | None,
    ) -> tuple[jax.Array, F.KeyValue | None]:
        """Maps the residual stream to the next; the signature is that of a scan body (carry, per layer, broadcast)."""
        c = self.config
        attention, feed_forward = Attention(c, name="attention"), FeedForward(c, name="feed_forward")
        attention_norm, feed_forward_norm = Norm(c, name="attention_norm"), Norm(c, name="feed_forward_norm")

        def drop(name: str, y: jax.Array) -> jax.Array:
            return F.dropout(y, c.dropout, DropoutKeys(name=name)(c.dropout, example_ids))

        pre = c.norm_place == "pre"
        y, cache = attention(attention_norm(x) if pre else x, mask, rotary, cache, example_ids)
        y = drop("attention_output_dropout", y)
        if c.parallel_residual:
            return x + y + drop("feed_forward_dropout", feed_forward(feed_forward_norm(x))), cache
        x = x + y if pre else attention_norm(x + y)
        y = drop("feed_forward_dropout", feed_forward(feed_forward_norm(x) if pre else x))
        return (x + y if pre else feed_forward_norm(x + y)), cache


# What a block keeps for its backward pass. "dots" keeps the products with weights, not the attention scores.
REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def stacked_blocks(config: TransformerConfig) -> nn.Module:
    """``num_layers`` blocks with their parameters stacked on a leading ``L`` axis, run as one compiled loop.

    Called like one ``Block``; ``cache`` holds every layer's keys and values on a leading axis.
    """
    block = Block
    if config.remat != "none":
        # Inside a scan the loop itself keeps the recomputation apart, so XLA need not be told not to merge it.
        block = nn.remat(Block, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
    unroll = config.unroll or (config.num_layers if jax.default_backend() == "cpu" else 1)
    layers = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=config.num_layers,
        unroll=min(unroll, config.num_layers),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return layers(config)


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
    shape = (config.num_layers, batch_size, max_length, config.kv_heads, config.head_width)
    layers = F.KeyValue(
        jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype), jnp.zeros(config.num_layers, jnp.int32)
    )
    empty = (batch_size, max_length)
    return KVCache(layers, jnp.zeros(empty, bool), jnp.zeros(empty, jnp.int32))


@partial(jax.tree_util.register_dataclass, data_fields=["logits", "last_hidden_state", "cache"], meta_fields=[])
@dataclass(frozen=True)
class CausalLMOutput:
    """What a decoder returns.

    Attributes:
        logits: ``[B, T, V]`` float32.
        last_hidden_state: ``[B, T, D]`` after the final norm, compute dtype.
        cache: the cache with this call's tokens, if one was passed.
    """

    logits: jax.Array
    last_hidden_state: jax.Array
    cache: KVCache | None = None


class Decoder(nn.Module):
    """GPT-style decoder with a language-model head. GPT-2 and LLaMA are two sets of defaults of its configuration."""

    config: TransformerConfig

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        self.embeddings = Embeddings(c)
        self.layers = stacked_blocks(c)
        if c.norm_place == "pre":
            self.final_norm = Norm(c)
        if not c.tie_embeddings:
            self.lm_head = Projection((c.hidden_size, c.vocabulary), ("embed", "vocab"), 1, False, c.initializer_range)

    def hidden_states(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """The last hidden states and the new cache; arguments as in ``__call__``."""
        c = self.config
        B, T = input_ids.shape
        self._check(T, segment_ids, cache)
        if attention_mask is None and segment_ids is not None:
            attention_mask = segment_ids > 0
        real = None if attention_mask is None else attention_mask.astype(bool)
        if position_ids is None:
            position_ids = _default_positions(input_ids, real, segment_ids, cache)
        if cache is None:
            mask = F.Mask(True, c.window, real, segment_ids, segment_ids)
        else:
            cache, mask = _extend(c, cache, jnp.ones((B, T), bool) if real is None else real, position_ids)
        rotary = None
        if c.positions == "rotary":
            scaling = None if c.rope_scaling is None else F.RotaryScaling(**c.rope_scaling.model_dump())
            rotary = F.rotary_angles(
                position_ids, F.rotary_frequencies(c.head_width, theta=c.rope_theta, scaling=scaling)
            )
        # Examples are numbered so that dropout belongs to the example; in evaluation they have no number.
        examples = None if deterministic else (jnp.arange(B) if example_ids is None else example_ids)
        x = self.embeddings(input_ids, position_ids, real, examples)
        x, layers = self.layers(x, None if cache is None else cache.layers, mask, rotary, examples)
        if c.norm_place == "pre":
            x = self.final_norm(x)
        return x, None if cache is None else KVCache(layers, cache.valid, cache.positions)

    def _check(self, length: int, segment_ids: jax.Array | None, cache: KVCache | None) -> None:
        longest = self.config.max_length if cache is None else cache.valid.shape[1]
        if length > longest:
            what = "max_length" if cache is None else "the cache's length"
            raise ValueError(f"input_ids has {length} tokens a row, expected at most {longest} ({what}); shorten it")
        if segment_ids is not None and cache is not None:
            raise ValueError("segment_ids and a cache are both given, expected one: a cache holds one document a row")

    def head_weights(self) -> F.HeadWeights:
        """The output layer's weights, for a loss that does not build all logits."""
        if self.config.tie_embeddings:
            return self.embeddings.head()
        return F.HeadWeights(self.lm_head()["kernel"])

    def hidden_and_head(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, F.HeadWeights]:
        """Last hidden states and output layer: what ``functional.chunked_cross_entropy`` takes."""
        return self.hidden_states(*args, **kwargs)[0], self.head_weights()

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> CausalLMOutput:
        """Logits of the next token at every position.

        ``model.apply({"params": params}, input_ids=...)`` evaluates; for training pass ``deterministic=False`` and
        ``rngs={"dropout": key}``.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens, padding on any side; default: all real. With a cache it is
                about these tokens alone, the cache knows about the earlier ones.
            position_ids: ``[B, T]``; default: counts the real tokens of each document, after those in the cache.
            segment_ids: ``[B, T]``, document of each token in a packed row, 0 for padding.
            cache: keys and values of earlier tokens, from ``init_cache``.
            example_ids: ``[B]``, the numbers the rows' dropout is drawn by; default ``arange(B)``.
            deterministic: False in training: dropout is on.

        Raises:
            ValueError: if the row is longer than ``max_length`` or the cache, or a cache meets packed documents.
        """
        hidden, cache = self.hidden_states(
            input_ids, attention_mask, position_ids, segment_ids, cache, example_ids, deterministic
        )
        return CausalLMOutput(F.head_logits(hidden, self.head_weights()), hidden, cache)


def _default_positions(
    input_ids: jax.Array, real: jax.Array | None, segment_ids: jax.Array | None, cache: KVCache | None
) -> jax.Array:
    if segment_ids is not None:
        return F.position_ids_from_segments(segment_ids)
    if real is not None:
        positions = F.position_ids_from_mask(real)
    else:
        positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    return positions if cache is None else positions + jnp.sum(cache.valid, axis=-1, keepdims=True)


def _extend(
    config: TransformerConfig, cache: KVCache, real: jax.Array, position_ids: jax.Array
) -> tuple[KVCache, F.Mask]:
    """Books the new tokens' places in the cache and makes the mask over it. Keys and values follow in each layer."""
    start = (0, cache.length)
    valid = jax.lax.dynamic_update_slice(cache.valid, real, start)
    positions = jax.lax.dynamic_update_slice(cache.positions, position_ids, start)
    mask = F.Mask(
        causal=True,
        window=config.window,
        key_valid=valid,
        query_offset=cache.length,
        query_positions=position_ids,
        key_positions=positions,
    )
    return KVCache(cache.layers, valid, positions), mask
