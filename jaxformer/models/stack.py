"""Block, and the stack of blocks between embeddings and final norm that every architecture is made of."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.cache import KVCache, extend_cache
from jaxformer.models.config import TransformerConfig
from jaxformer.models.layers import Attention, DropoutKeys, Embedding, Embeddings, FeedForward, Norm
from jaxformer.models.partition import place, platform


class Context(NamedTuple):
    """What a decoder's cross-attention reads.

    Attributes:
        hidden: ``[B, S, D]``, last hidden states of the encoder; not read once a cache holds its keys and values.
        real: ``[B, S]`` bool, False at padding; None if there is none.
        segment_ids: ``[B, S]``, document of each token in a packed row; None where rows are not packed.
    """

    hidden: Any
    real: Any = None
    segment_ids: Any = None


class Surroundings(NamedTuple):
    """What all blocks of a stack share."""

    mask: F.Mask
    rotary: F.Rotary | None
    local_rotary: F.Rotary | None
    bias: Any
    context: Any
    context_mask: F.Mask | None
    example_ids: Any
    slot: Any = None


class LayerCache(NamedTuple):
    """One layer's keys and values: of the text itself, and of the context once they are known."""

    own: F.KeyValue
    context: F.KeyValue | None


class LayerKind(NamedTuple):
    """In what one block differs from the others of its stack, where it does.

    Attributes:
        windowed: whether attention is limited to the configuration's window.
        first: whether it is the first block.
    """

    windowed: Any
    first: Any


class Block(nn.Module):
    """Attention and feed-forward, in a decoder of an encoder-decoder cross-attention between them, with residuals.

    Pre-norm (Xiong et al. 2020): ``x += f(norm(x))``; post-norm (Vaswani et al. 2017): ``x = norm(x + f(x))``;
    parallel residual (GPT-J, GPT-NeoX): ``x += attention(norm1(x)) + feed_forward(norm2(x))``.
    """

    config: TransformerConfig
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, per_layer: tuple[LayerCache | None, LayerKind | None], around: Surroundings
    ) -> tuple[jax.Array, LayerCache | None]:
        """Maps the residual stream to the next; the signature is that of a scan body (carry, per layer, broadcast)."""
        c = self.config
        x = place(x, "batch", "length", None)
        cache, kind = per_layer
        pre = c.norm_place == "pre"
        feed_forward = FeedForward(c, name="feed_forward")
        attention_norm, feed_forward_norm = Norm(c, name="attention_norm"), Norm(c, name="feed_forward_norm")

        def drop(name: str, y: jax.Array) -> jax.Array:
            return F.dropout(y, c.dropout, DropoutKeys(name=name)(c.dropout, around.example_ids))

        normed = attention_norm(x) if pre else x
        if kind is not None and not c.first_norm:
            normed = jnp.where(kind.first, x, normed)
        mask, rotary = _of_this_layer(c, kind, around)
        own = None if cache is None else cache.own
        y, own = Attention(c, name="attention")(
            normed, mask, bias=around.bias, rotary=rotary, cache=own, slot=around.slot, example_ids=around.example_ids
        )
        y = drop("attention_output_dropout", y)
        if c.parallel_residual:
            x = x + y + drop("feed_forward_dropout", feed_forward(feed_forward_norm(x)))
            return x, None if own is None else LayerCache(own, None)
        x = x + y if pre else attention_norm(x + y)
        context = None
        if self.cross:
            cross_norm = Norm(c, name="cross_attention_norm")
            known = None if cache is None else cache.context
            y, context = Attention(c, name="cross_attention")(
                cross_norm(x) if pre else x,
                around.context_mask,
                context=around.context if known is None else known,
                cache=own,
                example_ids=around.example_ids,
            )
            y = drop("cross_attention_output_dropout", y)
            x = x + y if pre else cross_norm(x + y)
        y = drop("feed_forward_dropout", feed_forward(feed_forward_norm(x) if pre else x))
        return (x + y if pre else feed_forward_norm(x + y)), None if own is None else LayerCache(own, context)


# Farther than any two tokens are apart.
_EVERYWHERE = 2**30


def _of_this_layer(
    c: TransformerConfig, kind: LayerKind | None, around: Surroundings
) -> tuple[F.Mask, F.Rotary | None]:
    """Mask and rotary angles of one block: all blocks are one loop, so what differs is chosen by number."""
    if kind is None or c.window is None or c.global_every is None:
        return around.mask, around.rotary
    reach = jnp.where(kind.windowed, c.window, _EVERYWHERE)
    mask = dataclasses.replace(around.mask, window=None, reach=reach)
    if around.rotary is None or around.local_rotary is None:
        return mask, around.rotary
    angles = zip(around.local_rotary, around.rotary, strict=True)
    return mask, F.Rotary(*(jnp.where(kind.windowed, local, far) for local, far in angles))


