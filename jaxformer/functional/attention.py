"""Attention: scaled dot-product attention and multi-head attention.

Other ways to compute the same numbers are in ``kernels``, attention with a cache is in ``decoding``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxformer.functional.linear import linear
from jaxformer.functional.mask import MASKED, Mask
from jaxformer.functional.norm import rms_norm
from jaxformer.functional.positions import Rotary, apply_rotary
from jaxformer.functional.random import dropout


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
    return_weights: bool = False,
) -> Float[Array, "B T N H"] | tuple[Float[Array, "B T N H"], Float[Array, "B N T S"]]:
    """Scaled dot-product attention, ``softmax(cap(scale * Q K^T) + bias, where mask) V``.

    Vaswani et al. 2017, "Attention Is All You Need", equation 1; grouped key/value heads: Ainslie et al. 2023, "GQA";
    soft cap, ``cap(x) = softcap * tanh(x / softcap)``: Gemma 2, section 2. Scores and softmax are float32.

    Args:
        query: one vector per query token and head.
        key: with ``K`` heads where ``K`` divides ``N``; query heads ``n`` of one group share head ``n // (N/K)``.
        value: like ``key``.
        mask: which keys each query may attend to; None means all. Keys and values of padding are zeroed first, so that
            even an inf or nan in them reaches neither the output nor a gradient.
        bias: added to the scaled scores, differentiable.
        scale: factor of the scores, default ``1/sqrt(H)``; T5 uses 1.
        softcap: largest magnitude of the scaled scores.
        dropout_rate: probability of dropping an attention weight.
        dropout_keys: one key per example; None (evaluation) drops nothing.
        return_weights: also return the attention weights, after dropout.

    Returns:
        An array like ``query``, same dtype, and with ``return_weights`` the weights ``[B, N, T, S]`` float32. A query
        that may see nothing gets zeros.

    Raises:
        ValueError: if ``N`` is not a multiple of ``K``.
    """
    (B, T, N, _), S = query.shape, key.shape[1]
    mask = Mask() if mask is None else mask
    key, value = (heads_first(array) for array in zero_padding(mask, key, value))
    drop = None if dropout_keys is None else lambda weights: dropout(weights, dropout_rate, dropout_keys)
    output, _, weights = attend(
        group_heads(query, key.shape[1]),
        key,
        value,
        mask=mask.array(T, S),
        bias=None if bias is None else jnp.broadcast_to(bias, (*bias.shape[:2], T, S)),
        scale=scale,
        softcap=softcap,
        drop=drop,
    )
    output = ungroup_heads(output)
    return (output, weights().reshape(B, N, T, S)) if return_weights else output


class Attended(NamedTuple):
    """Attention of grouped heads, with functions of what is seldom asked for.

    Attributes:
        output: ``[B, K, G, T, H]``.
        log_total: ``[B, K, G, T]``, log of the sum of ``exp(score)``; ``MASKED`` where a query may see nothing.
        weights: ``[B, K, G, T, S]``, after dropout.
    """

    output: Array
    log_total: Callable[[], Array]
    weights: Callable[[], Array]


def attend(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    *,
    mask: Array | None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> Attended:
    """``dot_product_attention`` of grouped heads, with a mask ``[B, T, S]`` and a bias ``[B, N or 1, T, S]``."""
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        heads = (1, 1) if bias.shape[1] == 1 else query.shape[1:3]
        scores = scores + bias.reshape(bias.shape[0], *heads, *bias.shape[2:]).astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, MASKED)
    # Softmax. The maximum is held above MASKED, so that a row with nothing to see has exp(MASKED - maximum) = 0
    # everywhere and returns zeros instead of the mean of all values.
    maximum = lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), MASKED / 2))
    weights = jnp.exp(scores - maximum)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    divisor = jnp.where(total > 0, total, 1.0)
    if drop is not None:
        weights = drop(weights)
    # Dividing after the product touches T x H numbers instead of T x S.
    output = jnp.einsum("bkgts,bksh->bkgth", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return Attended(
        (output / divisor).astype(query.dtype),
        lambda: jnp.where(total > 0, maximum + jnp.log(divisor), MASKED)[..., 0],
        lambda: weights / divisor,
    )


def join(some: Attended, others: Attended) -> Attended:
    """The attention of queries to two sets of keys together, from the attention to each.

    Each is an average of values, whose share is its sum of ``exp(score)`` (Milakov and Gimelshein 2018, "Online
    normalizer calculation for softmax", section 3).
    """
    first, second = some.log_total(), others.log_total()
    share = jax.nn.sigmoid(first - second)[..., None]
    output = some.output * share + others.output * (1.0 - share)
    return Attended(
        output.astype(some.output.dtype),
        lambda: jnp.logaddexp(first, second),
        lambda: jnp.concatenate([some.weights() * share, others.weights() * (1.0 - share)], axis=-1),
    )


def zero_padding(mask: Mask, key: Array, value: Array) -> tuple[Array, Array]:
    """Keys and values ``[B, S, K, H]`` with zeros at padding."""
    padding = mask.key_padding
    if padding is None:
        return key, value
    return jnp.where(padding[:, :, None, None], key, 0), jnp.where(padding[:, :, None, None], value, 0)


def heads_first(x: Float[Array, "B S K H"]) -> Float[Array, "B K S H"]:
    """Heads before tokens, so that the matrix products read whole rows.

    On a CPU at T=256 the forward pass took 6 ms so, 19.5 ms with tokens first.
    """
    return x.transpose(0, 2, 1, 3)


def group_heads(query: Float[Array, "B T N H"], kv_heads: int) -> Float[Array, "B K G T H"]:
    """Query heads in groups that share a key/value head, heads before tokens."""
    B, T, N, H = query.shape
    if N % kv_heads:
        raise ValueError(
            f"attention: {N} query heads and {kv_heads} key/value heads, expected a multiple of the latter"
        )
    return query.reshape(B, T, kv_heads, N // kv_heads, H).transpose(0, 2, 3, 1, 4)


def ungroup_heads(x: Float[Array, "B K G T H"]) -> Float[Array, "B T N H"]:
    """Undoes the grouping of the query heads."""
    B, _, _, T, H = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(B, T, -1, H)


def multi_head_attention(
    x: Float[Array, "B T D"],
    weights: Mapping[str, Any],
    *,
    context: Float[Array, "B S C"] | None = None,
    rotary: Rotary | None = None,
    norm_epsilon: float = 1e-6,
    attention: Callable[..., Any] = dot_product_attention,
    return_weights: bool = False,
    bias_of: Callable[[Array, Array], Array] | None = None,
    **options: Any,
) -> Any:
    """Multi-head attention: project to heads, rotate if asked, attend, join the heads and project back.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2.

    Args:
        x: source of the queries.
        weights: ``{"query": {"kernel" [D, N, H], "bias" [N, H]}, "key": ..., "value": ..., "output": {"kernel"
            [N, H, D], "bias" [D]}}``; ``key`` and ``value`` have ``K`` heads; every bias may be absent. With
            ``"query_norm"`` and ``"key_norm"`` (scales ``[H]``) every query and key head is RMS-normalised before it is
            rotated (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", section 2); with
            scales ``[N H]`` and ``[K H]`` all heads together (OLMo 2). A number ``"clip"`` limits the entries of
            queries, keys and values, after their norms, to that magnitude (OLMo).
        context: source of keys and values (cross-attention), of any width ``C``; default ``x``.
        rotary: angles by which the queries and keys of ``x`` are rotated.
        norm_epsilon: of the norms of queries and keys.
        attention: ``dot_product_attention`` or another way to compute it.
        return_weights: also return the attention weights.
        bias_of: of queries and keys gives the bias of the scores, ``disentangled_bias`` for one.
        **options: of ``attention``: ``mask``, ``bias``, ``scale``, ``softcap``, ``dropout_rate``, ``dropout_keys``.

    Returns:
        An array like ``x``, and with ``return_weights`` the weights ``[B, N, T, S]``.
    """
    query = project_query(x, weights, rotary, norm_epsilon)
    key, value = project_key_value(x if context is None else context, weights, rotary, norm_epsilon)
    if return_weights:
        options["return_weights"] = True
    if bias_of is not None:
        options["bias"] = bias_of(query, key)
    attended = attention(query, key, value, **options)
    if return_weights:
        attended, attention_weights = attended
        return linear(attended, **weights["output"], inputs=2), attention_weights
    return linear(attended, **weights["output"], inputs=2)


def disentangled_bias(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    buckets: Int[Array, "#B T S"],
    position_query: Float[Array, "P N H"],
    position_key: Float[Array, "P N H"],
    scale: float,
) -> Float[Array, "B N T S"]:
    """DeBERTa's terms of content to position and of position to content, ``(q_t k'_p + k_s q'_p) scale``; float32.

    ``p`` is the bucket of the distance between query ``t`` and key ``s``, ``q'`` and ``k'`` are the vectors of the
    buckets, projected as queries and as keys. He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled
    Attention", equation 4; there ``scale`` is ``1/sqrt(3 H)``.

    Args:
        query: of the content.
        key: of the content.
        buckets: of ``disentangled_buckets``.
        position_query: of all ``P`` buckets.
        position_key: likewise.
        scale: of the sum.
    """
    buckets = buckets[:, None]
    to_position = jnp.einsum("btnh,pnh->bntp", query, position_key, preferred_element_type=jnp.float32)
    to_content = jnp.einsum("bsnh,pnh->bnsp", key, position_query, preferred_element_type=jnp.float32)
    first = jnp.take_along_axis(to_position, buckets, axis=-1)
    second = jnp.take_along_axis(to_content, buckets.swapaxes(-1, -2), axis=-1).swapaxes(-1, -2)
    return (first + second) * scale


def project_query(
    x: Float[Array, "B T D"], weights: Mapping[str, Any], rotary: Rotary | None, norm_epsilon: float
) -> Float[Array, "B T N H"]:
    """The queries of ``multi_head_attention``."""
    query = linear(x, **weights["query"])
    if "query_norm" in weights:
        query = head_norm(query, weights["query_norm"], epsilon=norm_epsilon)
    query = clipped(query, weights)
    return query if rotary is None else apply_rotary(query, rotary)


def project_key_value(
    x: Float[Array, "B S D"], weights: Mapping[str, Any], rotary: Rotary | None, norm_epsilon: float
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """The keys and values of ``multi_head_attention``."""
    key, value = linear(x, **weights["key"]), linear(x, **weights["value"])
    if "key_norm" in weights:
        key = head_norm(key, weights["key_norm"], epsilon=norm_epsilon)
    key, value = clipped(key, weights), clipped(value, weights)
    return key if rotary is None else apply_rotary(key, rotary), value


def clipped(heads: Array, weights: Mapping[str, Any]) -> Array:
    """The entries of heads limited to the magnitude ``weights["clip"]``, if there is one."""
    return jnp.clip(heads, -weights["clip"], weights["clip"]) if "clip" in weights else heads


def head_norm(
    heads: Float[Array, "B T N H"], scale: Array, *, epsilon: float, norm: Callable[..., Array] = rms_norm
) -> Float[Array, "B T N H"]:
    """RMS norm of each head by a scale ``[H]``, or of all heads of a token together by a scale ``[N H]``."""
    if scale.size == heads.shape[-1]:
        return norm(heads, scale, epsilon=epsilon)
    return norm(heads.reshape(*heads.shape[:2], -1), scale, epsilon=epsilon).reshape(heads.shape)
