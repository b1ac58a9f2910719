import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.functional import matrix_product


@pytest.mark.parametrize(
    ("x", "kernel", "contract"), [((2, 3, 4), (4, 5), 1), ((3, 4), (4, 5, 2), 1), ((2, 3, 4, 5), (4, 5, 6), 2)]
)
def test_equals_tensordot_in_value_and_gradient(x, kernel, contract):
    a, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((x, kernel)))
    exact = np.tensordot(np.asarray(a, np.float64), np.asarray(b, np.float64), contract)
    np.testing.assert_allclose(matrix_product(a, b, contract=contract), exact, atol=1e-5)
    weights = jax.random.normal(jax.random.key(3), exact.shape)
    ours = jax.grad(lambda a, b: jnp.sum(weights * matrix_product(a, b, contract=contract)), (0, 1))(a, b)
    theirs = jax.grad(lambda a, b: jnp.sum(weights * jnp.tensordot(a, b, contract)), (0, 1))(a, b)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_result_dtype():
    ones = jnp.ones((2, 2), jnp.bfloat16)
    assert matrix_product(ones, ones).dtype == jnp.bfloat16
    assert matrix_product(ones, ones, dtype=jnp.float32).dtype == jnp.float32
