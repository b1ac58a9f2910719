"""Cross-entropy against optax and numpy, and the chunked one against the whole, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import functional as F
from jaxformer.functional import IGNORE, HeadWeights, chunked_cross_entropy, cross_entropy, head_logits

B, T, D, V = 3, 10, 5, 7
RANDOM = np.random.default_rng(0)
HIDDEN = jnp.asarray(RANDOM.standard_normal((B, T, D)), jnp.float32)
KERNEL = jnp.asarray(RANDOM.standard_normal((D, V)), jnp.float32)
BIAS = jnp.asarray(RANDOM.standard_normal(V), jnp.float32)
LABELS = jnp.asarray(RANDOM.integers(0, V, (B, T))).at[0, 3].set(IGNORE).at[1, 6:].set(IGNORE)
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01}


def by_optax(logits, labels, label_smoothing=0.0, z_loss=0.0):
    """The same sum, put together from optax's pieces."""
    trained = labels != IGNORE
    one_hot = jax.nn.one_hot(jnp.where(trained, labels, 0), logits.shape[-1])
    losses = optax.losses.softmax_cross_entropy(logits, optax.losses.smooth_labels(one_hot, label_smoothing))
    losses = losses + z_loss * jax.scipy.special.logsumexp(logits, axis=-1) ** 2
    return jnp.sum(losses, where=trained)


def assert_close(got, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected)


def test_by_hand():
    # p = [1/4, 3/4] twice; labels 1 and 0; the third token is ignored.
    logits = jnp.log(jnp.array([[1.0, 3.0], [2.0, 6.0], [5.0, 5.0]]))
    loss = cross_entropy(logits, jnp.array([1, 0, IGNORE]))
    np.testing.assert_allclose(loss.total, np.log(4 / 3) + np.log(4), rtol=1e-6)
    np.testing.assert_allclose(loss.cross_entropy, loss.total)
    assert float(loss.tokens) == 2
    # log Z is ln 4 and ln 8
    with_z = cross_entropy(logits, jnp.array([1, 0, IGNORE]), z_loss=0.5)
    np.testing.assert_allclose(with_z.total - loss.total, 0.5 * (np.log(4) ** 2 + np.log(8) ** 2), rtol=1e-5)
    np.testing.assert_allclose(with_z.cross_entropy, loss.cross_entropy)
    # Smoothing moves 0.2 to the mean of -ln(1/4) and -ln(3/4).
    smooth = cross_entropy(logits[:1], jnp.array([1]), label_smoothing=0.2)
    expected = 0.8 * np.log(4 / 3) + 0.2 * (np.log(4) + np.log(4 / 3)) / 2
    np.testing.assert_allclose(smooth.total, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, OPTIONS], ids=["plain", "smooth", "z", "both"]
)
def test_value_and_gradient_against_optax(options):
    logits = 3 * head_logits(HIDDEN, HeadWeights(KERNEL))
    got = jax.jit(jax.value_and_grad(lambda x: cross_entropy(x, LABELS, **options).total))(logits)
    expected = jax.jit(jax.value_and_grad(lambda x: by_optax(x, LABELS, **options)))(logits)
    assert_close(got, expected)
    np.testing.assert_array_equal(got[1][0, 3], 0)
    np.testing.assert_allclose(
        cross_entropy(logits, LABELS, **options).cross_entropy, by_optax(logits, LABELS), rtol=1e-5
    )


def test_large_logits_do_not_overflow():
    loss = cross_entropy(jnp.array([[1e4, 0.0], [0.0, 1e4]]), jnp.array([0, 0]))
    np.testing.assert_allclose(loss.total, 1e4)


def test_nan_logits_of_ignored_tokens_reach_nothing():
    logits = jnp.zeros((2, 3)).at[0].set(jnp.array([jnp.nan, jnp.inf, 0]))
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, jnp.array([IGNORE, 1]), z_loss=0.1).total)(logits)
    np.testing.assert_allclose(loss, np.log(3) + 0.1 * np.log(3) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], 0)
    assert bool(jnp.all(jnp.isfinite(gradient)))


def test_head_logits_by_hand():
    hidden, kernel = jnp.array([[1.0, 2.0]]), jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(head_logits(hidden, HeadWeights(kernel)), [[6, 9, 12]])
    np.testing.assert_array_equal(head_logits(hidden, HeadWeights(kernel, jnp.array([1.0, 0, -1]))), [[7, 9, 11]])
    np.testing.assert_array_equal(head_logits(hidden, HeadWeights(kernel.T, tied=True)), [[6, 9, 12]])
    assert head_logits(hidden.astype(jnp.bfloat16), HeadWeights(kernel)).dtype == jnp.float32


