"""Distillation against TRL's divergence and optax's, its value and its gradient; in chunks against the whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import functional as F
from tests.golden import alignment

GOLDEN = alignment.load()
DRAWN = {name: jnp.asarray(array) for name, array in alignment.inputs().items()}
MASK = DRAWN["mask"][0]
LABELS = jnp.where(MASK == 1, 0, -100)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_trl(temperature):
    poison = jnp.where(MASK[..., None] == 1, 0.0, jnp.inf)

    def total(student):
        loss = F.distillation_loss(student, DRAWN["teacher"] - poison, LABELS, temperature=temperature)
        return loss.total, loss.weight

    (value, weight), gradient = jax.value_and_grad(total, has_aux=True)(DRAWN["student"] + poison)
    name, square = f"distillation_{temperature}", temperature**2  # TRL leaves Hinton's factor out
    np.testing.assert_allclose(value, square * GOLDEN[f"{name}/loss"], rtol=1e-6)
    np.testing.assert_allclose(gradient, square * GOLDEN[f"{name}/gradient"], rtol=1e-5, atol=1e-6)
    assert weight == MASK.sum()


def test_the_same_logits_have_no_divergence_and_the_teacher_no_gradient():
    both = DRAWN["teacher"]
    value, gradients = jax.value_and_grad(
        lambda s, t: F.distillation_loss(s, t, LABELS, temperature=2.0).total, argnums=(0, 1)
    )(both, both)
    assert value == 0
    np.testing.assert_allclose(gradients[0], 0, atol=1e-6)
    assert np.all(gradients[1] == 0)


def test_a_word_that_the_teacher_rules_out_counts_nothing():
    teacher = jnp.array([[0.0, 0.0, -jnp.inf]])
    value, gradient = jax.value_and_grad(lambda s: F.distillation_loss(s, teacher, jnp.array([0])).total)(
        jnp.zeros((1, 3))
    )
    np.testing.assert_allclose(value, np.log(3 / 2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-1 / 6, -1 / 6, 1 / 3]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"temperature is 0\.0, expected a number above 0"):
        F.distillation_loss(teacher, teacher, jnp.array([0]), temperature=0.0)


# The chunked loss: two models of different widths, the teacher's table with three rows that stand for no token.
RANDOM = np.random.default_rng(3)
N, LENGTH, D, E, V = 3, 10, 5, 4, 7
HIDDEN, TEACHER_HIDDEN = (jnp.asarray(RANDOM.standard_normal((N, LENGTH, size)), jnp.float32) for size in (D, E))
KERNEL = jnp.asarray(RANDOM.standard_normal((D, V)), jnp.float32)
TEACHER_TABLE = jnp.asarray(RANDOM.standard_normal((V + 3, E)), jnp.float32)
BIAS = jnp.asarray(RANDOM.standard_normal(V), jnp.float32)
WORDS = jnp.asarray(RANDOM.integers(0, V, (N, LENGTH))).at[0, 3].set(F.IGNORE).at[1, 6:].set(F.IGNORE)
OPTIONS = {"temperature": 2.5, "hard_weight": 0.3}


def by_optax(hidden, kernel, bias, labels, temperature, hard_weight):
    """The same sums over whole logits, put together from optax's pieces."""
    trained = labels != F.IGNORE
    student = hidden @ kernel + (0.0 if bias is None else bias)
    teacher = (TEACHER_HIDDEN @ TEACHER_TABLE.T)[..., :V]
    targets = jax.nn.softmax(teacher / temperature)
    divergence = temperature**2 * optax.losses.kl_divergence(jax.nn.log_softmax(student / temperature), targets)
    nll = optax.losses.softmax_cross_entropy_with_integer_labels(student, jnp.where(trained, labels, 0))
    divergence, nll = (jnp.sum(each, where=trained) for each in (divergence, nll))
    agreed = jnp.sum((student.argmax(-1) == teacher.argmax(-1)) & trained)
    total = (1 - hard_weight) * divergence + hard_weight * nll
    return total, F.DistillationSums(total, divergence, nll, agreed, jnp.sum(trained))


