import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.functional import (
    RotaryScaling,
    apply_rotary,
    learned_positions,
    rotary_angles,
    rotary_frequencies,
    sinusoidal_positions,
)

H, THETA = 6, 10_000.0


def rotated_in_float64(x, position_ids, frequencies):
    """Entry i and entry i + H/2 of a head are one complex number, turned by exp(i * position * frequency)."""
    x = np.asarray(x, np.float64)
    half = len(frequencies)
    numbers = x[..., :half] + 1j * x[..., half : 2 * half]
    numbers = numbers * np.exp(1j * np.asarray(position_ids)[..., None, None] * np.asarray(frequencies))
    return np.concatenate([numbers.real, numbers.imag, x[..., 2 * half :]], axis=-1)


def test_rotary_frequencies_by_hand():
    np.testing.assert_allclose(rotary_frequencies(4, theta=100.0), [1.0, 0.1], rtol=1e-6)
    expected = [THETA ** (-2 * i / H) for i in range(H // 2)]
    np.testing.assert_allclose(rotary_frequencies(H), expected, rtol=1e-6)


def test_rotary_is_a_complex_product():
    x = jax.random.normal(jax.random.key(0), (2, 7, 3, H))
    position_ids = jnp.array([[0, 1, 2, 3, 4, 5, 6], [9, 0, 40, 3, 3, 2, 11]])
    y = apply_rotary(x, rotary_angles(position_ids, rotary_frequencies(H)))
    exact = [THETA ** (-2 * i / H) for i in range(H // 2)]
    np.testing.assert_allclose(y, rotated_in_float64(x, position_ids, exact), atol=1e-5)


def test_a_quarter_turn_by_hand():
    x = jnp.arange(1.0, 7.0).reshape(1, 1, 1, 6)
    y = apply_rotary(x, rotary_angles(jnp.array([[1]]), jnp.array([math.pi / 2, math.pi, 0.0])))
    np.testing.assert_allclose(y[0, 0, 0], [-4, -2, 3, 1, -5, 6], atol=1e-6)


def test_partial_rotary_leaves_the_rest():
    x = jax.random.normal(jax.random.key(1), (1, 4, 2, 10))
    frequencies = rotary_frequencies(4)
    y = apply_rotary(x, rotary_angles(jnp.arange(4)[None], frequencies))
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
    np.testing.assert_allclose(y, rotated_in_float64(x, np.arange(4)[None], frequencies), atol=1e-5)


def test_scores_depend_on_the_distance_only():
    query, key = jax.random.normal(jax.random.key(2), (2, 1, 1, 1, H))

    def score(query_position, key_position):
        frequencies = rotary_frequencies(H)
        q = apply_rotary(query, rotary_angles(jnp.array([[query_position]]), frequencies))
        k = apply_rotary(key, rotary_angles(jnp.array([[key_position]]), frequencies))
        return float(jnp.sum(q * k))

    np.testing.assert_allclose(score(8, 3), score(5, 0), atol=1e-5)
    np.testing.assert_allclose(score(38, 33), score(5, 0), atol=1e-5)
    np.testing.assert_allclose(score(4, 4), float(jnp.sum(query * key)), atol=1e-5)
    assert abs(score(5, 0) - score(0, 5)) > 1e-2


def test_linear_scaling_is_a_division_of_positions():
    scaled = rotary_frequencies(H, scaling=RotaryScaling("linear", 4.0))
    np.testing.assert_allclose(scaled, [THETA ** (-2 * i / H) / 4 for i in range(H // 2)], rtol=1e-6)
    angles, plain = rotary_angles(jnp.array([[8]]), scaled), rotary_angles(jnp.array([[2]]), rotary_frequencies(H))
    np.testing.assert_allclose(angles.cos, plain.cos, atol=1e-6)


def test_llama3_scaling_by_hand():
    scaling = RotaryScaling("llama3", 8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_length=64)
    head_size, theta = 16, 500.0
    expected = []
    for i in range(head_size // 2):
        frequency = theta ** (-2 * i / head_size)
        wavelength = 2 * math.pi / frequency
        if wavelength < 64 / 4:
            expected.append(frequency)
        elif wavelength > 64 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (64 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    changed = [e / theta ** (-2 * i / head_size) for i, e in enumerate(expected)]
    # The example reaches all three branches.
    assert changed[0] == 1 and changed[-1] == 1 / 8 and any(1 / 8 < c < 1 for c in changed)
    np.testing.assert_allclose(rotary_frequencies(head_size, theta=theta, scaling=scaling), expected, rtol=1e-5)


def test_rotary_keeps_bfloat16():
    angles = rotary_angles(jnp.arange(3)[None], rotary_frequencies(4))
    assert angles.cos.dtype == jnp.float32
    assert apply_rotary(jnp.ones((1, 3, 1, 4), jnp.bfloat16), angles).dtype == jnp.bfloat16


def test_sinusoidal_by_hand():
    # theta^(2i/D) with theta 16 and D 4: 1 and 4
    y = sinusoidal_positions(jnp.array([[0, 1], [2, 8]]), 4, theta=16.0)
    expected = [[[math.sin(p), math.cos(p), math.sin(p / 4), math.cos(p / 4)] for p in row] for row in ([0, 1], [2, 8])]
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert y.dtype == jnp.float32


def test_learned_positions_by_hand():
    table = jnp.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(learned_positions(table, jnp.array([[3, 0]])), [[[6.0, 7.0], [0.0, 1.0]]])


def test_learned_positions_out_of_range_are_nan():
    y = learned_positions(jnp.ones((4, 2)), jnp.array([[3, 4, 400]]))
    np.testing.assert_array_equal(jnp.isnan(y[0, :, 0]), [False, True, True])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotary_frequencies(5), "head_size is 5, expected an even number"),
        (lambda: sinusoidal_positions(jnp.array([0]), 7), "hidden_size is 7, expected an even number"),
    ],
)
def test_odd_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
