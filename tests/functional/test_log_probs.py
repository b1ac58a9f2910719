"""Log-probabilities of tokens and responses: by hand, in chunks, and with padding that holds inf and nan."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F

B, T, D, V = 3, 10, 5, 7
RANDOM = np.random.default_rng(0)
HIDDEN = jnp.asarray(RANDOM.standard_normal((B, T, D)), jnp.float32)
KERNEL = jnp.asarray(RANDOM.standard_normal((D, V)), jnp.float32)
LABELS = jnp.asarray(RANDOM.integers(0, V, (B, T))).at[0, 3].set(-100).at[1, 6:].set(-100)


def test_by_hand():
    logits = jnp.log(jnp.array([[[1.0, 3.0], [2.0, 6.0], [5.0, 5.0]]]))
    labels = jnp.array([[1, 0, -100]])
    found = F.token_log_probs(logits, labels)
    np.testing.assert_allclose(found, [[np.log(3 / 4), np.log(1 / 4), 0]], rtol=1e-6)
    np.testing.assert_allclose(F.sequence_log_probs(found, labels), [np.log(3 / 16)], rtol=1e-6)
    np.testing.assert_allclose(F.sequence_log_probs(found, labels, mean=True), [np.log(3 / 16) / 2], rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_chunks_give_the_same_values_and_gradients(tied):
    weights = jnp.asarray(RANDOM.standard_normal((B, T)), jnp.float32)

    def total(hidden, kernel, find):
        found = find(hidden, F.HeadWeights(kernel.T if tied else kernel, tied=tied))
        return jnp.sum(weights * found), found

    def whole(hidden, head):
        return F.token_log_probs(F.head_logits(hidden, head), LABELS)

    def in_chunks(hidden, head):
        return F.chunked_token_log_probs(hidden, head, LABELS, chunk_tokens=4)

    results = [
        jax.jit(jax.value_and_grad(lambda *args, find=find: total(*args, find), (0, 1), has_aux=True))(HIDDEN, KERNEL)
        for find in (whole, in_chunks)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)
    with pytest.raises(ValueError, match="chunk_tokens is 0, expected at least 1"):
        F.chunked_token_log_probs(HIDDEN, F.HeadWeights(KERNEL), LABELS, chunk_tokens=0)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_padding_holds_reaches_nothing(bad):
    hidden = HIDDEN.at[1, 6:].set(bad)

    def total(hidden, kernel):
        found = F.chunked_token_log_probs(hidden, F.HeadWeights(kernel), LABELS, chunk_tokens=4)
        return jnp.sum(F.sequence_log_probs(found, LABELS))

    got = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, KERNEL)
    expected = jax.jit(jax.value_and_grad(total, (0, 1)))(HIDDEN, KERNEL)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    # Sums of what is given are as safe.
    tokens = F.token_log_probs(F.head_logits(HIDDEN, F.HeadWeights(KERNEL)), LABELS).at[1, 6:].set(bad)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(F.sequence_log_probs(x, LABELS)))(tokens)).all()


def test_a_row_without_labels_is_zero():
    empty = jnp.full((1, 3), -100)
    assert F.sequence_log_probs(jnp.full((1, 3), jnp.nan), empty, mean=True).tolist() == [0.0]


def test_logits_with_a_soft_cap_by_hand():
    head = F.HeadWeights(jnp.array([[1.0, 10.0]]), softcap=2.0)
    logits = F.head_logits(jnp.array([[1.0]]), head)
    np.testing.assert_allclose(logits, [[2 * math.tanh(0.5), 2 * math.tanh(5.0)]], rtol=1e-6)
