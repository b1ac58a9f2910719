import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.functional import (
    RotaryScaling,
    alibi_bias,
    alibi_slopes,
    apply_rotary,
    disentangled_buckets,
    learned_positions,
    relative_bias,
    relative_buckets,
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


def bucket(distance, bidirectional, num_buckets, max_distance):
    """One bucket, from the words of Raffel et al. 2020, section 2.1: some hold one distance, the others grow in a
    logarithmic scale up to a distance beyond which all share the last.
    """
    if bidirectional:
        num_buckets //= 2
        first, back = (num_buckets if distance > 0 else 0), abs(distance)
    else:
        first, back = 0, max(-distance, 0)
    exact = num_buckets // 2
    if back < exact:
        return first + back
    share = math.log(back / exact) / math.log(max_distance / exact)
    # A border such as log(16 / 8) / log(16) * 8 = 2 must not be missed by a rounding.
    return first + min(exact + math.floor(share * (num_buckets - exact) + 1e-9), num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 10), (16, 64), (6, 300), (4, 5)])
def test_relative_buckets_by_the_formula(bidirectional, num_buckets, max_distance):
    distance = np.arange(-400, 401)
    expected = [bucket(int(d), bidirectional, num_buckets, max_distance) for d in distance]
    settings = {"bidirectional": bidirectional, "num_buckets": num_buckets, "max_distance": max_distance}
    got = relative_buckets(jnp.array(distance), **settings)
    np.testing.assert_array_equal(got, expected)
    assert set(expected) == set(range(num_buckets)) - ({num_buckets // 2} if bidirectional else set())
    np.testing.assert_array_equal(relative_buckets(jnp.array(distance).reshape(3, 89, 3), **settings).ravel(), got)


def test_relative_buckets_by_hand():
    # Encoder: 8 exact distances on a side, then borders at 8 * 2^(k/2): 8, 11.3, 16, 22.6, 32, 45.3, 64, 90.5.
    encoder = {0: 0, -1: 1, -7: 7, -8: 8, -11: 8, -12: 9, -15: 9, -16: 10, -22: 10, -23: 11, -32: 12, -46: 13, -63: 13}
    encoder |= {-64: 14, -90: 14, -91: 15, -127: 15, -128: 15, -5000: 15}
    encoder |= {-d: b + 16 for d, b in encoder.items() if d}
    # Decoder: 16 exact distances, then borders at 16 * 8^(k/16): 16, 18.2, 20.7, ... 112.4; nothing for what follows.
    decoder = {0: 0, 1: 0, 900: 0, -1: 1, -15: 15, -16: 16, -18: 16, -19: 17, -20: 17, -21: 18, -112: 30, -113: 31}
    decoder |= {-128: 31, -5000: 31}
    for bidirectional, expected in ((True, encoder), (False, decoder)):
        got = relative_buckets(jnp.array(list(expected)), bidirectional=bidirectional)
        assert got.tolist() == list(expected.values())


def test_relative_bias_by_hand():
    # 8 buckets, bidirectional: 0 to 3 backwards (2 exact), 4 + 1 to 4 + 3 forwards. Two heads.
    table = jnp.stack([jnp.arange(8.0), 100 + jnp.arange(8.0)], axis=1)
    distance = jnp.array([[[0, 1, 2], [-1, 0, 40], [-2, -9, 0]]])
    bias = relative_bias(table, distance, bidirectional=True, max_distance=10)
    one = np.array([[0, 5, 6], [1, 0, 7], [2, 3, 0]])
    np.testing.assert_array_equal(bias, [[one, 100 + one]])
    # A decoder with 8 buckets: 4 exact distances back, nothing forwards.
    bias = relative_bias(table, distance, bidirectional=False, max_distance=10)
    np.testing.assert_array_equal(bias[0, 0], [[0, 0, 0], [1, 0, 0], [2, 7, 0]])


def test_alibi_slopes_by_hand():
    # Press et al. 2022, section 3: 1/2 to 1/256 for 8 heads, and the same with steps of half an octave for 16.
    np.testing.assert_array_equal(alibi_slopes(8), [2.0**-n for n in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(16), [2.0 ** (-n / 2) for n in range(1, 17)], rtol=1e-6)
    np.testing.assert_array_equal(alibi_slopes(1), [2.0**-8])
    # The published code: 12 heads have the slopes of 8 and every other one of 16.
    twelve = [2.0**-n for n in range(1, 9)] + [0.70710678, 0.35355339, 0.17677670, 0.08838835]
    np.testing.assert_allclose(alibi_slopes(12), twelve, rtol=1e-6)
    np.testing.assert_allclose(alibi_slopes(3), [1 / 16, 1 / 256, 1 / 4], rtol=1e-6)


def test_alibi_bias_by_hand():
    bias = alibi_bias(jnp.array([[[0, 2], [-1, 0]], [[-3, 0], [0, 8]]]), 2)
    slopes = 1 / 16, 1 / 256
    expected = [
        [[[0, -2 * s], [-s, 0]] for s in slopes],
        [[[-3 * s, 0], [0, -8 * s]] for s in slopes],
    ]
    np.testing.assert_array_equal(bias, expected)
    assert bias.dtype == jnp.float32


def test_distances_that_have_no_logarithmic_bucket_are_refused():
    with pytest.raises(ValueError, match=r"max_distance is 16, expected more than 16"):
        relative_buckets(jnp.array([0]), bidirectional=False, num_buckets=32, max_distance=16)
    relative_buckets(jnp.array([0]), bidirectional=True, num_buckets=32, max_distance=16)


def test_sinusoids_in_halves_are_the_same_waves_in_another_order():
    places = jnp.arange(5)[None]
    pairs, halves = sinusoidal_positions(places, 6), sinusoidal_positions(places, 6, halves=True)
    np.testing.assert_array_equal(halves, pairs[..., jnp.array([0, 2, 4, 1, 3, 5])])


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_go_by_the_length_of_each_row(kind):
    scaling = F.RotaryScaling(
        kind, 4.0, original_max_length=10, short_factors=(1.0, 1.0, 1.0), long_factors=(1.0, 2.0, 4.0)
    )
    together = F.rotary_frequencies(6, theta=100.0, scaling=scaling, lengths=jnp.array([7, 20]))
    for row, length in enumerate((7, 20)):
        alone = F.rotary_frequencies(6, theta=100.0, scaling=scaling, lengths=jnp.array([length]))
        np.testing.assert_array_equal(together[row], alone[0])
    np.testing.assert_allclose(together[0], F.rotary_frequencies(6, theta=100.0), rtol=1e-6)
    assert together[1, -1] < together[0, -1]


def test_yarn_keeps_fast_frequencies_and_divides_slow_ones():
    """The values of transformers 5.24 for a head of 6, base 100, factor 4 and an original length of 10."""
    scaling = F.RotaryScaling("yarn", 4.0, original_max_length=10)
    plain = F.rotary_frequencies(6, theta=100.0)
    found = F.rotary_frequencies(6, theta=100.0, scaling=scaling)
    np.testing.assert_allclose(found[1:], plain[1:] / 4, rtol=1e-6)
    np.testing.assert_allclose(found[0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(scaling.magnitude, 0.1 * np.log(4.0) + 1)


def test_sinusoids_whose_last_wavelength_is_theta_itself_by_hand():
    # D 6: exponents 0, 1/2 and 1, so with theta 16 the divisors are 1, 4 and 16.
    y = sinusoidal_positions(jnp.array([3]), 6, theta=16.0, halves=True, inclusive=True)
    angles = [3.0, 3 / 4, 3 / 16]
    np.testing.assert_allclose(y[0], [*map(math.sin, angles), *map(math.cos, angles)], atol=1e-6)


def test_rotary_of_neighbours_is_that_of_halves_in_another_order():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
    places, frequencies = jnp.arange(4)[None], rotary_frequencies(6)
    order = jnp.array([0, 2, 4, 1, 3, 5, 6, 7])  # of the entries: first all evens, then all odds, then the rest
    halves = apply_rotary(x[..., order], rotary_angles(places, frequencies))
    adjacent = apply_rotary(x, rotary_angles(places, frequencies, adjacent=True))
    np.testing.assert_allclose(adjacent[..., order], halves, atol=1e-6)


def test_rotary_of_neighbours_by_hand():
    # A quarter turn of the first pair, none of the second.
    rotary = rotary_angles(jnp.array([[1]]), jnp.array([math.pi / 2, 0.0]), adjacent=True)
    y = apply_rotary(jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4), rotary)
    np.testing.assert_allclose(y.ravel(), [-2.0, 1.0, 3.0, 4.0], atol=1e-6)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(4, 7), (6, 20), (256, 512)])
def test_disentangled_buckets_by_their_formula(num_buckets, max_distance):
    """By the published formula, one distance at a time."""
    mid, found = num_buckets // 2, {}
    for distance in range(-max_distance - 5, max_distance + 6):
        far = abs(distance)
        if far > mid:
            share = math.log(far / mid) / math.log((max_distance - 1) / mid)
            far = mid + math.ceil(round(share * (mid - 1), 9))
        found[distance] = min(max(num_buckets + (far if distance > 0 else -far), 0), 2 * num_buckets - 1)
    got = disentangled_buckets(jnp.array(list(found)), num_buckets=num_buckets, max_distance=max_distance)
    np.testing.assert_array_equal(got, list(found.values()))
