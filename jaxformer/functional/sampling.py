"""From logits to the next token: temperature, top-k, top-p and the draw."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxformer.functional.mask import MASKED


def top_k_logits(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Keeps the ``k`` largest logits of each row (and any tied with the smallest of them); the others are masked.

    Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.
    """
    if k < 1:
        raise ValueError(f"top_k_logits: k is {k}, expected at least 1")
    threshold = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits >= threshold, logits, MASKED)


def top_p_logits(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Keeps the smallest set of most probable tokens whose probability reaches ``p``; the others are masked.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    if not 0.0 < p <= 1.0:
        raise ValueError(f"top_p_logits: p is {p}, expected 0 < p <= 1")
    if p == 1.0:
        return logits  # a rounded sum reaches 1 before the last token
    order = jnp.argsort(-logits, axis=-1)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1).astype(jnp.float32), axis=-1)
    # A token stays if what comes before it has not reached p yet, so the first always stays.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    rank = jnp.argsort(order, axis=-1)
    keep = jnp.take_along_axis(before < p, rank, axis=-1)
    return jnp.where(keep, logits, MASKED)


def sample_token(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Array, " B"]:
    """Draws one token a row from ``softmax(logits / temperature)`` after top-k and then top-p.

    Args:
        logits: of the next token.
        keys: one key per row, so that a row's draw does not depend on its neighbours.
        temperature: above 0; exactly 0 takes the most probable token.
        top_k: see ``top_k_logits``.
        top_p: see ``top_p_logits``, applied to what top-k left.

    Raises:
        ValueError: if an option is out of range.
    """
    if temperature < 0:
        raise ValueError(f"sample_token: temperature is {temperature}, expected 0 or more")
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits.astype(jnp.float32) / temperature
    if top_k is not None:
        logits = top_k_logits(logits, top_k)
    if top_p is not None:
        logits = top_p_logits(logits, top_p)
    return jax.vmap(jax.random.categorical)(keys, logits)
