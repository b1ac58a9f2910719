"""From logits to the next token: temperature, the filters top-k, top-p, min-p and typical, and the draw."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.functional.mask import MASKED

Number = float | Float[Array, ""] | Float[Array, "B 1"]  # the latter: one for each row


def top_k_logits(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Keeps the ``k`` largest logits of each row (and any tied with the smallest of them); the others are masked.

    Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.
    """
    if k < 1:
        raise ValueError(f"top_k_logits: k is {k}, expected at least 1")
    threshold = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits >= threshold, logits, MASKED)


def top_p_logits(logits: Float[Array, "B V"], p: Number) -> Float[Array, "B V"]:
    """Keeps the smallest set of most probable tokens whose probability reaches ``p``; the others are masked.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1. Tokens as probable as the last of
    the set are also kept.
    """
    if isinstance(p, float) and not 0.0 < p <= 1.0:
        raise ValueError(f"top_p_logits: p is {p}, expected 0 < p <= 1")
    distance = jnp.max(logits, axis=-1, keepdims=True) - logits
    return jnp.where(_nearest_mass(distance, jax.nn.softmax(logits, axis=-1), p), logits, MASKED)


def min_p_logits(logits: Float[Array, "B V"], p: Number) -> Float[Array, "B V"]:
    """Keeps the tokens at least ``p`` times as probable as the most probable one; the others are masked.

    Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", section 3.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.where(probabilities >= p * jnp.max(probabilities, axis=-1, keepdims=True), logits, MASKED)


def typical_logits(logits: Float[Array, "B V"], p: Number) -> Float[Array, "B V"]:
    """Keeps the smallest set of tokens with probability ``p``, taking those nearest to the expected information first.

    The distance is ``|-log p(token) - H|`` with the entropy ``H`` (Meister et al. 2023, "Locally Typical Sampling",
    equation 9).
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    probabilities = jnp.exp(log_probabilities)
    entropy = -jnp.sum(jnp.where(probabilities > 0, probabilities * log_probabilities, 0.0), axis=-1, keepdims=True)
    return jnp.where(_nearest_mass(jnp.abs(-log_probabilities - entropy), probabilities, p), logits, MASKED)


def top_k_by_row(logits: Float[Array, "B V"], k: Int[Array, "B 1"]) -> Float[Array, "B V"]:
    """``top_k_logits`` with a ``k`` for each row, which the program takes as an argument; 0 keeps all."""
    distance = jnp.max(logits, axis=-1, keepdims=True) - logits
    kept = _nearest(distance, lambda near: jnp.sum(near, axis=-1, keepdims=True) >= k) | (k == 0)
    return jnp.where(kept, logits, MASKED)


def _nearest_mass(
    distance: Float[Array, "B V"], probabilities: Float[Array, "B V"], mass: Number
) -> Bool[Array, "B V"]:
    """True for the fewest tokens, the nearest first, that together have this probability.

    True for all if rounding is short.
    """

    def reached(near: Array) -> Array:
        # A rounded sum reaches 1 before the last token.
        return (jnp.sum(jnp.where(near, probabilities, 0.0), axis=-1, keepdims=True) >= mass) & (mass < 1)

    return _nearest(distance, reached)


def _nearest(distance: Float[Array, "B V"], reached: Callable[[Array], Array]) -> Bool[Array, "B V"]:
    """True for the fewest tokens, the nearest first, of which ``reached`` is true.

    The border is found by bisection over the bits of the distances, which are ordered as non-negative floats are: 31
    sums are exact, and faster on a CPU than sorting 50,000 tokens.
    """
    bits = jax.lax.bitcast_convert_type(distance.astype(jnp.float32), jnp.int32)

    def halve(_: Any, limits: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = limits
        middle = low + (high - low) // 2
        enough = reached(bits <= middle)
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    infinity = jnp.int32(0x7F800000)
    limits = jnp.zeros_like(bits[:, :1]), jnp.full_like(bits[:, :1], infinity)
    return bits <= jax.lax.fori_loop(0, 31, halve, limits)[1]


def shape_logits(
    logits: Float[Array, "B V"],
    *,
    temperature: Number = 1.0,
    top_k: int | None = None,
    top_p: Number | None = None,
    min_p: Number | None = None,
    typical_p: Number | None = None,
) -> Float[Array, "B V"]:
    """``logits / temperature`` filtered by top-k, top-p, min-p and typical, in this order; float32.

    Args:
        logits: of the next token.
        temperature: above 0.
        top_k: see ``top_k_logits``.
        top_p: see ``top_p_logits``, applied after top-k.
        min_p: see ``min_p_logits``.
        typical_p: see ``typical_logits``.
    """
    logits = logits.astype(jnp.float32) / temperature
    if top_k is not None:
        logits = top_k_logits(logits, top_k)
    for value, keep in ((top_p, top_p_logits), (min_p, min_p_logits), (typical_p, typical_logits)):
        if value is not None:
            logits = keep(logits, value)
    return logits


def sample_token(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], *, temperature: Number = 1.0, **options: Any
) -> Int[Array, " B"]:
    """Draws one token in each row from ``softmax(shape_logits(logits, ...))``.

    Args:
        logits: of the next token.
        keys: one key per row, so that a row's draw does not depend on its neighbours.
        temperature: above 0; exactly 0 takes the most probable token.
        **options: ``top_k``, ``top_p``, ``min_p``, ``typical_p`` of ``shape_logits``.

    Raises:
        ValueError: if an option is out of range.
    """
    if isinstance(temperature, float) and temperature < 0:
        raise ValueError(f"sample_token: temperature is {temperature}, expected 0 or more")
    if isinstance(temperature, float) and temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = shape_logits(logits, temperature=temperature, **options)
    return jax.vmap(jax.random.categorical)(keys, logits)
