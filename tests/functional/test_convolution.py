"""Convolutions over tokens, by hand."""

import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F


def test_a_centred_convolution_sees_both_sides():
    random = np.random.default_rng(0)
    x, taps, bias = (random.normal(size=shape) for shape in ((2, 7, 3), (5, 3, 4), (4,)))
    segments = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
    x[1, 5:] = 0.0  # padding
    expected = np.tile(bias, (2, 7, 1))
    alone = expected.copy()
    for b, t, j in np.ndindex(2, 7, 5):
        s = t + j - 2
        if 0 <= s < 7:
            expected[b, t] += x[b, s] @ taps[j]
            alone[b, t] += x[b, s] @ taps[j] * (segments[b, s] == segments[b, t])
    arrays = [jnp.asarray(array, jnp.float32) for array in (x, taps, bias)]
    np.testing.assert_allclose(F.token_convolution(*arrays), expected, atol=1e-5)
    np.testing.assert_allclose(F.token_convolution(*arrays, segment_ids=jnp.asarray(segments)), alone, atol=1e-5)


def test_a_causal_convolution_sees_what_came_before():
    x = jnp.array([[[1.0], [2.0], [3.0], [4.0]]])
    taps, bias = jnp.array([[100.0], [10.0], [1.0]]), jnp.array([0.5])
    np.testing.assert_allclose(F.causal_convolution(x, taps, bias)[0, :, 0], [1.5, 12.5, 123.5, 234.5])
    tail = jnp.array([[[8.0], [9.0]]])
    np.testing.assert_allclose(F.causal_convolution(x, taps, tail=tail)[0, :, 0], [891, 912, 123, 234])
    starts = jnp.array([[True, False, True, False]])
    np.testing.assert_allclose(F.causal_convolution(x, taps, starts=starts)[0, :, 0], [1, 12, 3, 34])


def test_the_tail_is_that_of_the_real_tokens():
    x, tail = jnp.arange(1.0, 5.0).reshape(1, 4, 1), jnp.array([[[-1.0], [-2.0]]])
    x, tail = jnp.repeat(x, 4, axis=0), jnp.repeat(tail, 4, axis=0)
    got = F.convolution_tail(x, tail, jnp.array([0, 1, 2, 4]))
    np.testing.assert_array_equal(got[..., 0], [[-1, -2], [-2, 1], [1, 2], [3, 4]])
