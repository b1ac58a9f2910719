import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.functional.decoding.int8 import two_digit_product
from jaxformer.functional.decoding.packed import multiplies_bfloat16, two_part_product


def test_each_number_is_within_half_a_step():
    x = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32) * 10.0 ** np.arange(-2, 3)[:, None]
    x[2] = 0
    q = F.quantize(jnp.asarray(x))
    assert q.values.dtype == jnp.int8 and q.scale.shape == (5, 1)
    np.testing.assert_allclose(q.scale[:, 0], np.abs(x).max(axis=1) / 127, rtol=1e-6)
    assert (np.abs(q.astype(jnp.float32) - x) <= np.asarray(q.scale) * 0.5 * (1 + 1e-5)).all()
    assert np.abs(np.asarray(q.values)).max(axis=1).tolist() == [127, 127, 0, 127, 127]


def test_a_product_of_two_digits_has_sixteen_bits():
    random = np.random.default_rng(1)
    x, matrix = random.standard_normal((3, 200)), random.integers(-127, 128, (50, 200))
    x[1] *= 1e4
    x[2] = 0
    got = two_digit_product(jnp.asarray(x, jnp.float32), jnp.asarray(matrix, jnp.int8))
    # Each entry of x is off by at most its row's largest over 127 * 508, and the errors add up at worst.
    bound = np.abs(x).max(axis=1, keepdims=True) / (127 * 508) * np.abs(matrix).sum(axis=1)
    assert (np.abs(np.asarray(got) - x @ matrix.T) <= bound * 1.01 + 1e-30).all()
    assert np.abs(np.asarray(got) - x @ matrix.T)[:2].max() > 0


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3)])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_packed_product_is_the_product(shape, rows):
    random = np.random.default_rng(2)
    kernel = jnp.asarray(random.standard_normal(shape), jnp.float32)
    x = jnp.asarray(random.standard_normal((rows, 4)), jnp.float32)
    packed = F.pack(kernel, len(shape) - 1)
    expected = F.linear(x, kernel)
    np.testing.assert_allclose(F.linear(x, packed), expected, atol=1e-5)
    rounded = F.pack(kernel, len(shape) - 1, "bfloat16")
    exact = F.linear(x, kernel.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(F.linear(x, rounded), exact, atol=1e-4)  # the tokens may have 16 bits
    eight = F.pack(kernel, len(shape) - 1, "int8")
    exact = F.linear(x, eight.matrix.astype(jnp.float32).T.reshape(shape))
    np.testing.assert_allclose(F.linear(x, eight), exact, atol=3e-4)


def test_a_packed_kernel_of_two_inputs():
    random = np.random.default_rng(3)
    kernel = jnp.asarray(random.standard_normal((2, 3, 5)), jnp.float32)
    x = jnp.asarray(random.standard_normal((4, 7, 2, 3)), jnp.float32)
    expected = np.einsum("btnh,nhd->btd", x, kernel)
    np.testing.assert_allclose(F.linear(x, F.pack(kernel, 1), inputs=2), expected, atol=1e-5)


@pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])
def test_a_packed_table_is_looked_up_and_tied(weights):
    random = np.random.default_rng(4)
    table = jnp.asarray(random.standard_normal((9, 4)), jnp.float32)
    packed, ids = F.pack_table(table, weights), jnp.array([[0, 8], [3, 3]])
    rows = np.asarray(F.take_rows(packed, ids), np.float32)
    np.testing.assert_allclose(rows, table[ids], atol={None: 0, "bfloat16": 0.02, "int8": 0.02}[weights])
    hidden = jnp.asarray(random.standard_normal((2, 3, 4)), jnp.float32)
    whole = np.asarray(F.take_rows(packed, jnp.arange(9)), np.float32)
    logits = F.head_logits(hidden, F.HeadWeights(packed))
    np.testing.assert_allclose(logits, hidden @ whole.T, atol=1e-4)


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="weights is 'int4', expected float32, bfloat16 or int8"):
        F.pack(jnp.ones((2, 2)), 1, "int4")


