import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.functional import (
    MASKED,
    example_keys,
    min_p_logits,
    sample_token,
    top_k_logits,
    top_p_logits,
    typical_logits,
)

KEY = jax.random.key(3)


def logits_of(*probabilities):
    return jnp.log(jnp.array([probabilities], jnp.float32))


def kept(logits):
    return (np.asarray(logits) != np.float32(MASKED)).astype(int).tolist()


def test_top_k_by_hand():
    logits = jnp.array([[1.0, 4.0, 3.0, 2.0], [9.0, 8.0, 7.0, 10.0]])
    assert kept(top_k_logits(logits, 1)) == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert kept(top_k_logits(logits, 2)) == [[0, 1, 1, 0], [1, 0, 0, 1]]
    np.testing.assert_array_equal(top_k_logits(logits, 4), logits)
    np.testing.assert_array_equal(top_k_logits(logits, 99), logits)


def test_top_k_keeps_ties():
    assert kept(top_k_logits(jnp.array([[2.0, 1.0, 2.0, 2.0]]), 2)) == [[1, 0, 1, 1]]


def test_top_p_by_hand():
    logits = logits_of(0.1, 0.4, 0.2, 0.3)
    assert kept(top_p_logits(logits, 0.01)) == [[0, 1, 0, 0]]  # the first always stays
    assert kept(top_p_logits(logits, 0.39)) == [[0, 1, 0, 0]]
    assert kept(top_p_logits(logits, 0.41)) == [[0, 1, 0, 1]]
    assert kept(top_p_logits(logits, 0.75)) == [[0, 1, 1, 1]]
    assert kept(top_p_logits(logits, 0.95)) == [[1, 1, 1, 1]]


def test_top_p_of_one_keeps_even_what_rounding_would_drop():
    logits = jnp.array([[0.0, -30.0, -40.0]])
    np.testing.assert_array_equal(top_p_logits(logits, 1.0), logits)


def test_top_p_after_top_k():
    # top-k leaves 0.4 and 0.3, that is 4/7 and 3/7: a p of 0.5 then keeps the first only.
    logits = jnp.repeat(logits_of(0.1, 0.4, 0.2, 0.3), 200, axis=0)
    draws = sample_token(logits, example_keys(KEY, jnp.arange(200)), top_k=2, top_p=0.5)
    assert set(np.asarray(draws).tolist()) == {1}


def test_temperature_zero_is_argmax():
    logits = jax.random.normal(KEY, (20, 30))
    draws = sample_token(logits, example_keys(KEY, jnp.arange(20)), temperature=0.0)
    np.testing.assert_array_equal(draws, np.argmax(np.asarray(logits), axis=-1))


@pytest.mark.parametrize(
    ("options", "probabilities"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, np.square([0.1, 0.4, 0.2, 0.3]) / np.square([0.1, 0.4, 0.2, 0.3]).sum()),
        ({"top_k": 3}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
    ],
)
def test_draws_follow_the_softmax(options, probabilities):
    n, probabilities = 4000, np.asarray(probabilities)
    logits = jnp.repeat(logits_of(0.1, 0.4, 0.2, 0.3), n, axis=0)
    draws = sample_token(logits, example_keys(KEY, jnp.arange(n)), **options)
    counts = np.bincount(np.asarray(draws), minlength=4)
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    chi_square = np.sum((counts - n * probabilities)[possible] ** 2 / (n * probabilities[possible]))
    # The 0.999 quantile with 3 degrees of freedom; the seed is fixed, so this never flickers.
    assert chi_square < 16.27


def test_a_row_draws_the_same_whatever_its_neighbours():
    logits, keys = jax.random.normal(KEY, (6, 50)), example_keys(KEY, jnp.arange(6))
    options = {"top_k": 20, "top_p": 0.9}
    together = sample_token(logits, keys, **options)
    order = jnp.array([5, 2, 0])
    np.testing.assert_array_equal(sample_token(logits[order], keys[order], **options), together[order])
    np.testing.assert_array_equal(sample_token(logits[3:4], keys[3:4], **options), together[3:4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, expected 0 or more"),
        ({"top_k": 0}, "k is 0, expected at least 1"),
        ({"top_p": 0.0}, "p is 0.0, expected 0 < p <= 1"),
        ({"top_p": 1.5}, "p is 1.5, expected 0 < p <= 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        sample_token(jnp.zeros((1, 3)), example_keys(KEY, jnp.arange(1)), **options)


def test_min_p_by_hand():
    logits = logits_of(0.1, 0.4, 0.21, 0.29)
    assert kept(min_p_logits(logits, 0.51)) == [[0, 1, 1, 1]]
    assert kept(min_p_logits(logits, 0.6)) == [[0, 1, 0, 1]]
    assert kept(min_p_logits(logits, 1.0)) == [[0, 1, 0, 0]]
    np.testing.assert_array_equal(min_p_logits(logits, 0.0), logits)


def test_typical_by_hand():
    # Entropy 1.2799 nats; -log p is 2.303, 0.916, 1.609 and 1.204: nearest are 0.3, then 0.2, 0.4 and 0.1.
    logits = logits_of(0.1, 0.4, 0.2, 0.3)
    assert kept(typical_logits(logits, 0.29)) == [[0, 0, 0, 1]]
    assert kept(typical_logits(logits, 0.49)) == [[0, 0, 1, 1]]
    assert kept(typical_logits(logits, 0.89)) == [[0, 1, 1, 1]]
    assert kept(typical_logits(logits, 0.91)) == [[1, 1, 1, 1]]
    # A token that an earlier filter took out has no probability, and no nan.
    assert kept(typical_logits(logits.at[0, 1].set(MASKED), 0.7)) == [[0, 0, 1, 1]]


@pytest.mark.parametrize("p", [0.05, 0.5, 0.93])
def test_the_border_is_that_of_sorting(p):
    random = np.random.default_rng(1)
    logits = jnp.asarray(3 * random.standard_normal((6, 500)), jnp.float32)
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    order = np.argsort(-probabilities, axis=1)
    sums = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
    expected = [sorted(row[: np.searchsorted(total, p) + 1]) for row, total in zip(order, sums, strict=True)]
    assert [np.flatnonzero(row).tolist() for row in np.array(kept(top_p_logits(logits, p)))] == expected
