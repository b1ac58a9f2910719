"""Scaled dot-product and multi-head attention, and the choice of how to compute it.

Every implementation gives the same numbers; one that cannot serve a request says why instead of ignoring a part of it.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxformer.functional.cache import KeyValue, append_key_value, kept
from jaxformer.functional.dropout import dropout
from jaxformer.functional.low_rank import kernel_product
from jaxformer.functional.mask import MASKED, Mask
from jaxformer.functional.norm import rms_norm
from jaxformer.functional.positions import Rotary, apply_rotary
from jaxformer.functional.splash import BLOCKS, HEAD_SIZE, Split, splash_attention

logger = logging.getLogger(__name__)

# Queries per block of the blocked implementation. On two AVX-512 cores at T=256, forward and backward of one layer
# took 10.9 ms with 64 against 15.2 ms unblocked: half the scores are above the diagonal and never computed.
QUERY_BLOCK = 64


class AttentionRequest(NamedTuple):
    """What an implementation must know to accept or refuse a call."""

    mask: Mask
    query_length: int
    key_length: int
    dropout: bool
    platform: str
    bias: bool = False
    head_size: int = 128
    split: Split | None = None


def _splash_refusal(request: AttentionRequest) -> str | None:
    mask, split = request.mask, request.split
    queries, keys = request.query_length, request.key_length
    here = queries // split.parts(split.length) if split else queries
    cached = mask.query_offset is not None or mask.query_positions is not None
    limited = mask.causal or mask.window is not None
    refusals = [
        (request.platform != "tpu", f"it is a kernel for a TPU, not for a {request.platform}"),
        (request.bias, "it adds no bias to the scores"),
        (request.dropout, "it drops no attention weights"),
        (mask.key_prefix is not None, "it has no prefix of keys that every query sees"),
        (cached, "the queries start at an offset or have positions of their own (a cache)"),
        (mask.reach is not None, "the window differs between the layers of one loop and is not known ahead"),
        (queries != keys and limited, f"queries ({queries}) and keys ({keys}) differ in number under a causal mask"),
        (bool(here % BLOCKS[-1]), f"a device has {here} queries, expected a multiple of {BLOCKS[-1]}, its block"),
        (bool(keys % BLOCKS[-1]), f"there are {keys} keys, expected a multiple of {BLOCKS[-1]}, its block"),
        (
            bool(request.head_size % HEAD_SIZE),
            f"heads have size {request.head_size}, expected a multiple of {HEAD_SIZE}",
        ),
    ]
    return next((reason for applies, reason in refusals if applies), None)


def _blocked_refusal(request: AttentionRequest) -> str | None:
    if not request.mask.causal:
        return "the mask is not causal, so no block of scores can be left out"
    if request.mask.key_prefix is not None:
        return "every query sees a prefix of the keys, so no block of scores can be left out"
    if request.mask.query_offset is not None:
        return "the queries start at an offset (a cache), so the blocks on the diagonal are not known ahead"
    if request.query_length != request.key_length:
        return f"queries ({request.query_length}) and keys ({request.key_length}) differ in number"
    if request.dropout:
        return "attention dropout draws for the whole score matrix"
    if request.split is not None and request.split.parts(request.split.length) > 1:
        return "the queries are split over devices, and blocks of them would be gathered"
    return None


def _reference_refusal(request: AttentionRequest) -> str | None:
    return None


# In order of preference; the first that does not refuse is taken by "auto".
REFUSALS: dict[str, Callable[[AttentionRequest], str | None]] = {
    "splash": _splash_refusal,
    "blocked": _blocked_refusal,
    "reference": _reference_refusal,
}


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def choose_implementation(implementation: str, request: AttentionRequest) -> str:
    """The implementation that serves ``request``: the one named, or for ``auto`` the first that does not refuse.

    Raises:
        ValueError: if the name is unknown, or the one named cannot serve; the message carries its reason.
    """
    if implementation == "auto":
        # Blocks save work where scores are computed one after the other; on an accelerator they only add launches.
        names = [name for name in REFUSALS if name != "blocked" or request.platform == "cpu"]
        if request.query_length <= QUERY_BLOCK:
            names = ["reference"]
        chosen = next(name for name in names if REFUSALS[name](request) is None)
        _log_once(f"attention: {chosen} ({request.query_length} queries, {request.key_length} keys)")
        return chosen
    if implementation not in REFUSALS:
        raise ValueError(f"attention: implementation is {implementation!r}, expected auto, {', '.join(REFUSALS)}")
    reason = REFUSALS[implementation](request)
    if reason is not None:
        raise ValueError(f"attention: implementation {implementation!r} cannot serve this call: {reason}; use 'auto'")
    return implementation


def _attend(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Array | None,
    bias: Array | None,
    scale: float,
    softcap: float | None,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "B K G T H"]:
    """Attention over one block of scores; ``mask`` and ``bias`` broadcast to ``[B, K, G, T, S]``."""
    scores = jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    # The maximum is held above MASKED, so that a row with nothing to see has exp(MASKED - maximum) = 0 everywhere
    # and returns zeros instead of the mean of all values.
    maximum = lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), MASKED / 2))
    weights = jnp.exp(scores - maximum)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if drop is not None:
        weights = drop(weights)
    # Dividing after the product touches T x H numbers instead of T x S.
    output = jnp.einsum("bkgts,bksh->bkgth", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (output / jnp.where(total > 0, total, 1.0)).astype(query.dtype)


def _blocked(
    query: Array,
    key: Array,
    value: Array,
    mask: Mask,
    bias: Array | None,
    scale: float,
    softcap: float | None,
) -> Array:
    """Causal attention in blocks of queries, each against only the keys some query of the block may see."""
    length = query.shape[3]
    outputs = []
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        # A window measured by positions (not by index) says nothing static about where its keys begin.
        windowed = mask.window is not None and mask.query_positions is None
        first = max(0, start - mask.window + 1) if windowed and mask.window is not None else 0
        seen = mask.block(start, stop, first, stop)
        outputs.append(
            _attend(
                query[:, :, :, start:stop],
                key[:, :, first:stop],
                value[:, :, first:stop],
                None if seen is None else seen[:, None, None],
                None if bias is None else bias[..., start:stop, first:stop],
                scale,
                softcap,
            )
        )
    return jnp.concatenate(outputs, axis=3)


def dot_product_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    mask: Mask | None = None,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_keys: Array | None = None,
    implementation: str = "auto",
    platform: str | None = None,
    split: Split | None = None,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention, ``softmax(cap(scale * Q K^T) + bias, where mask) V``.

    Vaswani et al. 2017, "Attention Is All You Need", equation 1; grouped key/value heads: Ainslie et al. 2023, "GQA";
    soft cap, ``cap(x) = softcap * tanh(x / softcap)``: Gemma 2, section 2. Scores and softmax are float32.

    Args:
        query: one vector per query token and head.
        key: with ``K`` heads where ``K`` divides ``N``; query heads ``n`` of one group share head ``n // (N/K)``.
        value: like ``key``.
        mask: what may attend to what; None means everything. Keys that are padding are zeroed first, so that even an
            inf or nan in them reaches neither the output nor a gradient.
        bias: added to the scaled scores, differentiable.
        scale: factor of the scores, default ``1/sqrt(H)``; T5 uses 1.
        softcap: largest magnitude of the scaled scores.
        dropout_rate: probability of dropping an attention weight.
        dropout_keys: one key per example; None (evaluation) drops nothing.
        implementation: ``auto``, ``splash`` (a TPU kernel), ``blocked`` (causal, in blocks of queries) or
            ``reference``; same numbers.
        platform: what the program is compiled for; default: what JAX computes on.
        split: how the arrays lie on devices. Where the tokens of a row are split over them, each keeps its queries and
            gets all keys and values (Llama Team 2024, "The Llama 3 Herd of Models", section 3.3.2).

    Returns:
        An array like ``query``, same dtype. A query that may see nothing gets zeros.

    Raises:
        ValueError: if ``N`` is not a multiple of ``K``, or the implementation named cannot serve the call.
    """
    (B, T, N, H), (S, K) = query.shape, key.shape[1:3]
    if N % K:
        raise ValueError(f"attention: {N} query heads and {K} key/value heads, expected a multiple of the latter")
    mask = Mask() if mask is None else mask
    scale = 1.0 / math.sqrt(H) if scale is None else scale
    dropping = dropout_rate > 0 and dropout_keys is not None
    platform = platform or jax.default_backend()
    request = AttentionRequest(mask, T, S, dropping, platform, bias is not None, H, split)
    chosen = choose_implementation(implementation, request)

    padding = mask.key_padding
    if padding is not None:
        key = jnp.where(padding[:, :, None, None], key, 0)
        value = jnp.where(padding[:, :, None, None], value, 0)
    if chosen == "splash":
        return splash_attention(query, key, value, mask, scale=scale, softcap=softcap, split=split)
    # Heads before tokens: the matrix products then read whole rows. On a CPU at T=256 the forward pass took 6 ms so,
    # 19.5 ms with the heads inside.
    grouped = query.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    if split is not None:
        grouped = split.place(grouped, split.batch, split.heads, None, split.length, None)
        key, value = (split.place(array, split.batch, split.heads, None, None) for array in (key, value))
    if bias is not None:
        bias = _grouped_bias(bias, K, N // K, T, S)
    if chosen == "blocked":
        output = _blocked(grouped, key, value, mask, bias, scale, softcap)
    else:
        seen = mask.array(T, S)
        drop = (lambda weights: dropout(weights, dropout_rate, dropout_keys)) if dropping else None
        seen = None if seen is None else seen[:, None, None]
        output = _attend(grouped, key, value, seen, bias, scale, softcap, drop)
    return output.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def cached_attention(
    query: Float[Array, "B T N H"],
    cache: KeyValue,
    *,
    mask: Mask | None = None,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B T N H"]:
    """``dot_product_attention`` of a few new queries with the keys and values of a cache, which lie as it reads them.

    Args:
        query: of the new tokens.
        cache: its places hold finite numbers everywhere, zeros where nothing is.
        mask: over the cache's ``S`` places.
        bias: as in ``dot_product_attention``.
        scale: likewise.
        softcap: likewise.

    Returns:
        An array like ``query``. A query that may see nothing gets zeros.
    """
    B, T, N, H = query.shape
    key, value = (part.astype(query.dtype) for part in cache)
    K, S = key.shape[1:3]
    grouped = query.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    seen = None if mask is None else mask.array(T, S)
    seen = None if seen is None else seen[:, None, None]
    bias = None if bias is None else _grouped_bias(bias, K, N // K, T, S)
    output = _attend(grouped, key, value, seen, bias, 1.0 / math.sqrt(H) if scale is None else scale, softcap)
    return output.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _grouped_bias(bias: Array, kv_heads: int, group: int, queries: int, keys: int) -> Array:
    """``[B, N, T, S]`` to ``[B, K, G, T, S]``; a bias shared by all heads has one head and broadcasts."""
    heads = (1, 1) if bias.shape[1] == 1 else (kv_heads, group)
    return jnp.broadcast_to(bias, (*bias.shape[:2], queries, keys)).reshape(bias.shape[0], *heads, queries, keys)


def project_heads(x: Float[Array, "B T D"], weights: Mapping[str, Any]) -> Float[Array, "B T N H"]:
    """``x @ kernel + bias`` split into heads: ``kernel [D, N, H]``, ``bias [N, H]`` where present."""
    y = kernel_product(x, weights["kernel"])
    return y + weights["bias"].astype(x.dtype) if "bias" in weights else y


def merge_heads(x: Float[Array, "B T N H"], weights: Mapping[str, Any]) -> Float[Array, "B T D"]:
    """Joins the heads and projects them: ``kernel [N, H, D]``, ``bias [D]`` where present."""
    y = kernel_product(x, weights["kernel"], contract=2)
    return y + weights["bias"].astype(x.dtype) if "bias" in weights else y


def multi_head_attention(
    x: Float[Array, "B T D"],
    weights: Mapping[str, Any],
    *,
    context: Float[Array, "B S D"] | KeyValue | None = None,
    mask: Mask | None = None,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    rotary: Rotary | None = None,
    cache: KeyValue | None = None,
    slot: int | Int[Array, ""] | None = None,
    norm_epsilon: float = 1e-6,
    **options: Any,
) -> tuple[Float[Array, "B T D"], KeyValue | None]:
    """Multi-head attention: project to heads, rotate if asked, attend, join the heads and project back.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2.

    Args:
        x: where the queries come from.
        weights: ``{"query": {"kernel" [D, N, H], "bias" [N, H]}, "key": ..., "value": ..., "output": {"kernel"
            [N, H, D], "bias" [D]}}``; ``key`` and ``value`` have ``K`` heads; every bias may be absent. With
            ``"query_norm"`` and ``"key_norm"`` (scales ``[H]``) every query and key head is RMS-normalised before it is
            rotated (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", section 2).
        context: where keys and values come from (cross-attention); default ``x``. It may also be what an earlier call
            returned as the cache of its context: the keys and values themselves.
        mask: as in ``dot_product_attention``; with a ``slot``, over the cache's ``S`` places.
        bias: as in ``dot_product_attention``.
        rotary: angles of the tokens of ``x`` to rotate queries and keys by.
        cache: where keys and values are kept. Those of ``x`` are appended and all are attended to; those of a context
            are returned in its dtype.
        slot: first place of the cache for the tokens of ``x``. None if it holds nothing yet: they then attend among
            themselves, by the same program as without a cache.
        norm_epsilon: of the norms of queries and keys.
        **options: ``scale``, ``softcap``, ``dropout_rate``, ``dropout_keys``, ``implementation``, ``platform`` and
            ``split`` of ``dot_product_attention``.

    Returns:
        The output, like ``x``, and the cache with the new tokens, or the context's (None without a cache).
    """
    if isinstance(context, KeyValue):
        query = project_heads(x, weights["query"])
        if "query_norm" in weights:
            query = rms_norm(query, weights["query_norm"], epsilon=norm_epsilon)
        scores = {name: options.get(name) for name in ("scale", "softcap")}
        output = cached_attention(query, context, mask=mask, bias=bias, **scores)
        return merge_heads(output, weights["output"]), context
    source = x if context is None else context
    query = project_heads(x, weights["query"])
    key, value = project_heads(source, weights["key"]), project_heads(source, weights["value"])
    if "query_norm" in weights:
        query = rms_norm(query, weights["query_norm"], epsilon=norm_epsilon)
        key = rms_norm(key, weights["key_norm"], epsilon=norm_epsilon)
    if rotary is not None:
        query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
    if cache is not None:
        # Nothing that padding holds is kept: attention over the cache masks scores alone.
        real = None if mask is None or slot is not None else mask.key_padding
        new = [part if real is None else jnp.where(real[:, :, None, None], part, 0) for part in (key, value)]
        if context is not None:
            cache = KeyValue(kept(new[0], cache.key), kept(new[1], cache.value))
        else:
            cache = append_key_value(cache, new[0], new[1], 0 if slot is None else slot)
    if cache is not None and slot is not None:
        # Else XLA computes the new cache twice, for the loop and for the scores: on a CPU a step of GPT-2's size
        # with int8 weights took 14.1 instead of 12.9 ms.
        cache = lax.optimization_barrier(cache)
        scores = {name: options.get(name) for name in ("scale", "softcap")}
        output = cached_attention(query, cache, mask=mask, bias=bias, **scores)
        return merge_heads(output, weights["output"]), cache
    output = dot_product_attention(query, key, value, mask=mask, bias=bias, **options)
    return merge_heads(output, weights["output"]), cache