@partial(jax.jit, static_argnames=("chunk_tokens", "tied", "temperature", "hard_weight"))
def chunked(hidden, kernel, bias, labels, teacher_hidden=TEACHER_HIDDEN, chunk_tokens=4, tied=False, **options):
    def total(hidden, kernel, bias):
        head = F.HeadWeights(kernel.T if tied else kernel, bias, tied)
        teacher = F.HeadWeights(TEACHER_TABLE, tied=True)
        sums = F.chunked_distillation_loss(
            hidden, head, teacher_hidden, teacher, labels, chunk_tokens=chunk_tokens, **options
        )
        return sums.total, sums

    arguments = (0, 1) if bias is None else (0, 1, 2)
    return jax.value_and_grad(total, argnums=arguments, has_aux=True)(hidden, kernel, bias)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 13, 1000])
def test_chunks_are_the_whole_in_value_and_gradient(chunk_tokens):
    tied, bias = chunk_tokens % 2 == 0, BIAS if chunk_tokens > 10 else None
    arguments = (0, 1) if bias is None else (0, 1, 2)
    expected = jax.value_and_grad(by_optax, argnums=arguments, has_aux=True)(HIDDEN, KERNEL, bias, WORDS, **OPTIONS)
    got = chunked(HIDDEN, KERNEL, bias, WORDS, chunk_tokens=chunk_tokens, tied=tied, **OPTIONS)
    for ours, theirs in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)
    assert got[0][1].agreed == expected[0][1].agreed > 0


@pytest.mark.parametrize("chunk_tokens", [4, 1000])
def test_what_ignored_tokens_hold_counts_nothing(chunk_tokens):
    ignored = (WORDS == F.IGNORE)[..., None]
    expected = chunked(HIDDEN, KERNEL, BIAS, WORDS, chunk_tokens=chunk_tokens, **OPTIONS)
    poison = jnp.where(ignored, jnp.nan, HIDDEN), jnp.where(ignored, jnp.inf, TEACHER_HIDDEN)
    got = chunked(poison[0], KERNEL, BIAS, WORDS, poison[1], chunk_tokens=chunk_tokens, **OPTIONS)
    for ours, theirs in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.all(np.asarray(got[1][0])[ignored[..., 0]] == 0)
    nothing = chunked(*poison[:1], KERNEL, BIAS, jnp.full_like(WORDS, F.IGNORE), chunk_tokens=chunk_tokens, **OPTIONS)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(nothing))


def test_a_batch_on_eight_devices_equals_one():
    hidden, teacher = (jnp.tile(array[:1], (8, 1, 1)) for array in (HIDDEN, TEACHER_HIDDEN))
    labels = jnp.where(jnp.arange(LENGTH) < jnp.arange(8)[:, None], jnp.tile(WORDS[2:], (8, 1)), F.IGNORE)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    expected = chunked(hidden, KERNEL, BIAS, labels, teacher, chunk_tokens=16, **OPTIONS)
    placed = [jax.device_put(array, rows) for array in (hidden, labels, teacher)]
    got = jax.device_get(chunked(placed[0], KERNEL, BIAS, *placed[1:], chunk_tokens=16, **OPTIONS))
    for ours, theirs in zip(*map(jax.tree.leaves, (got, jax.device_get(expected))), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_chunks_bound_the_logits_in_memory():
    # 4,096 tokens of 5,000 words are 80 MB of logits in each model; a chunk of 256 is 5 MB.
    def needed(chunk_tokens):
        def loss(hidden, kernel, teacher_hidden, teacher_kernel, labels):
            heads = F.HeadWeights(kernel), F.HeadWeights(teacher_kernel)
            return F.chunked_distillation_loss(
                hidden, heads[0], teacher_hidden, heads[1], labels, chunk_tokens=chunk_tokens
            ).total

        hidden = jax.ShapeDtypeStruct((4, 1024, 16), jnp.float32)
        kernel = jax.ShapeDtypeStruct((16, 5000), jnp.float32)
        labels = jax.ShapeDtypeStruct((4, 1024), jnp.int32)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, kernel, hidden, kernel, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(4096) > 160e6
    assert needed(256) < 40e6


def test_options_out_of_range():
    with pytest.raises(ValueError, match=r"hard_weight is 1\.5, expected 0 <= hard_weight <= 1"):
        chunked(HIDDEN, KERNEL, BIAS, WORDS, hard_weight=1.5)
    with pytest.raises(ValueError, match="chunk_tokens is 0, expected at least 1"):
        chunked(HIDDEN, KERNEL, BIAS, WORDS, chunk_tokens=0)
    with pytest.raises(ValueError, match="the teacher has 10 words, expected the student's 11"):
        chunked(HIDDEN, jnp.zeros((D, 11)), None, WORDS)
