"""Flax modules that declare parameters (shape, logical axes, initializer) and call the pure functions on them.

Logical axes: ``embed`` D, ``heads`` N, ``kv_heads`` K, ``head`` H, ``mlp`` F, ``vocab`` V, ``position``, ``layers`` L,
``table`` the rows of a small table, ``classes``.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.inputs import Inputs
from jaxformer.models.kernel_layout import kernel_axes
from jaxformer.models.partition import attention_split, one_device, place, platform

Weights = dict[str, Any]

# Name of a kernel or table in parameters that ``generation.prepare`` laid out for decoding.
PACKED = "packed"


def for_products(kernel: Any, numerics: str = "fast") -> Any:
    """The kernel with the products of these numerics; on one device those that are not exact join the tokens' axes."""
    if isinstance(kernel, F.Packed | F.IntegerKernel) or (numerics == "fast" and not one_device()):
        return kernel

    def wrap(kernel: Any) -> Any:
        if numerics == "exact":
            return F.ExactKernel(kernel)
        if numerics == "bfloat16" and not isinstance(kernel, F.Quantized):
            kernel = F.RoundedKernel(kernel)
        return F.JoinedKernel(kernel) if one_device() else kernel

    if isinstance(kernel, F.LowRankKernel):
        parts: Any = {name: wrap(getattr(kernel, name)) for name in ("kernel", "a", "b")}
        return dataclasses.replace(kernel, **parts)
    return wrap(kernel)


class Projection(nn.Module):
    """Declares ``kernel`` and, if asked, ``bias`` of one linear map and returns them.

    Attributes:
        shape: of the kernel, inputs first.
        axes: logical axis names of the kernel.
        use_bias: whether there is a bias, of the shape of the outputs.
        standard_deviation: of the initial kernel.
        numerics: of its products, as in the configuration.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    use_bias: bool
    standard_deviation: float
    numerics: str = "fast"

    @nn.compact
    def __call__(self) -> Weights:
        """The weights, ``{"kernel": ..., "bias": ...}``."""
        normal = nn.initializers.normal(self.standard_deviation)
        if self.has_variable("params", PACKED):
            kernel = self.get_variable("params", PACKED)
        else:
            kernel = self.param("kernel", nn.with_logical_partitioning(normal, self.axes), self.shape)
        weights = {"kernel": for_products(kernel, self.numerics)}
        if self.use_bias:
            outputs = kernel_axes("/".join((*self.path, "kernel"))).outputs
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[-outputs:])
            weights["bias"] = self.param("bias", zeros, self.shape[-outputs:])
        return weights


class Norm(nn.Module):
    """Layer norm or RMS norm, by the configuration."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        c = self.config
        size = (x.shape[-1],)
        neutral = nn.with_logical_partitioning(nn.initializers.constant(1.0 - c.norm_offset), ("embed",))
        scale = self.param("scale", neutral, size) if c.norm_scale else jnp.ones(size)
        if c.norm_offset:
            scale = scale + c.norm_offset
        if c.norm == "rms_norm":
            return (F.exact_rms_norm if c.exact else F.rms_norm)(x, scale, epsilon=c.norm_epsilon)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        bias = self.param("bias", zeros, size) if c.use_bias else None
        return (F.exact_layer_norm if c.exact else F.layer_norm)(x, scale, bias, epsilon=c.norm_epsilon)


class Embedding(nn.Module):
    """Declares one embedding table ``[size, D]`` and returns it."""

    size: int
    width: int
    axes: tuple[str, str]
    standard_deviation: float

    @nn.compact
    def __call__(self) -> Any:
        """The table, an array or ``functional.Packed``."""
        if self.has_variable("params", PACKED):
            return self.get_variable("params", PACKED)
        normal = nn.with_logical_partitioning(nn.initializers.normal(self.standard_deviation), self.axes)
        return self.param("embedding", normal, (self.size, self.width))


class Vector(nn.Module):
    """Declares a vector and returns it.

    Attributes:
        size: of the vector.
        axis: logical axis name.
        parameter: its name, ``bias`` (initially zeros) or ``scale``.
        value: its initial entries.
    """

    size: int
    axis: str
    parameter: str = "bias"
    value: float = 0.0

    @nn.compact
    def __call__(self) -> jax.Array:
        """The vector."""
        initial = nn.with_logical_partitioning(nn.initializers.constant(self.value), (self.axis,))
        return self.param(self.parameter, initial, (self.size,))