# What a block keeps for its backward pass. "dots" keeps the products with weights, not the attention scores.
REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def stacked_blocks(config: TransformerConfig, num_layers: int | None = None, cross: bool = False) -> nn.Module:
    """``num_layers`` blocks with their parameters stacked on a leading ``L`` axis, run as one compiled loop.

    Called like one ``Block``, with what differs from layer to layer on a leading axis. With ``share_layers`` there is
    one block's parameters without that axis, used ``L`` times (Lan et al. 2020, "ALBERT", section 3.1).
    """
    num_layers = num_layers or config.num_layers
    block = Block
    if config.remat != "none":
        # Inside a scan the loop itself keeps the recomputation apart, so XLA need not be told not to merge it.
        block = nn.remat(Block, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
    # Unrolled, every layer's slice of the stacked kernels is held from forward to backward: no saving of memory.
    unroll = config.unroll or (num_layers if platform() == "cpu" and config.remat == "none" else 1)
    shared: dict[str, Any] = {"variable_broadcast": "params", "split_rngs": {"params": False, "dropout": True}}
    stacked: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True, "dropout": True}}
    layers = nn.scan(
        block,
        **(shared if config.share_layers else stacked),
        in_axes=(0, nn.broadcast),
        length=num_layers,
        unroll=min(unroll, num_layers),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return layers(config, cross)


class SeparateBlocks(nn.Module):
    """The blocks one by one, each with parameters of its own, ``{"0": ..., "1": ...}``; called like stacked ones.

    For decoding: a layer's weights and cache are then read where they lie. Out of stacked ones they would be copied
    first, which takes as long as the product with one token.
    """

    config: TransformerConfig
    num_layers: int
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, per_layer: tuple[tuple[LayerCache, ...] | None, LayerKind | None], around: Surroundings
    ) -> tuple[jax.Array, tuple[LayerCache, ...] | None]:
        """As ``Block``, with a tuple of caches."""
        caches, kinds = per_layer
        shared = Block(self.config, self.cross, name="0") if self.config.share_layers else None
        new = []
        for i in range(self.num_layers):
            block = shared or Block(self.config, self.cross, name=str(i))
            kind = None if kinds is None else LayerKind(*(of_all[i] for of_all in kinds))
            x, cache = block(x, (None if caches is None else caches[i], kind), around)
            new.append(cache)
        return x, None if caches is None else tuple(new)