@partial(jax.jit, static_argnames=("tied", "plain", "chunk_tokens", "scale"))
def value_and_gradient(weights, labels, chunk_tokens, *, tied=False, plain=False, scale=1.0):
    """``((scale * total, loss), gradients)`` for hidden states, kernel and bias; without chunks where None."""
    options = {} if plain else OPTIONS

    def total(weights):
        hidden, kernel, bias = weights
        head = HeadWeights(kernel.T if tied else kernel, bias, tied)
        if chunk_tokens is None:
            loss = cross_entropy(head_logits(hidden, head), labels, **options)
        else:
            loss = chunked_cross_entropy(hidden, head, labels, chunk_tokens=chunk_tokens, **options)
        return scale * loss.total, loss

    return jax.value_and_grad(total, has_aux=True)(weights)


# 30 tokens in 10 columns of 3: one column a chunk, sizes that do not divide, more than there are.
@pytest.mark.parametrize("chunk_tokens", [1, 4, 9, 13, 1000])
def test_chunked_is_whole_in_value_and_gradient(chunk_tokens):
    tied, bias = chunk_tokens % 2 == 0, BIAS if chunk_tokens > 10 else None
    # The factor shows that the gradient of what follows the loss arrives.
    got = value_and_gradient((HIDDEN, KERNEL, bias), LABELS, chunk_tokens, tied=tied, scale=0.25)
    expected = value_and_gradient((HIDDEN, KERNEL, bias), LABELS, None, tied=tied, scale=0.25)
    assert_close(got, expected)
    plain = chunked_cross_entropy(HIDDEN, HeadWeights(KERNEL, bias), LABELS, chunk_tokens=chunk_tokens)
    np.testing.assert_allclose(plain.cross_entropy, expected[0][1].cross_entropy, rtol=1e-5)
    assert float(plain.tokens) == 25


@pytest.mark.parametrize("chunk_tokens", [6, 1000])
@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
def test_poison_at_ignored_tokens_reaches_no_gradient(chunk_tokens, poison):
    ignored = (LABELS == IGNORE)[..., None]
    poisoned = (jnp.where(ignored, poison, HIDDEN), KERNEL, BIAS)
    got = value_and_gradient(poisoned, LABELS, chunk_tokens)
    expected = value_and_gradient((HIDDEN, KERNEL, BIAS), LABELS, chunk_tokens)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    np.testing.assert_array_equal(jnp.where(ignored, got[1][0], 0), 0)


@pytest.mark.parametrize("chunk_tokens", [None, 6, 1000])
def test_nothing_to_train_is_zero_with_zero_gradients(chunk_tokens):
    nothing = jnp.full_like(LABELS, IGNORE)
    (_, loss), gradient = value_and_gradient((HIDDEN, KERNEL, BIAS), nothing, chunk_tokens)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), (loss, gradient))


