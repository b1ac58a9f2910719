"""Log-probabilities of labels and of whole responses, from logits or from hidden states in chunks of tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxformer.functional.apart import together
from jaxformer.functional.chunks import columns_of, join_chunks, split_columns
from jaxformer.functional.linear import linear

IGNORE = -100  # label of a token that does not count, as in PyTorch and Hugging Face


def label_log_probs(
    logits: Float[Array, "*tokens V"], labels: Int[Array, "*tokens"]
) -> tuple[Float[Array, "*tokens"], Float[Array, "*tokens"], Float[Array, "*tokens V"]]:
    """``log p[label] = logits[label] - log Z`` with ``log Z = log sum_v exp(logits[v])`` of every token; float32, nats.

    The log-probability, ``log Z`` and the logits in float32. Where the label is -100 the logits are zeros and the
    log-probability is 0, whatever they were.
    """
    counted = labels != IGNORE
    # Replaced before the exponential: 0 * nan would be nan in the gradient of an ignored token.
    logits = jnp.where(counted[..., None], logits.astype(jnp.float32), 0.0)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # Chosen by comparing, not by index: where tokens or vocabulary are split over devices, nothing is gathered.
    is_label = labels[..., None] == jnp.arange(logits.shape[-1])
    chosen = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jnp.where(counted, chosen - log_z, 0.0), log_z, logits


def token_log_probs(logits: Float[Array, "*tokens V"], labels: Int[Array, "*tokens"]) -> Float[Array, "*tokens"]:
    """``log p[label] = logits[label] - log sum_v exp(logits[v])`` of every token; float32, nats.

    Args:
        logits: any float dtype.
        labels: -100 at tokens that do not count; these give exactly 0 and a zero gradient, whatever their logits.
    """
    return label_log_probs(logits, labels)[0]


@partial(jax.tree_util.register_dataclass, data_fields=["kernel", "bias"], meta_fields=["tied", "softcap", "apart"])
@dataclass(frozen=True)
class HeadWeights:
    """The output layer.

    Attributes:
        kernel: ``[D, V]``, or the embedding table ``[V, D]`` of a tied head.
        bias: ``[V]`` or None.
        tied: whether the kernel is an embedding table.
        softcap: largest magnitude of the logits, ``softcap * tanh(logits / softcap)`` (Gemma 2, section 2); None: none.
        apart: how the cap is computed, ``exact_elementwise`` where a row's bits must be its own.
    """

    kernel: Any
    bias: Any = None
    tied: bool = False
    softcap: float | None = None
    apart: Callable[..., Any] = together


def head_logits(hidden: Float[Array, "*tokens D"], head: HeadWeights) -> Float[Array, "*tokens V"]:
    """``hidden @ kernel + bias``, then the soft cap: the product in the dtype of ``hidden``, the logits float32."""
    logits = linear(hidden, head.kernel.T if head.tied else head.kernel, head.bias, dtype=jnp.float32)
    return logits if head.softcap is None else head.apart(partial(soft_cap, largest=head.softcap), logits)


def soft_cap(x: Float[Array, "..."], largest: float) -> Float[Array, "..."]:
    """``largest * tanh(x / largest)``: nearly ``x`` where that is small, never beyond ``largest``."""
    return largest * jnp.tanh(x / largest)


def zero_ignored(hidden: Float[Array, "B T D"], counted: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
    """Zeros at ignored tokens: whatever they hold, 0 * nan must not reach the gradient of the head's kernel."""
    return jnp.where(counted[..., None], hidden, 0)


def chunked_token_log_probs(
    hidden: Float[Array, "B T D"],
    head: HeadWeights,
    labels: Int[Array, "B T"],
    *,
    chunk_tokens: int = 1024,
    of_logits: Callable[[Array, Array], Array] = token_log_probs,
) -> Float[Array, "B T"]:
    """``token_log_probs(head_logits(hidden, head), labels)`` with at most ``chunk_tokens`` tokens' logits in memory.

    The logits of a chunk are computed once more in the backward pass, where each token has a gradient of its own.

    Args:
        hidden: last hidden states.
        head: the output layer.
        labels: -100 at tokens that do not count.
        chunk_tokens: tokens per chunk, over the whole batch; a chunk is a number of its columns.
        of_logits: ``token_log_probs`` or ``exact_token_log_probs``.

    Raises:
        ValueError: if ``chunk_tokens`` is below 1.
    """
    T = hidden.shape[1]
    columns = columns_of(hidden.shape, chunk_tokens, "chunked_token_log_probs")
    hidden = zero_ignored(hidden, labels != IGNORE)
    if columns == T:
        return of_logits(head_logits(hidden, head), labels)

    @jax.checkpoint
    def chunk(hidden: Array, labels: Array) -> Array:
        return of_logits(head_logits(hidden, head), labels)

    chunks = split_columns(hidden, columns), split_columns(labels, columns, IGNORE)
    return join_chunks(lax.map(lambda pair: chunk(*pair), chunks), T)


def sequence_log_probs(
    token_log_probs: Float[Array, "B T"], labels: Int[Array, "B T"], *, mean: bool = False
) -> Float[Array, " B"]:
    """``sum_t log p(y_t | x, y_<t)`` of each row's labelled tokens, or their mean; float32, nats.

    Args:
        token_log_probs: of ``token_log_probs``.
        labels: -100 at tokens outside of the response; their log-probabilities do not count.
        mean: divide by the number of tokens; a row without any gives 0.
    """
    counted = labels != IGNORE
    total = jnp.sum(jnp.where(counted, token_log_probs.astype(jnp.float32), 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(counted, axis=-1), 1) if mean else total
