"""The block, and the stack of blocks between embeddings and final norm of which every architecture is made."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import RopeScaling, TransformerConfig
from jaxformer.models.experts import ROUTER, Experts
from jaxformer.models.inputs import Inputs
from jaxformer.models.kv_cache import KVCache, extend_by_row, extend_cache
from jaxformer.models.layers import (
    Attention,
    Distances,
    DropoutKeys,
    Embedding,
    EmbeddingConvolution,
    Embeddings,
    FeedForward,
    Neighbourhood,
    Norm,
    RelativeBias,
    SparseBlocks,
    apart,
)
from jaxformer.models.mamba import MIXERS
from jaxformer.models.outputs import Layers
from jaxformer.models.partition import place, platform


class Context(NamedTuple):
    """An encoder's output, as a decoder's cross-attention reads it.

    Attributes:
        hidden: ``[B, S, D]``, last hidden states; not read once a cache holds their keys and values.
        real: ``[B, S]`` bool, False at padding; None if there is none.
        segment_ids: ``[B, S]``, document of each token in a packed row; None if rows are not packed.
    """

    hidden: Any
    real: Any = None
    segment_ids: Any = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Requested:
    """What each block returns besides the residual stream; part of a type, so that nothing asked for costs nothing."""

    attentions: bool = False
    hidden_states: bool = False


class Surroundings(NamedTuple):
    """The inputs that all blocks of a stack share."""

    mask: F.Mask
    rotary: F.Rotary | None
    local_rotary: F.Rotary | None
    bias: Any
    context: Any
    context_mask: F.Mask | None
    example_ids: Any
    slot: Any = None
    requested: Requested = Requested()
    distance: Any = None
    real: Any = None
    starts: Any = None
    convolved: Any = None


class LayerCache(NamedTuple):
    """One layer's keys and values, or a mixer's state, and those of the context after the first call."""

    own: Any
    context: F.KeyValue | None


class LayerOutput(NamedTuple):
    """One layer's output besides the residual stream; None what it does not have or was not asked for.

    Attributes:
        cache: with the new tokens.
        hidden_state: ``[B, T, D]``, the residual stream after the block.
        attention: ``[B, N, T, T]``, attention weights.
        cross_attention: ``[B, N, T, S]``, weights of cross-attention.
    """

    cache: LayerCache | None = None
    hidden_state: Any = None
    attention: Any = None
    cross_attention: Any = None


class StackOutput(NamedTuple):
    """Output of a stack.

    Attributes:
        hidden: ``[B, T, D]``, last hidden states.
        cache: with the new tokens; None if there was none.
        layers: what was asked for of every layer, ``hidden_states``, ``attentions`` and ``cross_attentions``, as in
            ``models.outputs``.
    """

    hidden: jax.Array
    cache: KVCache | None
    layers: dict[str, Layers]


class LayerKind(NamedTuple):
    """Differences of one block from the others of its stack.

    Attributes:
        windowed: whether attention is limited to the configuration's window.
        first: whether it is the first block.
        chosen: the blocks that its block-sparse attention sees at random; None without.
    """

    windowed: Any
    first: Any
    chosen: Any = None


class Block(nn.Module):
    """Attention and feed-forward with residuals; in the decoder of an encoder-decoder, cross-attention between them.

    Pre-norm (Xiong et al. 2020): ``x += f(norm(x))``; post-norm (Vaswani et al. 2017): ``x = norm(x + f(x))``; norms of
    outputs (Liu et al. 2022, "Swin Transformer V2", section 3.2; OLMo 2): ``x += norm(f(x))``; both (Gemma 2):
    ``x += norm2(f(norm1(x)))``; parallel residual (GPT-J, GPT-NeoX): ``x += attention(norm1(x)) +
    feed_forward(norm2(x))``.
    """

    config: TransformerConfig
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, per_layer: tuple[LayerCache | None, LayerKind | None], around: Surroundings
    ) -> tuple[jax.Array, LayerOutput]:
        """Updates the residual stream; the signature is that of a scan body (carry, per layer, broadcast)."""
        c = self.config
        x = place(x, "batch", "length", None)
        cache, kind = per_layer
        feed_forward: Any = (
            FeedForward(c, name="feed_forward") if c.num_experts is None else self._experts(around, cache)
        )

        def read(x: jax.Array, sublayer: str) -> jax.Array:
            return Norm(c, name=f"{sublayer}_norm")(x) if c.norms_inputs else x

        def drop(y: jax.Array, sublayer: str) -> jax.Array:
            name = sublayer if sublayer == "feed_forward" else f"{sublayer}_output"
            return F.dropout(y, c.dropout, DropoutKeys(name=f"{name}_dropout")(c.dropout, around.example_ids))

        def add(x: jax.Array, y: jax.Array, sublayer: str) -> jax.Array:
            if c.norms_outputs:
                y = Norm(c, name=f"{sublayer}_output_norm" if c.norms_inputs else f"{sublayer}_norm")(y)
            x = x + drop(y, sublayer)
            return Norm(c, name=f"{sublayer}_norm")(x) if c.norm_place == "post" else x

        if c.mixer != "attention":
            mixer, state = MIXERS[c.mixer](c, name="mixer"), None if cache is None else cache.own
            y, state = mixer(read(x, "mixer"), around.real, around.starts, state)
            x = add(x, y, "mixer")
            return x, _output(x, around.requested, state, None)
        normed = read(x, "attention")
        if kind is not None and not c.first_norm:
            normed = jnp.where(kind.first, x, normed)
        mask, rotary = _of_this_layer(c, kind, around)
        bias = around.bias
        if kind is not None and kind.chosen is not None:
            bias = SparseBlocks(kind.chosen)
        if c.relative_per_layer:
            bias = _relative_bias(c, RelativeBias(c, name="relative_bias")(), around.distance, mask.causal)
        own = None if cache is None else cache.own
        shared: dict[str, Any] = {"example_ids": around.example_ids, "return_weights": around.requested.attentions}
        y, own, weights = Attention(c, name="attention")(
            normed,
            mask,
            bias=bias,
            rotary=rotary,
            cache=own,
            slot=around.slot,
            **shared,
        )
        if c.parallel_residual:
            other = feed_forward(normed if c.shared_norm else read(x, "feed_forward"))
            x = x + drop(y, "attention") + drop(other, "feed_forward")
            return x, _output(x, around.requested, own, weights)
        x = add(x, y, "attention")
        context = cross_weights = None
        if self.cross:
            known = None if cache is None else cache.context
            y, context, cross_weights = Attention(c, name="cross_attention")(
                read(x, "cross_attention"),
                around.context_mask,
                context=around.context if known is None else known,
                cache=own,
                **shared,
            )
            x = add(x, y, "cross_attention")
        x = add(x, feed_forward(read(x, "feed_forward")), "feed_forward")
        if around.convolved is not None and kind is not None:
            more, weights_of_norm = around.convolved
            x = jnp.where(kind.first, F.layer_norm(x + more, **weights_of_norm, epsilon=c.norm_epsilon), x)
        return x, _output(x, around.requested, own, weights, context, cross_weights)

    def _experts(self, around: Surroundings, cache: LayerCache | None) -> Any:
        """The feed-forward of several experts; with a cache, of which the mask is, nothing is trained."""
        real = around.mask.key_padding if cache is None else None
        experts: Any = Experts(self.config, name="experts")
        return partial(experts, real=real)


def _output(
    x: jax.Array, requested: Requested, own: Any, weights: Any, context: Any = None, cross_weights: Any = None
) -> LayerOutput:
    cache = None if own is None else LayerCache(own, context)
    return LayerOutput(cache, x if requested.hidden_states else None, weights, cross_weights)


# Farther than any two tokens are apart.
_EVERYWHERE = 2**30


def _of_this_layer(
    c: TransformerConfig, kind: LayerKind | None, around: Surroundings
) -> tuple[F.Mask, F.Rotary | None]:
    """Mask and rotary angles of one block: all blocks are one loop, so that differences are chosen by number."""
    if kind is None or c.window is None or not c.has_mixed_windows:
        return around.mask, around.rotary
    reach = jnp.where(kind.windowed, c.window, _EVERYWHERE)
    mask = dataclasses.replace(around.mask, window=None, reach=reach)
    if around.rotary is None or around.local_rotary is None:
        return mask, around.rotary
    angles = jax.tree.map(partial(jnp.where, kind.windowed), around.local_rotary, around.rotary)
    return mask, angles


def _relative_bias(c: TransformerConfig, table: Any, distance: jax.Array, causal: bool) -> jax.Array:
    return F.relative_bias(table, distance, bidirectional=not causal, max_distance=c.relative_max_distance)


# "dots" keeps the products with weights for the backward pass, but not the attention scores.
REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def stacked_blocks(config: TransformerConfig, cross: bool = False) -> nn.Module:
    """The blocks with their parameters stacked on a leading ``L`` axis, run as one compiled loop.

    Called like one ``Block``, with a leading axis on the inputs that differ from layer to layer. With ``share_layers``
    the parameters are those of one block, without that axis, used ``L`` times (Lan et al. 2020, "ALBERT", section 3.1).
    """
    num_layers, block = config.num_layers, Block
    if config.remat != "none":
        # In a scan, the loop itself keeps XLA from merging the recomputation with the forward pass.
        block = nn.remat(Block, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
    # Unrolled, every layer's slice of the stacked kernels is held from forward to backward: remat would save nothing.
    unroll = config.unroll or (num_layers if platform() == "cpu" and config.remat == "none" else 1)
    shared: dict[str, Any] = {
        "variable_broadcast": "params",
        "variable_axes": {ROUTER: 0},
        "split_rngs": {"params": False, "dropout": True},
    }
    stacked: dict[str, Any] = {
        "variable_axes": {"params": 0, ROUTER: 0},
        "split_rngs": {"params": True, "dropout": True},
    }
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
    """Blocks with separate parameters, ``{"0": ..., "1": ...}``; called like stacked ones.

    For decoding: a layer's weights and cache are then read in place. From stacked ones they would be copied first,
    which takes as long as the product with one token.
    """

    config: TransformerConfig
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, per_layer: tuple[tuple[LayerCache, ...] | None, LayerKind | None], around: Surroundings
    ) -> tuple[jax.Array, tuple[LayerOutput, ...]]:
        """As ``Block``, with a tuple of caches and of outputs."""
        caches, kinds = per_layer
        shared = Block(self.config, self.cross, name="0") if self.config.share_layers else None
        outputs = []
        for i in range(self.config.num_layers):
            block = shared or Block(self.config, self.cross, name=str(i))
            kind = None if kinds is None else LayerKind(*(None if of_all is None else of_all[i] for of_all in kinds))
            x, output = block(x, (None if caches is None else caches[i], kind), around)
            outputs.append(output)
        return x, tuple(outputs)


class Stack(nn.Module):
    """Embeddings, blocks, final norm: tokens in, last hidden states out.

    Attributes:
        config: of the model.
        causal: whether a token sees only itself and the tokens before it.
        cross: whether the blocks also attend to a context (an encoder's hidden states).
        own_tokens: False where the token table is shared and passed by the caller.
    """

    config: TransformerConfig
    causal: bool = True
    cross: bool = False
    own_tokens: bool = True

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        # Separate in the parameters that were laid out for decoding or encoding, else stacked.
        self.stacked = "0" not in self.variables.get("params", {}).get("layers", {})
        self.embeddings = Embeddings(c, self.own_tokens)
        if self.stacked:
            self.layers = stacked_blocks(c, self.cross)
        else:
            self.layers = SeparateBlocks(c, self.cross)
        if c.norm_place != "post":
            self.final_norm = Norm(c)
        if c.has_relative_bias and not c.relative_per_layer:
            self.relative_bias = RelativeBias(c)
        if c.embedding_conv_size is not None:
            self.embedding_conv = EmbeddingConvolution(c)
        if c.summary_size is not None:
            self.summary_bias = RelativeBias(c)
        if c.positions == "disentangled":
            size = (2 * c.relative_buckets, c.hidden_size)
            self.distances = Embedding(*size, ("table", "embed"), c.initializer_range)
            self.distance_norm = Norm(c)

    def hidden_states(
        self, inputs: Inputs, context: Context | None = None, table: jax.Array | None = None
    ) -> StackOutput:
        """The last hidden states ``[B, T, D]``, the cache with the new tokens, and what was asked for of every layer.

        Args:
            inputs: of the model.
            context: for cross-attention.
            table: ``[V, D]``, the token embedding, where it is shared.

        Raises:
            ValueError: if the row is longer than ``max_length`` or the cache, inputs exclude each other, or attention
                weights are asked for with a cache or exact numerics.
        """
        c, inputs = self.config, inputs.arrays()
        self._check(inputs)
        T = inputs.shape[1]
        cache = inputs.cache
        position_ids = _positions(inputs) if inputs.position_ids is None else inputs.position_ids
        slot = order = None
        sparse = c.is_sparse(T)
        if c.exact or c.mixer != "attention" or sparse:
            inputs, position_ids, order = _real_first(inputs, position_ids)
            context = None if context is None else _context_first(context)
        real, segment_ids = inputs.real, inputs.segment_ids
        if cache is None:
            prefix = None if inputs.prefix_mask is None else inputs.prefix_mask.astype(bool)
            mask = F.Mask(self.causal, c.window, real, segment_ids, segment_ids, key_prefix=prefix)
        elif c.exact or cache.by_row:
            now = jnp.ones(inputs.shape, bool) if real is None else real
            cache, mask, slot = extend_by_row(cache, now, position_ids, c.window)
        else:
            slot = None if cache.empty else cache.slot
            cache, mask = extend_cache(cache, real, position_ids, c.window)
        if inputs.inputs_embeds is not None and self.causal and c.scales_given_embeds:
            inputs = inputs._replace(inputs_embeds=inputs.inputs_embeds * c.hidden_size**0.5)
        embedding = x = self.embeddings(inputs._replace(position_ids=position_ids), table)
        keys = T if slot is None or cache is None else cache.valid.shape[1]
        neighbourhood = None
        if c.encoder_window is not None:
            neighbourhood = self._neighbourhood(T, real, segment_ids, whole=bool(inputs.output_attentions))
        rotary, local_rotary, bias, distance = self._position_scheme(position_ids, mask, (T, keys), neighbourhood)
        bias = bias if neighbourhood is None else neighbourhood._replace(bias=bias)
        context_mask = None
        if context is not None:
            segments = None if context.segment_ids is None else segment_ids
            context_mask = F.Mask(key_valid=context.real, query_segments=segments, key_segments=context.segment_ids)
        hidden = None if context is None else context.hidden
        requested = Requested(bool(inputs.output_attentions), bool(inputs.output_hidden_states))
        around = Surroundings(
            mask, rotary, local_rotary, bias, hidden, context_mask, inputs.dropout_ids, slot, requested, distance
        )
        if c.embedding_conv_size is not None:
            around = around._replace(convolved=self.embedding_conv(embedding, inputs))
        if c.mixer != "attention":
            around = around._replace(real=real, starts=_starts(segment_ids))
        kinds = _layer_kinds(c, _chosen_blocks(c, T, inputs.dropout_ids is not None) if sparse else None)
        caches = None if cache is None else self._split(cache)
        x, outputs = self.layers(x, (caches, kinds), around)
        if c.norm_place != "post":
            x = self.final_norm(x)
        cache = None if cache is None else self._joined(cache, outputs)
        layers = self._requested_of(outputs, requested)
        if requested.hidden_states:
            blocks = layers["hidden_states"]
            layers["hidden_states"] = (embedding, *((*blocks[:-1], x) if c.norms_last_state else blocks))
        if order is not None:
            back = jnp.argsort(order, axis=1)[..., None]
            x, layers = jax.tree.map(lambda states: jnp.take_along_axis(states, back, axis=1), (x, layers))
        return StackOutput(x, cache, layers)

    def _neighbourhood(self, length: int, real: Any, segment_ids: Any, whole: bool) -> Neighbourhood:
        """The blocks in which the tokens of a long text attend to those around them, and the summaries of the rest.

        Args:
            length: tokens of a row.
            real: ``[B, T]`` bool or None.
            segment_ids: ``[B, T]`` or None.
            whole: as one block, which has all weights at hand.
        """
        c = self.config
        window, size = c.encoder_window or length, c.summary_size
        layout = F.Layout(length, 1, 0, 0) if whole else F.local_layout(length, window)
        if size is None:
            return Neighbourhood(layout)
        segments = segment_ids if segment_ids is not None else None if real is None else real.astype(jnp.int32)
        if segments is None:
            segments = jnp.ones((1, length), jnp.int32)
        block, document = F.summary_blocks(segments, size)
        distance = jnp.arange(length // size) - block[..., None]
        visible = (document[:, None] == segments[..., None]) & (segments[..., None] > 0)
        bias = _relative_bias(c, self.summary_bias(), distance, causal=False)
        return Neighbourhood(layout, None, block, visible, bias)

    def _requested_of(self, outputs: Any, requested: Requested) -> dict[str, Layers]:
        """Returns the requested outputs of every layer, by their names in the output of a model."""
        names = {"hidden_states": "hidden_state"} if requested.hidden_states else {}
        if requested.attentions:
            names |= {"attentions": "attention"} | ({"cross_attentions": "cross_attention"} if self.cross else {})
        if self.stacked:
            return {name: tuple(jnp.unstack(getattr(outputs, field))) for name, field in names.items()}
        return {name: tuple(getattr(output, field) for output in outputs) for name, field in names.items()}

    def _split(self, cache: KVCache) -> Any:
        """The cache of each layer."""
        if self.stacked:
            return LayerCache(cache.layers, cache.context)
        contexts = cache.context or (None,) * len(cache.layers)
        return tuple(LayerCache(own, context) for own, context in zip(cache.layers, contexts, strict=True))

    def _joined(self, cache: KVCache, outputs: Any) -> KVCache:
        """The cache with those that the layers returned."""
        if self.stacked:
            return dataclasses.replace(cache, layers=outputs.cache.own, context=outputs.cache.context)
        caches = [output.cache for output in outputs]
        context = tuple(layer.context for layer in caches) if self.cross else None
        return dataclasses.replace(cache, layers=tuple(layer.own for layer in caches), context=context)

    def _position_scheme(
        self,
        position_ids: jax.Array,
        mask: F.Mask,
        lengths: tuple[int, int],
        neighbourhood: Neighbourhood | None = None,
    ) -> tuple[F.Rotary | None, F.Rotary | None, Any, jax.Array | None]:
        """Rotary angles, those of blocks with a window, the bias of the scores that all blocks share, and distances.

        Each None where the configuration has none.
        """
        c = self.config
        rotary = local_rotary = distance = None
        bias: Any = None
        if c.positions == "rotary":
            rotary = _rotary(c, position_ids, c.rope_theta, c.rope_scaling)
            local_rotary = None if c.local_rope_theta is None else _rotary(c, position_ids, c.local_rope_theta, None)
        elif c.positions == "alibi":
            bias = F.alibi_bias(mask.distance(*lengths), c.num_heads)
        elif c.positions == "disentangled":
            buckets = F.disentangled_buckets(
                -mask.distance(*lengths), num_buckets=c.relative_buckets, max_distance=c.relative_max_distance
            )
            bias = Distances(self.distance_norm(self.distances()).astype(c.dtype), buckets)
        elif c.has_relative_bias:
            distance = mask.distance(*lengths) if neighbourhood is None else neighbourhood.layout.distance()
            if not c.relative_per_layer:
                bias = _relative_bias(c, self.relative_bias(), distance, self.causal)
        return rotary, local_rotary, bias, distance

    def _check(self, inputs: Inputs) -> None:
        embeds, width = inputs.inputs_embeds, self.config.token_size
        if embeds is not None and (embeds.ndim != 3 or embeds.shape[-1] != width):
            raise ValueError(f"inputs_embeds has the shape {embeds.shape}, expected [B, T, {width}] as the token table")
        length, cache = inputs.shape[1], inputs.cache
        longest = self.config.max_length if cache is None else cache.valid.shape[1]
        if length > longest and not (cache is not None and cache.ring):
            what = "max_length" if cache is None else "the cache's length"
            name = "input_ids" if embeds is None else "inputs_embeds"
            raise ValueError(f"{name} has {length} tokens a row, expected at most {longest} ({what}); shorten it")
        if inputs.segment_ids is not None and self.config.is_sparse(length):
            raise ValueError(
                f"segment_ids are given for block-sparse attention of {length} tokens, expected one text a row: do not "
                "pack texts, or give sparse_block_size null"
            )
        if inputs.segment_ids is not None and cache is not None:
            raise ValueError("segment_ids and a cache are both given, expected one: a cache holds one document a row")
        if inputs.prefix_mask is not None and cache is not None:
            raise ValueError("prefix_mask and a cache are both given, expected one: a cache is filled token by token")
        if not self.causal and (inputs.prefix_mask is not None or cache is not None):
            raise ValueError("prefix_mask or a cache is given to an encoder, expected neither: every token sees all")
        for name in ("decoder_input_ids", "decoder_inputs_embeds"):
            if getattr(inputs, name) is not None:
                raise ValueError(f"{name} is given, expected None: only an encoder-decoder reads it")
        for name in ("output_attentions", "output_hidden_states"):
            if isinstance(getattr(inputs, name), jax.core.Tracer):
                raise ValueError(f"{name} is an argument of a jitted function, expected one of its static_argnames")
        mixer = self.config.mixer
        if mixer != "attention" and (inputs.output_attentions or inputs.prefix_mask is not None):
            name = "output_attentions" if inputs.output_attentions else "prefix_mask"
            raise ValueError(f"{name} is given to a model with mixer {mixer}, expected none: it has no attention")
        if inputs.output_attentions and self.config.exact:
            raise ValueError(
                "output_attentions is true and numerics exact, expected fast: exact attention has no weights"
            )
        if inputs.output_attentions and cache is not None:
            raise ValueError("output_attentions and a cache are both given, expected one: give the whole text at once")


def _starts(segment_ids: jax.Array | None) -> jax.Array | None:
    """``[B, T]`` bool, True at the first token of each document of a packed row."""
    if segment_ids is None:
        return None
    return jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)


def _rotary(c: TransformerConfig, position_ids: jax.Array, theta: float, scale: RopeScaling | None) -> F.Rotary:
    scaling = None if scale is None else F.RotaryScaling(**scale.model_dump())
    lengths = jnp.max(position_ids, axis=-1) + 1
    frequencies = F.rotary_frequencies(c.rotary_size, theta=theta, scaling=scaling, lengths=lengths)
    magnitude = 1.0 if scaling is None else scaling.magnitude
    return F.rotary_angles(position_ids, frequencies, magnitude, adjacent=c.rotary_adjacent, apart=apart(c))


def _real_first(inputs: Inputs, position_ids: jax.Array) -> tuple[Inputs, jax.Array, jax.Array | None]:
    """Inputs and positions with the real tokens of each row first, and the order; None where none is padding."""
    if inputs.real is None:
        return inputs, position_ids, None
    order = jnp.argsort(~inputs.real, axis=1, stable=True)

    def sort(array: Any) -> Any:
        if array is None:
            return None
        return jnp.take_along_axis(array, order if array.ndim == 2 else order[..., None], axis=1)

    names = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "segment_ids", "prefix_mask")
    return inputs._replace(**{name: sort(getattr(inputs, name)) for name in names}), sort(position_ids), order


def _context_first(context: Context) -> Context:
    """A context with the real tokens of each row first."""
    if context.real is None:
        return context
    order = jnp.argsort(~context.real, axis=1, stable=True)
    hidden, segments = context.hidden, context.segment_ids
    return Context(
        None if hidden is None else jnp.take_along_axis(hidden, order[..., None], axis=1),
        jnp.take_along_axis(context.real, order, axis=1),
        None if segments is None else jnp.take_along_axis(segments, order, axis=1),
    )


def _chosen_blocks(c: TransformerConfig, length: int, training: bool) -> jax.Array:
    """``[L, N, n - 2, r]``, the blocks that block-sparse attention sees at random: in evaluation all the first one."""
    count, number = -(-length // (c.sparse_block_size or 1)), c.num_random_blocks
    if not training:
        return jnp.zeros((c.num_layers, c.num_heads, count - 2, number), jnp.int32)
    return jnp.array([F.random_blocks(c.num_heads, count, number, layer) for layer in range(c.num_layers)])


def _layer_kinds(c: TransformerConfig, chosen: jax.Array | None = None) -> LayerKind | None:
    """None where all blocks are alike, so that their loop carries nothing for it."""
    if not c.has_mixed_windows and c.first_norm and chosen is None and c.embedding_conv_size is None:
        return None
    windowed = jnp.array([c.has_window(layer) for layer in range(c.num_layers)])
    return LayerKind(windowed, jnp.arange(c.num_layers) == 0, chosen)


def _positions(inputs: Inputs) -> jax.Array:
    """Default position ids."""
    if inputs.segment_ids is not None:
        return F.position_ids_from_segments(inputs.segment_ids)
    real, cache = inputs.real, inputs.cache
    if real is not None:
        positions = F.position_ids_from_mask(real)
    else:
        positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    if cache is None:
        return positions
    return positions + 1 + jnp.max(jnp.where(cache.valid, cache.positions, -1), axis=-1, keepdims=True)
