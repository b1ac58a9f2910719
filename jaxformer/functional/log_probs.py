"""Log-probabilities of given tokens and of whole responses, with all logits or in chunks of them."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxformer.functional.losses import IGNORE, HeadWeights, head_logits


def token_log_probs(logits: Float[Array, "*tokens V"], labels: Int[Array, "*tokens"]) -> Float[Array, "*tokens"]:
    """``log p[label] = logits[label] - log sum_v exp(logits[v])`` of every token; float32, nats.

    Args:
        logits: any float dtype.
        labels: -100 where there is nothing to ask for; such tokens give exactly 0 and a zero gradient, whatever their
            logits.
    """
    asked = labels != IGNORE
    # Replaced before the exponential: 0 * nan would be nan in the gradient of a masked token.
    logits = jnp.where(asked[..., None], logits.astype(jnp.float32), 0.0)
    is_label = labels[..., None] == jnp.arange(logits.shape[-1])
    chosen = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jnp.where(asked, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)


def chunked_token_log_probs(
    hidden: Float[Array, "B T D"], head: HeadWeights, labels: Int[Array, "B T"], *, chunk_tokens: int = 1024
) -> Float[Array, "B T"]:
    """``token_log_probs(head_logits(hidden, head), labels)`` with at most ``chunk_tokens`` tokens' logits in memory.

    The logits of a chunk are computed once more in the backward pass, where each token has a gradient of its own.

    Args:
        hidden: last hidden states.
        head: the output layer.
        labels: -100 where there is nothing to ask for.
        chunk_tokens: tokens per chunk, over the whole batch; a chunk is a number of columns of it.

    Raises:
        ValueError: if ``chunk_tokens`` is below 1.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunked_token_log_probs: chunk_tokens is {chunk_tokens}, expected at least 1")
    B, T, D = hidden.shape
    # Whatever an ignored token holds, 0 * nan must not reach the gradient of the kernel.
    hidden = jnp.where((labels != IGNORE)[..., None], hidden, 0)
    chunks = -(-T // min(T, -(-chunk_tokens // B)))
    if chunks == 1:
        return token_log_probs(head_logits(hidden, head), labels)
    columns = -(-T // chunks)
    padding = chunks * columns - T
    # Every so manyth column: where the tokens of a row are split over devices, each has its share of a chunk.
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(B, columns, chunks, D).transpose(2, 0, 1, 3)
    labels = jnp.pad(labels, ((0, 0), (0, padding)), constant_values=IGNORE)
    labels = labels.reshape(B, columns, chunks).transpose(2, 0, 1)

    @jax.checkpoint
    def chunk(hidden: Array, labels: Array) -> Array:
        return token_log_probs(head_logits(hidden, head), labels)

    found = lax.map(lambda pair: chunk(*pair), (hidden, labels))
    return found.transpose(1, 2, 0).reshape(B, -1)[:, :T]


def sequence_log_probs(
    token_log_probs: Float[Array, "B T"], labels: Int[Array, "B T"], *, mean: bool = False
) -> Float[Array, " B"]:
    """``sum_t log p(y_t | x, y_<t)`` of each row's labelled tokens, or their mean; float32, nats.

    Args:
        token_log_probs: of each token.
        labels: -100 at tokens that are not of the response: they count nothing, whatever their log-probability.
        mean: divide by the number of tokens; a row without any gives 0.
    """
    asked = labels != IGNORE
    total = jnp.sum(jnp.where(asked, token_log_probs.astype(jnp.float32), 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(asked, axis=-1), 1) if mean else total
