"""The linear layer with plain, joined and low-rank kernels, by its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F

RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.standard_normal((3, 4, 2, 3)), jnp.float32)
W = jnp.asarray(RANDOM.standard_normal((2, 3, 5)), jnp.float32)
A = jnp.asarray(RANDOM.standard_normal((2, 3, 2)), jnp.float32)
B = jnp.asarray(RANDOM.standard_normal((2, 5)), jnp.float32)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "kernel", "inputs"), [((2, 3, 4), (4, 5), 1), ((3, 4), (4, 5, 2), 1), ((2, 3, 4, 5), (4, 5, 6), 2)]
)
def test_equals_tensordot_in_value_and_gradient(x, kernel, inputs):
    a, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((x, kernel)))
    exact = np.tensordot(np.asarray(a, np.float64), np.asarray(b, np.float64), inputs)
    weights = jax.random.normal(jax.random.key(3), exact.shape)
    theirs = jax.grad(lambda a, b: jnp.sum(weights * jnp.tensordot(a, b, inputs)), (0, 1))(a, b)
    for wrap in (lambda kernel: kernel, F.JoinedKernel):

        def total(a, b, wrap=wrap):
            y = F.linear(a, wrap(b), inputs=inputs)
            return jnp.sum(weights * y), y

        (_, y), ours = jax.value_and_grad(total, (0, 1), has_aux=True)(a, b)
        close(y, exact)
        jax.tree.map(close, ours, theirs)


def test_dtypes_and_bias():
    ones = jnp.ones((2, 2), jnp.bfloat16)
    assert F.linear(ones, ones).dtype == jnp.bfloat16
    assert F.linear(ones, F.JoinedKernel(ones), dtype=jnp.float32).dtype == jnp.float32
    np.testing.assert_array_equal(F.linear(ones, ones, jnp.array([0.0, 1.0])), [[2, 3], [2, 3]])


def test_a_low_rank_kernel_is_the_product_with_the_sum():
    total = W + jnp.tensordot(A, B, 1)
    close(F.linear(X, F.LowRankKernel(W, A, B), inputs=2), jnp.tensordot(X, total, 2))
    close(F.linear(X, W, inputs=2), jnp.tensordot(X, W, 2))
    half = F.linear(X.astype(jnp.bfloat16), F.LowRankKernel(W, A, B), inputs=2)
    assert half.dtype == jnp.bfloat16


def test_dropout_is_of_what_enters_a():
    keys = F.example_keys(jax.random.key(0), jnp.arange(3))
    dropped = F.dropout(X, 0.5, keys)
    y = F.linear(X, F.LowRankKernel(W, A, B, keys, 0.5), inputs=2)
    close(y, jnp.tensordot(X, W, 2) + jnp.tensordot(jnp.tensordot(dropped, A, 2), B, 1))
    assert np.sum(np.asarray(dropped) == 0) > 10
    close(
        F.linear(X, F.LowRankKernel(W, A, B, None, 0.5), inputs=2),
        jnp.tensordot(X, W + jnp.tensordot(A, B, 1), 2),
    )


def test_rows_of_one_example_drop_each_otherwise():
    keys = F.example_keys(jax.random.key(0), jnp.arange(2))
    ones = jnp.ones((4, 50, 2, 3))

    def dropped(keys, x):  # what enters A, seen through an A and B that add it up
        sums = F.LowRankKernel(jnp.zeros((2, 3, 1)), jnp.ones((2, 3, 1)), jnp.ones((1, 1)), keys, 0.5)
        return np.asarray(F.linear(x, sums, inputs=2))[..., 0]

    both = dropped(keys, ones)
    assert len({row.tobytes() for row in both}) == 4
    # The rows of the second example are the same wherever it stands.
    np.testing.assert_array_equal(dropped(keys[1:], ones[:2]), both[2:])


@pytest.mark.parametrize(("shape", "inputs"), [((4, 6), 1), ((4, 2, 3), 1), ((2, 2, 5), 2)])
def test_products_of_rounded_numbers(shape, inputs):
    """By hand in float64 from numbers rounded to bfloat16; the kernel's gradient is of those that were not."""
    random = np.random.default_rng(0)
    kernel = random.standard_normal(shape).astype(np.float32)
    x = random.standard_normal((3, 7, *shape[:inputs])).astype(np.float32)
    weight = random.standard_normal((3, 7, *shape[inputs:])).astype(np.float32)

    def rounded(array):
        return np.asarray(jnp.asarray(array).astype(jnp.bfloat16).astype(jnp.float32), np.float64)

    def total(x, kernel):
        y = F.linear(x, F.RoundedKernel(kernel), inputs=inputs)
        return jnp.sum(y * weight), y

    (to_x, to_kernel), y = jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, kernel)
    axes = list(range(2, 2 + inputs))
    np.testing.assert_allclose(y, np.tensordot(rounded(x), rounded(kernel), (axes, range(inputs))), atol=1e-5)
    outputs = range(2, weight.ndim)
    by_hand = np.tensordot(rounded(weight), rounded(kernel), (outputs, range(inputs, kernel.ndim)))
    np.testing.assert_allclose(to_x, by_hand, atol=1e-5)
    np.testing.assert_allclose(to_kernel, np.tensordot(x, weight, ((0, 1), (0, 1))), atol=1e-5)
