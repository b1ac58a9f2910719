"""Penalties and bans of next tokens by the tokens written so far."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxformer.functional.mask import MASKED
from jaxformer.functional.sampling import Number


def repetition_penalty(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Number) -> Float[Array, "B V"]:
    """Divides the positive logits of tokens seen before by ``penalty`` and multiplies the negative ones.

    Keskar et al. 2019, "CTRL", section 4.1, in the form that also holds for negative logits.
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def count_penalties(
    logits: Float[Array, "B V"],
    counts: Int[Array, "B V"],
    presence: Number = 0.0,
    frequency: Number = 0.0,
) -> Float[Array, "B V"]:
    """``logits - presence * (count > 0) - frequency * count``, as in the completion interfaces of language models.

    Args:
        logits: of the next token.
        counts: number of times each token was written.
        presence: penalty of a token that was written at all.
        frequency: penalty for each time it was written.
    """
    return logits - presence * (counts > 0) - frequency * counts


def no_repeat_ngram(
    logits: Float[Array, "B V"], tokens: Int[Array, "B S"], length: Int[Array, ""] | int, n: int
) -> Float[Array, "B V"]:
    """Masks every token that would complete an n-gram that the row already has.

    Paulus et al. 2018, "A Deep Reinforced Model for Abstractive Summarization", section 2.5, for any n.

    Args:
        logits: of the next token.
        tokens: the rows so far, -1 where there is none (before a shorter prompt, and after ``length``).
        length: number of places taken.
        n: length of the n-gram, at least 1.
    """
    B, S = tokens.shape
    last = _last(tokens, length, n - 1)
    windows = S - n + 1
    if windows < 1:
        return logits
    same = jnp.all(last >= 0, axis=1, keepdims=True) & jnp.ones((B, windows), bool)
    for i in range(n - 1):
        same = same & (tokens[:, i : i + windows] == last[:, i : i + 1])
    following = tokens[:, n - 1 :]
    banned = jnp.zeros(logits.shape, bool)
    # A place without a token (-1) bans token 0 with False, which changes nothing.
    banned = banned.at[jnp.arange(B)[:, None], jnp.maximum(following, 0)].max(same & (following >= 0))
    return jnp.where(banned, MASKED, logits)


def ban_sequences(
    logits: Float[Array, "B V"], tokens: Int[Array, "B S"], length: Int[Array, ""] | int, words: Sequence[Sequence[int]]
) -> Float[Array, "B V"]:
    """Masks the last token of each of these sequences in rows that end with the tokens before it.

    Args:
        logits: of the next token.
        tokens: as in ``no_repeat_ngram``.
        length: number of places taken.
        words: sequences of token ids, none of them empty.
    """
    single = sorted({word[0] for word in words if len(word) == 1})
    if single:
        logits = logits.at[:, jnp.array(single)].set(MASKED)
    for word in words:
        if 1 < len(word) <= tokens.shape[1]:
            ends = jnp.all(_last(tokens, length, len(word) - 1) == jnp.array(word[:-1]), axis=1)
            logits = logits.at[:, word[-1]].set(jnp.where(ends, MASKED, logits[:, word[-1]]))
    return logits


def bias_sequences(
    logits: Float[Array, "B V"],
    tokens: Int[Array, "B S"],
    length: Int[Array, ""] | int,
    biases: Sequence[tuple[Sequence[int], float]],
) -> Float[Array, "B V"]:
    """Adds a bias to the last token of each of these sequences in rows that end with the tokens before it.

    Args:
        logits: of the next token.
        tokens: as in ``no_repeat_ngram``.
        length: number of places taken.
        biases: sequences of token ids, none of them empty, each with its bias.
    """
    added = jnp.zeros(logits.shape, jnp.float32)
    for word, bias in biases:
        if len(word) <= tokens.shape[1]:
            ends = jnp.all(_last(tokens, length, len(word) - 1) == jnp.array(word[:-1], jnp.int32), axis=1)
            added = added.at[:, word[-1]].add(jnp.where(ends, bias, 0.0))
    return logits + added


def length_decay(
    logits: Float[Array, "B V"], ends: Int[Array, " E"], beyond: Int[Array, ""], factor: float | Float[Array, ""]
) -> Float[Array, "B V"]:
    """Makes the ends of a text more probable by ``|logit| (factor^beyond - 1)``; masked ones stay masked.

    Args:
        logits: of the next token.
        ends: tokens that end a text.
        beyond: number of tokens written after the length from which on this is done; below 1 nothing changes.
        factor: above 1: more probable.
    """
    found = logits[:, ends]
    grown = found + jnp.abs(found) * (factor ** jnp.maximum(beyond, 0).astype(jnp.float32) - 1.0)
    return logits.at[:, ends].set(jnp.where((beyond > 0) & (found > MASKED / 2), grown, found))


def _last(tokens: Int[Array, "B S"], length: Int[Array, ""] | int, count: int) -> Int[Array, "B count"]:
    """The last tokens before ``length``; -1 where the row is shorter."""
    padded = jnp.pad(tokens, ((0, 0), (count, 0)), constant_values=-1)
    return jax.lax.dynamic_slice_in_dim(padded, length, count, axis=1)