class LayerNormWeights(nn.Module):
    """Declares the ``scale`` and ``bias`` of a layer norm that is applied elsewhere, and returns them."""

    size: int

    @nn.compact
    def __call__(self) -> Weights:
        """The weights."""
        initial = {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
        return {
            name: self.param(name, nn.with_logical_partitioning(init, ("embed",)), (self.size,))
            for name, init in initial.items()
        }


class EmbeddingConvolution(nn.Module):
    """DeBERTa v2's convolution of the embedding: what it adds to the first block's output, and the norm of that sum."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> tuple[jax.Array, Weights]:
        """The activated convolution ``[B, T, D]``, zeros at padding, and the norm's ``scale`` and ``bias``."""
        c = self.config
        size, D = c.embedding_conv_size or 1, c.hidden_size
        normal = nn.initializers.normal(kernel_deviation(c, size * D))
        taps = self.param("taps", nn.with_logical_partitioning(normal, (None, None, "embed")), (size, D, D))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        bias = self.param("bias", zeros, (D,))
        x = x if inputs.real is None else jnp.where(inputs.real[..., None], x, 0)
        y = F.token_convolution(x, taps, bias, segment_ids=inputs.segment_ids)
        y = y if inputs.real is None else jnp.where(inputs.real[..., None], y, 0)
        y = activate(
            c, c.embedding_conv_activation, F.dropout(y, c.dropout, DropoutKeys()(c.dropout, inputs.dropout_ids))
        )
        return y, LayerNormWeights(D, name="norm")()


class DropoutKeys(nn.Module):
    """One dropout key per example, from Flax's ``dropout`` stream and the example's number."""

    @nn.compact
    def __call__(self, rate: float, example_ids: jax.Array | None) -> jax.Array | None:
        """The keys, or None where nothing is dropped (``example_ids`` None is evaluation)."""
        if rate == 0.0 or example_ids is None:
            return None
        return F.example_keys(self.make_rng("dropout"), example_ids)


def kernel_deviation(config: TransformerConfig, inputs: int, *, to_residual: bool = False) -> float:
    """Standard deviation of an initial kernel.

    ``normal``: ``initializer_range``, times ``1/sqrt(2L)`` for kernels that write to the residual stream of a pre-norm
    model (Radford et al. 2019, section 2.3). ``fan_in``: ``1/sqrt(inputs)`` (LeCun et al. 1998, section 4.6), as T5.
    """
    if config.initializer == "fan_in":
        return inputs**-0.5
    scaled = to_residual and config.norm_place == "pre"
    return config.initializer_range * ((2 * config.num_layers) ** -0.5 if scaled else 1.0)


def embedding_deviation(config: TransformerConfig) -> float:
    """Standard deviation of an initial embedding; with ``fan_in`` such that what leaves the embedding has 1."""
    if config.initializer == "fan_in":
        return config.hidden_size**-0.5 if config.scale_embedding else 1.0
    return config.initializer_range


class RelativeBias(nn.Module):
    """Declares T5's table of biases and returns it, ``[buckets, N]``."""

    config: TransformerConfig

    @nn.compact
    def __call__(self) -> Any:
        """The table."""
        c = self.config
        std = c.initializer_range if c.initializer == "normal" else c.hidden_size**-0.5
        normal = nn.with_logical_partitioning(nn.initializers.normal(std), ("table", "heads"))
        return self.param("embedding", normal, (c.relative_buckets, c.num_heads))


class Distances(NamedTuple):
    """The states of buckets of distances ``[P, D]``, and the bucket of each query and key ``[1 or B, T, S]``."""

    states: jax.Array
    buckets: jax.Array


class Neighbourhood(NamedTuple):
    """What a token of LongT5's encoder sees: the tokens around it, and summaries of its document.

    Attributes:
        layout: of the blocks of queries.
        bias: of the scores, by the distance, ``[1, N, b, k]``.
        block: ``[B or 1, T]``, the block of tokens that each is summed into; None where there are no summaries.
        visible: ``[B or 1, T, G]`` bool, the summaries that a token sees.
        summary_bias: ``[B or 1, N, T, G]``, of their scores.
    """

    layout: F.Layout
    bias: Any = None
    block: Any = None
    visible: Any = None
    summary_bias: Any = None


class SparseBlocks(NamedTuple):
    """The further blocks that each block of queries sees, ``[N, n - 2, r]``, for ``block_sparse_attention``."""

    chosen: Any


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads, rotary positions and a cache, by the configuration."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: F.Mask,
        *,
        context: jax.Array | F.KeyValue | None = None,
        bias: jax.Array | Distances | Neighbourhood | SparseBlocks | None = None,
        rotary: F.Rotary | None = None,
        cache: F.KeyValue | None = None,
        slot: jax.Array | None = None,
        example_ids: jax.Array | None = None,
        return_weights: bool = False,
    ) -> tuple[jax.Array, F.KeyValue | None, jax.Array | None]:
        """Attends within ``x`` and the cache, or from ``x`` to ``context``.

        Args:
            x: ``[B, T, D]``.
            mask: over ``x``, the cache or the context.
            context: ``[B, S, C]``, C the ``context_width``, or its keys and values, which an earlier call returned.
            bias: of the scores; or the distances that disentangled scores depend on; or a neighbourhood or
                sparse blocks, to which attention is limited.
            rotary: angles of the tokens of ``x``.
            cache: of earlier tokens, to which those of ``x`` are appended; keys and values of a context are returned in
                its dtype.
            slot: first place of the cache for the tokens of ``x``, where rows differ the place of each, ``[B, T]``;
                None if the cache is empty.
            example_ids: numbers of the rows for dropout.
            return_weights: also return the attention weights; only without a cache and with fast numerics.

        Returns:
            The output; the keys and values of the cache or the context, None without a cache; and the weights
            ``[B, N, T, S]`` if they are asked for.
        """
        c = self.config
        D, N, K, H = c.hidden_size, c.num_heads, c.kv_heads, c.head_width
        C = D if context is None else c.context_width
        std, kv_std = kernel_deviation(c, D), kernel_deviation(c, C)
        # Where scores are not scaled, the factor 1/sqrt(H) is part of the initial queries.
        query_std = std if c.scale_scores or c.initializer == "normal" else std * H**-0.5
        out_std = kernel_deviation(c, N * H, to_residual=True)
        weights: Weights = {
            "query": Projection(
                (D, N, H), ("embed", "heads", "head"), c.has_qkv_bias, query_std, c.numerics, name="query"
            )(),
            "key": Projection(
                (C, K, H), ("embed", "kv_heads", "head"), c.has_qkv_bias, kv_std, c.numerics, name="key"
            )(),
            "value": Projection(
                (C, K, H), ("embed", "kv_heads", "head"), c.has_qkv_bias, kv_std, c.numerics, name="value"
            )(),
            "output": Projection(
                (N, H, D), ("heads", "head", "embed"), c.has_output_bias, out_std, c.numerics, name="output"
            )(),
        }
        if c.qk_norm:
            for name, heads, axis in (("query", N, "heads"), ("key", K, "kv_heads")):
                size, axis = (heads * H, axis) if c.qk_norm == "width" else (H, "head")
                scale = Vector(size, axis, "scale", 1.0 - c.norm_offset, name=f"{name}_norm")()
                weights[f"{name}_norm"] = scale + c.norm_offset if c.norm_offset else scale
        if c.qkv_clip is not None:
            weights["clip"] = c.qkv_clip
        options: dict[str, Any] = {"mask": mask, "norm_epsilon": c.norm_epsilon}
        options |= {"scale": c.score_scale, "softcap": c.score_softcap}
        keys = DropoutKeys(name="attention_dropout")(c.attention_dropout, example_ids)
        if isinstance(bias, Distances):
            # The vectors of distances pass the projections of the content (He et al. 2023, "DeBERTaV3").
            projected = {f"position_{name}": F.linear(bias.states, **weights[name]) for name in ("query", "key")}
            options["bias_of"] = partial(F.disentangled_bias, buckets=bias.buckets, scale=c.score_scale, **projected)
        elif not isinstance(bias, SparseBlocks):
            options["bias"] = bias.bias if isinstance(bias, Neighbourhood) else bias
        if c.exact:
            options |= {"context": context, "cache": cache, "slots": slot, "rotary": rotary}
            options |= {"dropout_rate": c.attention_dropout, "dropout_keys": keys}
            return *F.exact_multi_head_attention(x, weights, **options), None
        if isinstance(context, F.KeyValue):
            return F.cached_cross_attention(x, weights, context, **options), context, None
        options["rotary"] = rotary
        if cache is not None and slot is not None:
            return *F.cached_self_attention(x, weights, cache, slot, **options), None
        options |= {
            "context": context,
            "dropout_rate": c.attention_dropout,
            "dropout_keys": keys,
            "attention": partial(
                F.kernel_attention,
                implementation=c.attention_implementation,
                platform=platform(),
                split=attention_split(x.shape[0], x.shape[1], N, K),
            ),
        }
        if isinstance(bias, SparseBlocks):
            options["attention"] = partial(F.block_sparse_attention, size=c.sparse_block_size or 1, chosen=bias.chosen)
        if isinstance(bias, Neighbourhood):
            options["attention"] = self._local(x, weights, bias, mask)
        if cache is not None:
            return *F.prefill_attention(x, weights, cache, **options), None
        if return_weights:
            output, attention_weights = F.multi_head_attention(x, weights, return_weights=True, **options)
            return output, None, attention_weights
        return F.multi_head_attention(x, weights, **options), None, None

    def _local(self, x: jax.Array, weights: Weights, around: Neighbourhood, mask: F.Mask) -> Callable[..., Any]:
        """Attention in blocks, with the sums of blocks of ``x`` as further keys (Guo et al. 2022, section 3.1.2)."""
        c, summaries = self.config, None
        if around.block is not None:
            (B, T, _), (G, real) = x.shape, (around.visible.shape[-1], mask.key_padding)
            states = x if real is None else jnp.where(real[..., None], x, 0)
            sums = F.block_sums(states, jnp.broadcast_to(around.block, (B, T)), G)
            key, value = F.project_key_value(Norm(c, name="summary_norm")(sums), weights, None, c.norm_epsilon)
            if G:  # a text shorter than a block has none
                summaries = F.Summaries(key, value, jnp.broadcast_to(around.visible, (B, T, G)), around.summary_bias)
        return partial(F.local_attention, layout=around.layout, summaries=summaries)