def test_the_product_with_a_quantized_matrix_and_its_gradient():
    random = np.random.default_rng(5)
    x, kernel = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((3, 4, 2, 5), (2, 5, 3, 7)))
    matrix = F.quantize(kernel, (0, 1))
    assert matrix.values.dtype == jnp.int8 and matrix.scale.shape == (1, 1, 3, 7) and matrix.shape == kernel.shape
    whole = matrix.astype(jnp.float32)
    assert np.abs(np.asarray(whole - kernel)).max() <= float(matrix.scale.max()) / 2 + 1e-7

    def total(x, kernel):
        return jnp.sum(jnp.sin(jnp.tensordot(x, kernel, 2)))

    def ours(x):
        return jnp.sum(jnp.sin(F.linear(x, matrix, inputs=2)))

    (value, gradient), (expected, by_whole) = jax.value_and_grad(ours)(x), jax.value_and_grad(total)(x, whole)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, by_whole, rtol=1e-4, atol=1e-5)
    half = F.linear(x.astype(jnp.bfloat16), matrix, inputs=2)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), jnp.tensordot(x, whole, 2), atol=0.2)
    # For the backward pass the matrix is kept as it is, and nothing of its size in floating point.
    _, pull = jax.vjp(lambda x: F.linear(x, matrix, inputs=2), x)
    assert any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(pull))
    assert all(leaf.size < kernel.size or leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(pull))


@pytest.mark.parametrize(("shape", "inputs"), [((4, 6), 1), ((40, 2, 3), 1), ((2, 20, 5), 2)])
def test_products_in_integers(shape, inputs):
    """Exactly the product of both sides as they are quantized, and a row does not depend on others."""
    random = np.random.default_rng(5)
    kernel = F.quantize(jnp.asarray(random.standard_normal(shape), jnp.float32), tuple(range(inputs)))
    x = jnp.asarray(random.standard_normal((3, 7, *shape[:inputs])), jnp.float32).at[1].multiply(1e4).at[2, 0].set(0)
    got = F.linear(x, F.IntegerKernel(kernel), inputs=inputs)
    rows = F.quantize(x.reshape(3, 7, -1))
    matrix = np.asarray(kernel.astype(jnp.float32), np.float64).reshape(x[0, 0].size, -1)
    expected = np.asarray(rows.astype(jnp.float32), np.float64) @ matrix
    np.testing.assert_allclose(got, expected.reshape(got.shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[0], F.linear(x[:1], F.IntegerKernel(kernel), inputs=inputs)[0])


def test_a_product_of_two_parts_has_sixteen_bits():
    random = np.random.default_rng(6)
    x = random.standard_normal((3, 200)).astype(np.float32)
    x[1] *= 1e4
    matrix = jnp.asarray(random.standard_normal((50, 200)), jnp.bfloat16)
    got = np.asarray(two_part_product(jnp.asarray(x), matrix), np.float64)
    exact = np.asarray(matrix.astype(jnp.float32), np.float64)
    bound = np.abs(x) @ np.abs(exact).T * 2.0**-16
    error = np.abs(got - x.astype(np.float64) @ exact.T)
    assert (error <= bound).all() and error.max() > 0


def test_a_cpu_says_what_it_multiplies(tmp_path):
    for flags, found in (
        ("fma avx512f avx512_bf16 avx512vbmi", True),
        ("fma avx2 avx512f", False),
        ("fp asimd bf16", True),
    ):
        cpuinfo = tmp_path / flags[:12].replace(" ", "")
        cpuinfo.write_text(f"model name : a CPU\nflags : {flags}\n")
        assert multiplies_bfloat16(cpuinfo) is found
    assert not multiplies_bfloat16(tmp_path / "none")


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("rows", [1, 8, 9])
def test_few_rows_are_never_multiplied_as_float32(rows, weights):
    """In a loop the weights would be converted once before it and take the memory of float32."""
    packed = F.pack(jnp.ones((16, 24)), 1, weights)
    text = str(jax.make_jaxpr(lambda x: F.linear(x, packed))(jnp.ones((rows, 16))))
    converted = "f32[24,16]" in text
    assert converted == (rows > 8 or (weights == "bfloat16" and not multiplies_bfloat16()))


def test_tokens_in_bfloat16_are_one_part():
    x, matrix = jnp.ones((2, 8), jnp.bfloat16), jnp.ones((4, 8), jnp.bfloat16)
    (product,) = [e for e in jax.make_jaxpr(two_part_product)(x, matrix).eqns if e.primitive.name == "dot_general"]
    assert product.invars[0].aval.shape == (2, 8)
    np.testing.assert_array_equal(two_part_product(x, matrix), 8.0)
