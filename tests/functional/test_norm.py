import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.functional import layer_norm, rms_norm

X = jax.random.normal(jax.random.key(0), (2, 5, 6)) * 3 + 1
SCALE, BIAS = jnp.arange(1.0, 7.0), jnp.arange(6.0) - 2


def test_layer_norm_by_hand():
    # mean 4, deviations -3 -1 1 3, variance 5
    x = jnp.array([1.0, 3.0, 5.0, 7.0])
    y = layer_norm(x, jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0.0, 0.0, 1.0, 1.0]), epsilon=4.0)
    np.testing.assert_allclose(y, [-1.0, -2 / 3, 2.0, 5.0], rtol=1e-6)


def test_rms_norm_by_hand():
    # mean square (1 + 49 + 1 + 49) / 4 = 25
    x = jnp.array([1.0, -7.0, 1.0, 7.0])
    np.testing.assert_allclose(rms_norm(x, jnp.arange(1.0, 5.0), epsilon=0.0), np.array([1, -14, 3, 28]) / 5, rtol=1e-6)
    np.testing.assert_allclose(rms_norm(x, jnp.ones(4), epsilon=11.0), x / 6, rtol=1e-6)


def _assert_same_values_and_gradients(ours, theirs, *arguments):
    def total(function):
        return lambda *args: jnp.sum(jnp.sin(function(*args)))

    every = tuple(range(len(arguments)))
    np.testing.assert_allclose(ours(*arguments), theirs(*arguments), atol=1e-5)
    for a, b in zip(jax.grad(total(ours), every)(*arguments), jax.grad(total(theirs), every)(*arguments), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_norms_are_those_of_flax():
    for module, norm, names in (
        (nn.LayerNorm(epsilon=1e-5, use_fast_variance=False), layer_norm, ("scale", "bias")),
        (nn.RMSNorm(epsilon=1e-6), rms_norm, ("scale",)),
    ):

        def theirs(x, *weights, module=module, names=names):
            return module.apply({"params": dict(zip(names, weights, strict=True))}, x)

        _assert_same_values_and_gradients(norm, theirs, X, *(SCALE, BIAS)[: len(names)])
    np.testing.assert_array_equal(layer_norm(X, SCALE), layer_norm(X, SCALE, jnp.zeros(6)))


def test_a_large_mean_does_not_cancel_the_variance():
    # E[x^2] - E[x]^2 would lose every digit here.
    x = jnp.array([10_000.0, 10_001.0, 10_002.0])
    np.testing.assert_allclose(layer_norm(x, jnp.ones(3)), np.array([-1, 0, 1]) * np.sqrt(1.5), atol=1e-4)


def test_zeros_stay_zeros_with_finite_gradients():
    zeros = jnp.zeros((1, 6))
    for norm in (layer_norm, rms_norm):
        np.testing.assert_array_equal(norm(zeros, SCALE), zeros)
        assert bool(jnp.all(jnp.isfinite(jax.grad(lambda x, norm=norm: norm(x, SCALE).sum())(zeros))))


def test_bfloat16_keeps_its_dtype_and_float32_statistics():
    x = X.astype(jnp.bfloat16)
    for y, reference in (
        (layer_norm(x, SCALE, BIAS), layer_norm(x.astype(jnp.float32), SCALE, BIAS)),
        (rms_norm(x, SCALE), rms_norm(x.astype(jnp.float32), SCALE)),
    ):
        assert y.dtype == jnp.bfloat16
        # The only loss is the one rounding of the result.
        np.testing.assert_array_equal(y, reference.astype(jnp.bfloat16))
