"""Pooling, cosines and contrastive losses, by hand and against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F

RANDOM = np.random.default_rng(0)
HIDDEN = jnp.asarray(RANDOM.normal(size=(3, 4, 5)), jnp.float32)
REAL = jnp.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [HIDDEN[0, :2].mean(0), HIDDEN[1, 1:].mean(0)]),
        ("first", [HIDDEN[0, 0], HIDDEN[1, 1]]),
        ("last", [HIDDEN[0, 1], HIDDEN[1, 3]]),
    ],
)
def test_pooling_with_padding_on_both_sides(pooling, expected):
    poisoned = HIDDEN.at[0, 2].set(jnp.nan)
    np.testing.assert_allclose(F.pool_states(poisoned, REAL, pooling)[:2], jnp.stack(expected), rtol=1e-6)
    assert F.pool_states(HIDDEN.astype(jnp.bfloat16), REAL, pooling).dtype == jnp.bfloat16


def test_a_text_without_tokens_has_a_finite_gradient():
    gradient = jax.grad(lambda x: jnp.sum(F.cosines(F.pool_states(x, REAL), jnp.ones((3, 5)))))(HIDDEN)
    assert np.isfinite(gradient).all() and not gradient[2].any()


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_unit_and_cosines():
    a, b = HIDDEN[0], HIDDEN[1]
    np.testing.assert_allclose(F.unit(a), unit(a), rtol=1e-6)
    np.testing.assert_allclose(F.cosines(a, b), (unit(a) * unit(b)).sum(-1), rtol=1e-5)
    assert F.cosines(jnp.zeros(3), jnp.ones(3)) == 0


def test_scores_are_scaled_cosines_of_the_allowed():
    queries, candidates = HIDDEN[0], HIDDEN[1:].reshape(8, 5)
    allowed = jnp.arange(32).reshape(4, 8) % 3 > 0
    scores = F.contrastive_scores(queries, candidates, allowed, scale=7.0)
    expected = 7 * unit(queries) @ unit(candidates).T
    np.testing.assert_allclose(scores[allowed], expected[allowed], rtol=1e-5)
    probabilities = jax.nn.softmax(scores)
    assert not probabilities[~allowed].any() and np.allclose(probabilities.sum(-1), 1)


def test_cosent_by_its_sum_over_pairs():
    s, y = np.array([0.3, 0.9, -0.2, 0.5, np.nan]), np.array([1.0, 0.2, 0.2, 0.7, 5.0])
    pairs = [(i, j) for i in range(4) for j in range(4) if y[i] > y[j]]
    expected = np.log(1 + sum(np.exp(20 * (s[j] - s[i])) for i, j in pairs))
    weights = jnp.array([1.0, 1, 1, 1, 0])
    loss, gradient = jax.value_and_grad(F.cosent_loss)(
        jnp.asarray(s, jnp.float32), jnp.asarray(y, jnp.float32), weights
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert np.isfinite(gradient).all() and gradient[4] == 0
    assert F.cosent_loss(jnp.asarray(s, jnp.float32), jnp.ones(5), weights) == 0
