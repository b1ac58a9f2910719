"""The product with a kernel of low-rank update, by its formula."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F

RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.standard_normal((3, 4, 2, 3)), jnp.float32)
W = jnp.asarray(RANDOM.standard_normal((2, 3, 5)), jnp.float32)
A = jnp.asarray(RANDOM.standard_normal((2, 3, 2)), jnp.float32)
B = jnp.asarray(RANDOM.standard_normal((2, 5)), jnp.float32)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_it_is_the_product_with_the_sum():
    total = W + jnp.tensordot(A, B, 1)
    close(F.kernel_product(X, F.LowRankKernel(W, A, B), contract=2), jnp.tensordot(X, total, 2))
    close(F.kernel_product(X, W, contract=2), jnp.tensordot(X, W, 2))
    half = F.kernel_product(X.astype(jnp.bfloat16), F.LowRankKernel(W, A, B), contract=2)
    assert half.dtype == jnp.bfloat16


def test_dropout_is_of_what_enters_a():
    keys = F.example_keys(jax.random.key(0), jnp.arange(3))
    dropped = F.dropout(X, 0.5, keys)
    y = F.kernel_product(X, F.LowRankKernel(W, A, B, keys, 0.5), contract=2)
    close(y, jnp.tensordot(X, W, 2) + jnp.tensordot(jnp.tensordot(dropped, A, 2), B, 1))
    assert np.sum(np.asarray(dropped) == 0) > 10
    close(
        F.kernel_product(X, F.LowRankKernel(W, A, B, None, 0.5), contract=2),
        jnp.tensordot(X, W + jnp.tensordot(A, B, 1), 2),
    )


def test_rows_of_one_example_drop_each_otherwise():
    keys = F.example_keys(jax.random.key(0), jnp.arange(2))
    ones = jnp.ones((4, 50, 2, 3))

    def dropped(keys, x):  # what enters A, seen through an A and B that add it up
        sums = F.LowRankKernel(jnp.zeros((2, 3, 1)), jnp.ones((2, 3, 1)), jnp.ones((1, 1)), keys, 0.5)
        return np.asarray(F.kernel_product(x, sums, contract=2))[..., 0]

    both = dropped(keys, ones)
    assert len({row.tobytes() for row in both}) == 4
    # The rows of the second example are the same wherever it stands.
    np.testing.assert_array_equal(dropped(keys[1:], ones[:2]), both[2:])