class FeedForward(nn.Module):
    """The feed-forward network, plain or gated, by the configuration."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to every token."""
        c = self.config
        D, inner, bias = c.hidden_size, c.inner_size, c.has_feed_forward_bias
        std, out_std = kernel_deviation(c, D), kernel_deviation(c, inner, to_residual=True)
        weights = {"up": Projection((D, inner), ("embed", "mlp"), bias, std, c.numerics, name="up")()}
        if c.gated:
            weights["gate"] = Projection((D, inner), ("embed", "mlp"), bias, std, c.numerics, name="gate")()
        weights["down"] = Projection((inner, D), ("mlp", "embed"), bias, out_std, c.numerics, name="down")()
        return F.feed_forward(x, weights, activation=c.activation, apart=apart(c))


def apart(config: TransformerConfig) -> Callable[..., Any]:
    """Returns the way in which elementwise functions are compiled, by the numerics."""
    return F.exact_elementwise if config.exact else F.together


def activate(config: TransformerConfig, name: str, x: jax.Array) -> jax.Array:
    """The activation of this name."""
    y: jax.Array = apart(config)(F.ACTIVATIONS[name], x)
    return y


def output_layer(config: TransformerConfig, kernel: Any, bias: jax.Array | None = None) -> F.HeadWeights:
    """The output layer of a kernel ``[D, V]``, or where it is tied of an embedding table ``[V, D]``.

    A packed table is laid out as a kernel already.
    """
    tied = config.tie_embeddings and not isinstance(kernel, F.Packed)
    kernel = for_products(kernel, config.numerics) if config.tie_embeddings else kernel
    return F.HeadWeights(kernel, bias, tied, config.logits_softcap, apart(config))


