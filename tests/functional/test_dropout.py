import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.functional import dropout, example_keys

KEY = jax.random.key(7)


def test_kept_entries_are_scaled_and_the_expectation_is_kept():
    rate, x = 0.3, jnp.full((8, 50, 50), 2.0)
    y = np.asarray(dropout(x, rate, example_keys(KEY, jnp.arange(8))))
    np.testing.assert_allclose(np.unique(y), [0, 2 / 0.7], rtol=1e-6)
    # 20,000 draws: five standard deviations of the share dropped are 5 * sqrt(0.3 * 0.7 / 20000) = 0.016.
    assert abs((y == 0).mean() - rate) < 0.016


def test_draws_belong_to_the_example_not_to_its_place():
    x = jnp.ones((4, 5, 6))
    together = dropout(x, 0.5, example_keys(KEY, jnp.array([10, 11, 12, 13])))
    shuffled = dropout(x, 0.5, example_keys(KEY, jnp.array([13, 10, 12, 11])))
    np.testing.assert_array_equal(shuffled, together[jnp.array([3, 0, 2, 1])])
    alone = dropout(x[:1], 0.5, example_keys(KEY, jnp.array([12])))
    np.testing.assert_array_equal(alone[0], together[2])
    # and other examples draw otherwise
    assert bool(jnp.any(together[0] != together[1]))


def test_another_key_draws_otherwise():
    x, ids = jnp.ones((2, 40)), jnp.arange(2)
    a, b = dropout(x, 0.5, example_keys(KEY, ids)), dropout(x, 0.5, example_keys(jax.random.key(8), ids))
    assert bool(jnp.any(a != b))


def test_the_gradient_passes_through_what_was_kept():
    x, keys = jnp.arange(1.0, 13.0).reshape(2, 6), example_keys(KEY, jnp.arange(2))
    gradient = jax.grad(lambda x: dropout(x, 0.25, keys).sum())(x)
    np.testing.assert_allclose(gradient, dropout(jnp.ones_like(x), 0.25, keys))


def test_evaluation_and_rate_zero_change_nothing():
    x, keys = jnp.arange(4.0).reshape(2, 2), example_keys(KEY, jnp.arange(2))
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, keys), x)


def test_bfloat16_keeps_its_dtype():
    assert dropout(jnp.ones((2, 3), jnp.bfloat16), 0.5, example_keys(KEY, jnp.arange(2))).dtype == jnp.bfloat16


def test_the_same_on_sharded_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x, ids = jnp.ones((8, 5, 6)), jnp.arange(8)
    draw = jax.jit(lambda x, ids: dropout(x, 0.5, example_keys(KEY, ids)))
    spread = draw(jax.device_put(x, sharding), jax.device_put(ids, sharding))
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_array_equal(spread, draw(x, ids))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rate_out_of_range(rate):
    with pytest.raises(ValueError, match=f"rate is {rate}, expected 0 <= rate < 1"):
        dropout(jnp.ones((1, 1)), rate, None)