@pytest.mark.parametrize("chunk_tokens", [6, 1000])
def test_bfloat16_hidden_states(chunk_tokens):
    weights = (HIDDEN.astype(jnp.bfloat16), KERNEL, BIAS)
    (_, loss), gradient = value_and_gradient(weights, LABELS, chunk_tokens)
    assert all(x.dtype == jnp.float32 for x in loss)
    assert [g.dtype for g in gradient] == [jnp.bfloat16, jnp.float32, jnp.float32]
    # The products are bfloat16, everything after them is float32: as good as rounding the inputs.
    rounded = (weights[0].astype(jnp.float32), KERNEL.astype(jnp.bfloat16).astype(jnp.float32), BIAS)
    (expected, _), exact = value_and_gradient(rounded, LABELS, None)
    np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
    for a, b in zip(gradient, exact, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("chunk_tokens", [16, 1000])
def test_a_sharded_batch_equals_one_device(chunk_tokens):
    random = np.random.default_rng(1)
    hidden = jnp.asarray(random.standard_normal((8, 6, D)), jnp.float32)
    # Devices train very different numbers of tokens, one of them none.
    labels = jnp.where(jnp.arange(6) < jnp.arange(8)[:, None], jnp.asarray(random.integers(0, V, (8, 6))), IGNORE)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    expected = value_and_gradient((hidden, KERNEL, BIAS), labels, chunk_tokens, tied=True)
    weights = (jax.device_put(hidden, rows), KERNEL, BIAS)
    got = value_and_gradient(weights, jax.device_put(labels, rows), chunk_tokens, tied=True)
    assert len(got[1][0].sharding.device_set) == 8
    assert_close(jax.device_get(got), jax.device_get(expected))
    assert float(got[0][1].tokens) == 0 + 1 + 2 + 3 + 4 + 5 + 6 + 6


def test_chunks_bound_the_logits_in_memory():
    # 4,096 tokens of 5,000 words are 80 MB of logits, and twice that with their gradient; a chunk of 256 is 5 MB.
    def needed(chunk_tokens):
        shapes = (jax.ShapeDtypeStruct((4, 1024, 16), jnp.float32), jax.ShapeDtypeStruct((16, 5000), jnp.float32), None)
        labels = jax.ShapeDtypeStruct((4, 1024), jnp.int32)
        compiled = value_and_gradient.lower(shapes, labels, chunk_tokens, plain=True).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(4096) > 80e6
    assert needed(256) < 25e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cross_entropy(jnp.zeros((1, 2)), jnp.zeros(1, int), label_smoothing=1.0), "label_smoothing is 1.0"),
        (
            lambda: chunked_cross_entropy(HIDDEN, HeadWeights(KERNEL), LABELS, chunk_tokens=0),
            "chunk_tokens is 0, expected at least 1",
        ),
    ],
)
def test_options_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_class_weighted_cross_entropy_by_hand():
    # p = (1/4, 3/4) in the first, (1/2, 1/2) in the second row; class 1 counts three times.
    logits = jnp.array([[0.0, np.log(3.0)], [1.0, 1.0], [np.nan, np.inf]])
    labels = jnp.array([1, 0, -100])
    sums = F.class_weighted_cross_entropy(logits, labels, jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(sums.total, -3 * np.log(3 / 4) - np.log(1 / 2), rtol=1e-6)
    assert sums.weight == 4
    smooth = F.class_weighted_cross_entropy(logits, labels, jnp.array([1.0, 3.0]), label_smoothing=0.2)
    spread = -(np.log(1 / 4) + 3 * np.log(3 / 4)) / 2 - (1 + 3) * np.log(1 / 2) / 2
    np.testing.assert_allclose(smooth.total, 0.8 * float(sums.total) + 0.2 * spread, rtol=1e-6)
    assert smooth.weight == 4
    with pytest.raises(ValueError, match=r"label_smoothing is 1.0, expected"):
        F.class_weighted_cross_entropy(logits, labels, jnp.ones(2), label_smoothing=1.0)


def test_equal_class_weights_are_cross_entropy_with_its_gradient():
    logits = jax.random.normal(jax.random.key(0), (4, 5)) * 3
    labels = jnp.array([0, -100, 4, 2])

    def weighted(x):
        return F.class_weighted_cross_entropy(x, labels, jnp.ones(5), label_smoothing=0.1).total

    def plain(x):
        return F.cross_entropy(x, labels, label_smoothing=0.1).total

    np.testing.assert_allclose(weighted(logits), plain(logits), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(weighted)(logits), jax.grad(plain)(logits), atol=1e-6)
    hostile = logits.at[1].set(jnp.nan)
    assert not np.isnan(jax.grad(weighted)(hostile)).any()


def test_binary_cross_entropy_equals_optax_and_ignores_what_is_masked():
    logits = jnp.array([[2.0, -80.0, np.nan], [-0.5, 80.0, np.inf]])
    labels = jnp.array([[1, 0, -100], [0, 0, -100]])
    sums = F.binary_cross_entropy(logits, labels)
    expected = optax.sigmoid_binary_cross_entropy(logits[:, :2], labels[:, :2])
    np.testing.assert_allclose(sums.total, expected.sum(), rtol=1e-6)
    assert sums.weight == 4
    # d/dx = sigmoid(x) - y
    gradient = jax.grad(lambda x: F.binary_cross_entropy(x, labels).total)(logits)
    np.testing.assert_allclose(gradient[0], [1 / (1 + np.exp(-2.0)) - 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(gradient[1], [1 / (1 + np.exp(0.5)), 1, 0], atol=1e-6)


def test_squared_error_by_hand():
    predictions, weights = jnp.array([1.0, 4.0, np.inf]), jnp.array([1.0, 1.0, 0.0])
    sums = F.squared_error(predictions, jnp.array([3.0, 3.0, 0.0]), weights)
    assert (sums.total, sums.weight) == (5, 2)
    gradient = jax.grad(lambda x: F.squared_error(x, jnp.array([3.0, 3.0, 0.0]), weights).total)(predictions)
    np.testing.assert_allclose(gradient, [-4, 2, 0])
