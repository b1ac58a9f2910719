"""Vectors of texts: pooling of states, cosines, and the losses that train them.

All results and gradients are float32, and finite for finite arguments; a vector of zeros has the cosine 0 with all.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxformer.functional.mask import MASKED

# Lengths below count as this one: torch.nn.functional.normalize has the same.
SHORTEST = 1e-12


def pool_states(hidden: Float[Array, "B T D"], real: Bool[Array, "B T"], pooling: str = "mean") -> Float[Array, "B D"]:
    """One vector a text: the mean of its tokens' states, or the state of the first or the last token.

    Reimers and Gurevych 2019, "Sentence-BERT", section 3; the last token, which has seen all others, of a decoder.

    Args:
        hidden: last hidden states, any float dtype, which the result has too; the mean is taken in float32.
        real: True at tokens, False at padding on any side, whose states do not matter. A text without tokens has the
            mean 0.
        pooling: ``mean``, ``first`` or ``last``.
    """
    if pooling == "mean":
        total = jnp.sum(jnp.where(real[..., None], hidden.astype(jnp.float32), 0.0), axis=1)
        return (total / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]).astype(hidden.dtype)
    last = hidden.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=-1)
    place = jnp.argmax(real, axis=-1) if pooling == "first" else last
    return jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]


def unit(x: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
    """``x / max(|x|, 1e-12)``, float32; the gradient at 0 is finite."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), SHORTEST**2))


def cosines(a: Float[Array, "*rows E"], b: Float[Array, "*rows E"]) -> Float[Array, "*rows"]:
    """``a b / (|a| |b|)`` of each pair of vectors."""
    return jnp.sum(unit(a) * unit(b), axis=-1)


def contrastive_scores(
    queries: Float[Array, "B E"], candidates: Float[Array, "C E"], allowed: Bool[Array, "B C"], *, scale: float = 20.0
) -> Float[Array, "B C"]:
    """``scale cos(q_i, c_j)`` where ``allowed``, else a number that no softmax sees: logits of ``cross_entropy``.

    The cross-entropy of each query's own candidate is InfoNCE with in-batch negatives: van den Oord et al. 2018,
    "Representation Learning with Contrastive Predictive Coding", eq. 4; Henderson et al. 2017, "Efficient Natural
    Language Response Suggestion for Smart Reply", section 4.4 (multiple negatives ranking).

    Args:
        queries: ``q``, any float dtype.
        candidates: ``c``, the positives and negatives of all queries.
        allowed: False where a candidate is none for a query: padding, or a text that is no negative of it.
        scale: inverse of the temperature.
    """
    scores = scale * jnp.einsum("be,ce->bc", unit(queries), unit(candidates), precision=jax.lax.Precision.HIGHEST)
    return jnp.where(allowed, scores, MASKED)


def cosent_loss(
    similarities: Float[Array, " B"],
    labels: Float[Array, " B"],
    weights: Float[Array, " B"],
    *,
    scale: float = 20.0,
) -> Float[Array, ""]:
    """``log(1 + sum exp(scale (s_j - s_i)))`` over the pairs ``i``, ``j`` of examples with ``label_i > label_j``.

    Pairs in the wrong order cost, whatever the labels' distance: Huang et al. 2024, "CoSENT: Consistent Sentence
    Embedding via Similarity Ranking". One value for the whole batch, 0 if all labels are equal.

    Args:
        similarities: ``s``, the cosines of the pairs of texts.
        labels: the true similarities, in any unit.
        weights: 1 for an example, 0 for padding, which may hold anything.
        scale: inverse of the temperature.
    """
    real = weights != 0
    s = jnp.where(real, similarities.astype(jnp.float32), 0.0)
    higher = (labels[:, None] > labels[None, :]) & real[:, None] & real[None, :]
    wrong = jnp.where(higher, scale * (s[None, :] - s[:, None]), MASKED)
    return jax.nn.logsumexp(jnp.concatenate([jnp.zeros(1), wrong.ravel()]))