class Stack(nn.Module):
    """Embeddings, blocks, final norm: tokens in, last hidden states out.

    Attributes:
        config: of the model.
        causal: whether a token sees only itself and those before it.
        cross: whether the blocks attend to a context (an encoder's hidden states) too.
        num_layers: blocks, if not as many as the configuration says.
        own_tokens: False where the token table is shared and passed in.
        stacked: whether the blocks' parameters are; not in those that ``generation.prepare`` laid out.
    """

    config: TransformerConfig
    causal: bool = True
    cross: bool = False
    num_layers: int | None = None
    own_tokens: bool = True
    stacked: bool = True

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        self.embeddings = Embeddings(c, self.own_tokens)
        if self.stacked:
            self.layers = stacked_blocks(c, self.num_layers, self.cross)
        else:
            self.layers = SeparateBlocks(c, self.num_layers or c.num_layers, self.cross)
        if c.norm_place == "pre":
            self.final_norm = Norm(c)
        if c.positions == "relative":
            std = c.initializer_range if c.initializer == "normal" else c.hidden_size**-0.5
            self.relative_bias = Embedding(c.relative_buckets, c.num_heads, ("table", "heads"), std)

    def hidden_states(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
        token_type_ids: jax.Array | None = None,
        context: Context | None = None,
        table: jax.Array | None = None,
        prefix_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """The last hidden states and the new cache.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens, padding on any side; default: all real. With a cache it is
                about these tokens alone, the cache knows about the earlier ones.
            position_ids: ``[B, T]``; default: counts the real tokens of each document, after those in the cache.
            segment_ids: ``[B, T]``, document of each token in a packed row, 0 for padding.
            cache: keys and values of earlier tokens, from ``init_cache``.
            example_ids: ``[B]``, the numbers the rows' dropout is drawn by; default ``arange(B)``.
            deterministic: False in training: dropout is on.
            token_type_ids: ``[B, T]``, which of the joined texts a token belongs to; default 0.
            context: what cross-attention reads.
            table: ``[V, D]``, the token embedding, where it is shared.
            prefix_mask: ``[B, T]``, 1 at tokens that all tokens of their document see, also those before them.

        Raises:
            ValueError: if the row is longer than ``max_length`` or the cache, or a cache meets packed documents or a
                prefix.
        """
        c = self.config
        # A tokenizer returns NumPy arrays.
        input_ids = jnp.asarray(input_ids)
        attention_mask, position_ids, segment_ids, token_type_ids, prefix_mask = (
            None if array is None else jnp.asarray(array)
            for array in (attention_mask, position_ids, segment_ids, token_type_ids, prefix_mask)
        )
        B, T = input_ids.shape
        self._check(T, segment_ids, cache)
        if prefix_mask is not None and cache is not None:
            raise ValueError("prefix_mask and a cache are both given, expected one: a cache is filled token by token")
        if attention_mask is None and segment_ids is not None:
            attention_mask = segment_ids > 0
        real = None if attention_mask is None else attention_mask.astype(bool)
        if position_ids is None:
            position_ids = _default_positions(input_ids, real, segment_ids, cache)
        slot = None
        if cache is None:
            prefix = None if prefix_mask is None else prefix_mask.astype(bool)
            mask = F.Mask(self.causal, c.window, real, segment_ids, segment_ids, key_prefix=prefix)
        else:
            slot = None if cache.empty else cache.slot
            cache, mask = extend_cache(cache, real, position_ids, c.window)
        # Examples are numbered so that dropout belongs to the example; in evaluation they have no number.
        examples = None if deterministic else (jnp.arange(B) if example_ids is None else example_ids)
        x = self.embeddings(input_ids, position_ids, real, examples, token_type_ids, table)
        keys = T if slot is None or cache is None else cache.valid.shape[1]
        around = self._surroundings(position_ids, mask, (T, keys), segment_ids, context, examples)
        kinds = _layer_kinds(c, self.num_layers or c.num_layers)
        caches = None if cache is None else self._split(cache)
        x, caches = self.layers(x, (caches, kinds), around._replace(slot=slot))
        if c.norm_place == "pre":
            x = self.final_norm(x)
        return x, None if cache is None else self._joined(cache, caches)

    def _split(self, cache: KVCache) -> Any:
        """What each layer gets of the cache."""
        if self.stacked:
            return LayerCache(cache.layers, cache.context)
        contexts = cache.context or (None,) * len(cache.layers)
        return tuple(LayerCache(own, context) for own, context in zip(cache.layers, contexts, strict=True))

    def _joined(self, cache: KVCache, caches: Any) -> KVCache:
        """The cache with what the layers returned."""
        if self.stacked:
            return dataclasses.replace(cache, layers=caches.own, context=caches.context)
        context = tuple(layer.context for layer in caches) if self.cross else None
        return dataclasses.replace(cache, layers=tuple(layer.own for layer in caches), context=context)

    def _surroundings(
        self,
        position_ids: jax.Array,
        mask: F.Mask,
        lengths: tuple[int, int],
        segment_ids: jax.Array | None,
        context: Context | None,
        example_ids: jax.Array | None,
    ) -> Surroundings:
        c = self.config
        rotary = local_rotary = bias = context_mask = None
        if c.positions == "rotary":
            rotary = _rotary(c, position_ids, c.rope_theta)
            local_rotary = None if c.local_rope_theta is None else _rotary(c, position_ids, c.local_rope_theta)
        elif c.positions in ("relative", "alibi"):
            distance = mask.distance(*lengths)
            if c.positions == "alibi":
                bias = F.alibi_bias(distance, c.num_heads)
            else:
                bias = F.relative_bias(
                    self.relative_bias(),
                    distance,
                    bidirectional=not self.causal,
                    max_distance=c.relative_max_distance,
                )
        if context is not None:
            segments = None if context.segment_ids is None else segment_ids
            context_mask = F.Mask(key_valid=context.real, query_segments=segments, key_segments=context.segment_ids)
        hidden = None if context is None else context.hidden
        return Surroundings(mask, rotary, local_rotary, bias, hidden, context_mask, example_ids)

    def _check(self, length: int, segment_ids: jax.Array | None, cache: KVCache | None) -> None:
        longest = self.config.max_length if cache is None else cache.valid.shape[1]
        if length > longest and not (cache is not None and cache.ring):
            what = "max_length" if cache is None else "the cache's length"
            raise ValueError(f"input_ids has {length} tokens a row, expected at most {longest} ({what}); shorten it")
        if segment_ids is not None and cache is not None:
            raise ValueError("segment_ids and a cache are both given, expected one: a cache holds one document a row")


def _rotary(c: TransformerConfig, position_ids: jax.Array, theta: float) -> F.Rotary:
    scaling = None if c.rope_scaling is None else F.RotaryScaling(**c.rope_scaling.model_dump())
    return F.rotary_angles(position_ids, F.rotary_frequencies(c.rotary_size, theta=theta, scaling=scaling))


def _layer_kinds(c: TransformerConfig, num_layers: int) -> LayerKind | None:
    """None where all blocks are alike, so that their loop carries nothing for it."""
    if c.global_every is None and c.first_norm:
        return None
    index = jnp.arange(num_layers)
    return LayerKind(windowed=index % (c.global_every or 1) != 0, first=index == 0)


def _default_positions(
    input_ids: jax.Array, real: jax.Array | None, segment_ids: jax.Array | None, cache: KVCache | None
) -> jax.Array:
    if segment_ids is not None:
        return F.position_ids_from_segments(segment_ids)
    if real is not None:
        positions = F.position_ids_from_mask(real)
    else:
        positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    if cache is None:
        return positions
    return positions + 1 + jnp.max(jnp.where(cache.valid, cache.positions, -1), axis=-1, keepdims=True)