def untied_head(config: TransformerConfig, width: int) -> Projection:
    """Declares an output layer that is not tied, ``[width, V]``."""
    return Projection(
        (width, config.vocabulary), ("embed", "vocab"), False, kernel_deviation(config, width), config.numerics
    )


def check_ids(name: str, ids: Any, size: int, real: Any = None) -> None:
    """Refuses ids outside a table, for which JAX would look up nan; ids that are not known yet (in jit) pass.

    Raises:
        ValueError: naming the id and the size of the table.
    """
    if isinstance(ids, jax.core.Tracer) or isinstance(real, jax.core.Tracer):
        return
    # With NumPy: in the trace of a program even operations on what is known would be traced.
    ids = np.asarray(ids)
    outside = (ids < 0) | (ids >= size)
    if real is not None:
        outside &= np.asarray(real)
    if outside.any():
        found = int(ids[outside][0])
        raise ValueError(f"{name} has {found}, expected 0 to {size - 1}: the table has {size} rows")


class Embeddings(nn.Module):
    """Token embedding, learned or sinusoidal positions, token types, norm, dropout and projection, as configured.

    Attributes:
        config: of the model.
        own_tokens: False where several embeddings share a token table, which the caller passes.
    """

    config: TransformerConfig
    own_tokens: bool = True

    def setup(self) -> None:
        """Declares the tables."""
        c = self.config
        E, std = c.token_size, embedding_deviation(c)
        if self.own_tokens:
            self.token = Embedding(c.vocabulary, E, ("vocab", "embed"), std)
        if c.has_learned_positions:
            self.position = Embedding(c.max_length + c.first_position, E, ("position", "embed"), std)
        if c.token_types:
            self.token_type = Embedding(c.token_types, E, ("table", "embed"), std)
        if c.embedding_norm:
            self.norm = Norm(c)
        if c.embedding_size is not None:
            # The wide side is split over devices like the width of the model; both are called ``embed`` elsewhere.
            shape, axes = (E, c.hidden_size), (None, "embed")
            self.projection = Projection(shape, axes, True, kernel_deviation(c, E), c.numerics)
        self.dropout_keys = DropoutKeys()

    def __call__(self, inputs: Inputs, table: Any = None) -> jax.Array:
        """Embeds the tokens; padding becomes zeros, so that nothing of it spreads. Positions must be given."""
        c, position_ids, real = self.config, inputs.position_ids, inputs.real
        if inputs.inputs_embeds is None:
            check_ids("input_ids", inputs.input_ids, c.vocabulary, real)
        if c.token_types > 1 and inputs.token_type_ids is not None:
            check_ids("token_type_ids", inputs.token_type_ids, c.token_types, real)
        if c.has_learned_positions:
            check_ids("position_ids", position_ids, c.max_length, real)
        # The rows that are looked up belong to the devices that hold the tokens, and are not split along D.
        table = self.token() if table is None else table
        if not isinstance(table, F.Packed):
            table = place(table, "vocab", None)
        if inputs.inputs_embeds is None:
            x = place(F.take_rows(table, inputs.input_ids), "batch", "length", None)
            if c.scale_embedding:
                x = apart(c)(lambda x: x * c.hidden_size**0.5, x)
        else:
            x = place(inputs.inputs_embeds, "batch", "length", None)
        if c.embedding_norm == "tokens":
            # Nothing of the padding may reach the gradient of the norm.
            x = self.norm(x if real is None else jnp.where(real[..., None], x, 0.0))
        if c.has_learned_positions:
            positions = place(self.position(), "position", None)
            x = x + F.learned_positions(positions, position_ids + c.first_position)
        elif c.positions == "sinusoidal":
            kind = {"halves": c.sinusoidal_halves, "inclusive": c.sinusoidal_inclusive}
            x = x + F.sinusoidal_positions(position_ids + c.first_position, c.token_size, **kind, apart=apart(c))
        if c.token_types:
            # A table of one row has one type, whatever the tokenizer says.
            given = None if c.token_types == 1 else inputs.token_type_ids
            types = jnp.zeros(inputs.shape, int) if given is None else given
            x = x + jnp.take(self.token_type(), types, axis=0)
        if real is not None:
            x = jnp.where(real[..., None], x, 0.0)
        if c.embedding_norm is True:
            x = self.norm(x)
        x = F.dropout(x, c.dropout, self.dropout_keys(c.dropout, inputs.dropout_ids))
        if c.embedding_size is not None:
            x = F.linear(x, **self.projection())
        return place(x.astype(c.dtype), "batch", "length", None)
