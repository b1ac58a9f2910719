import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F
from jaxformer.functional import MASKED


def masked(logits):
    return [np.flatnonzero(row == MASKED).tolist() for row in np.asarray(logits)]


def test_repetition_penalty_by_hand():
    logits = jnp.array([[2.0, -2.0, 3.0]])
    seen = jnp.array([[True, True, False]])
    np.testing.assert_array_equal(F.repetition_penalty(logits, seen, 2.0), [[1.0, -4.0, 3.0]])


def test_count_penalties_by_hand():
    got = F.count_penalties(jnp.zeros((1, 3)), jnp.array([[0, 1, 3]]), 0.5, 0.25)
    np.testing.assert_array_equal(got, [[0.0, -0.75, -1.25]])


def test_no_ngram_twice_by_hand():
    # The first row is 1 2 3 1 2; the second one 4 4, with a place before it that holds nothing.
    tokens = jnp.array([[1, 2, 3, 1, 2, -1], [-1, -1, -1, 4, 4, -1]])
    logits = jnp.zeros((2, 6))
    assert masked(F.no_repeat_ngram(logits, tokens, 5, 3)) == [[3], []]
    assert masked(F.no_repeat_ngram(logits, tokens, 5, 2)) == [[3], [4]]
    assert masked(F.no_repeat_ngram(logits, tokens, 5, 1)) == [[1, 2, 3], [4]]
    assert masked(F.no_repeat_ngram(logits, tokens, 5, 7)) == [[], []]
    # Token 0 is a token like others, and no token is taken for it.
    assert masked(F.no_repeat_ngram(logits[:1], jnp.array([[0, 5, 0, -1]]), 3, 2)) == [[5]]
    assert masked(F.no_repeat_ngram(logits[:1], jnp.array([[-1, 3, 0, -1]]), 3, 2)) == [[]]


def test_banned_sequences_by_hand():
    tokens = jnp.array([[-1, 1, 2, -1], [1, 2, 1, -1]])
    words = [[5], [2, 3], [1, 2, 4], [9, 1, 2, 0], [1, 1]]
    assert masked(F.ban_sequences(jnp.zeros((2, 6)), tokens, 3, words)) == [[3, 4, 5], [1, 5]]
    # A row shorter than a sequence does not end with it.
    assert masked(F.ban_sequences(jnp.zeros((1, 6)), jnp.array([[2, -1, -1]]), 1, [[1, 2, 0]])) == [[]]
