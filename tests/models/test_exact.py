"""Exact numerics of every family: a row's bits whatever the batch, the padding and the cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.families import build_model
from jaxformer.models import exact as machine
from jaxformer.models import init_cache
from jaxformer.models.heads import SequenceClassifier
from jaxformer.schema import UserError
from tests.models import tiny

SOME = ("bert", "gpt2", "t5", "window")  # the others have no code of their own


def cases(names):
    return [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in names]


# These have no exact form.
REFUSED = ("deberta_v3", "mamba", "mamba2", "mixtral", "olmoe", "qwen3_moe")
# One of each kind of norm, place of norms, positions, mask, activation and side; the other families combine these.
EVERY = [
    *("albert", "alibi", "bart", "bert", "gemma2", "gpt2", "gptj", "llama", "modernbert", "mpnet", "olmo", "olmo2"),
    *("parallel", "post_norm", "roformer", "t5", "t5_v1_1", "transformer", "umt5", "window", "xglm"),
]
NAMES = cases(EVERY)
DECODERS = cases(name for name in EVERY if tiny.config_of(name).architecture == "decoder")
T, PLACES = 11, 18
IDS = np.asarray(tiny.tokens(8, T, seed=1))
SIDES = {
    "left": np.arange(PLACES - T, PLACES),
    "right": np.arange(T),
    "gaps": np.delete(np.arange(PLACES), [3, *range(6, 12)]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_form_is_refused(name):
    with pytest.raises(ValueError, match=r"numerics.* exact.* expected"):
        tiny.config_of(name, numerics="exact")


@functools.cache
def program(name, numerics="exact"):
    config = tiny.config_of(name, numerics=numerics)
    model = build_model(config)

    @jax.jit
    def scores(params, ids, mask, target):
        given = {} if target is None else {"decoder_input_ids": target}
        out = model.apply({"params": params}, ids, mask, **given)
        return out.last_hidden_state if config.architecture == "encoder" else out.logits

    return model, scores


def rows(name, ids, mask=None, numerics="exact", rows=8):
    model, scores = program(name, numerics)
    target = IDS[:rows, ::-1] if model.config.architecture == "encoder_decoder" else None
    return np.asarray(scores(tiny.random_params(model.config), ids, mask, target))


@functools.cache
def whole(name):
    return rows(name, IDS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.default_cases("gpt2", "window")
def test_rows_of_any_batch(name):
    for size in (1, 2, 3):
        assert rows(name, IDS[:size], rows=size).tobytes() == whole(name)[:size].tobytes(), size


@pytest.mark.parametrize("name", NAMES)
def test_padding_anywhere(name):
    for side, at in SIDES.items():
        ids, mask = np.zeros((8, PLACES), int), np.zeros((8, PLACES), int)
        ids[:, at], mask[:, at] = IDS, 1
        found = rows(name, ids, mask)
        found = found if found.shape[1] == T else found[:, at]
        assert np.array_equal(found, whole(name)), side


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_fast_numerics(name):
    fast = rows(name, IDS, numerics="fast")
    # The tolerance of a model: the scores of T5's random weights are in the hundreds, and softmax multiplies rounding.
    np.testing.assert_allclose(whole(name), fast, rtol=1e-4, atol=1e-4 * np.abs(fast).max())


@pytest.mark.parametrize("name", DECODERS)
def test_a_cache_in_any_pieces(name):
    model, _ = program(name)
    params = tiny.random_params(model.config)
    step = jax.jit(lambda ids, mask, cache: model.apply({"params": params}, ids, mask, cache=cache))
    cache, said = init_cache(model.config, 2, 20), [[], []]
    # Prompts of different lengths, padded on the left, then pieces with a row that ends early.
    pieces = [((3, 6), 6), ((4, 1), 4), ((1, 1), 1), ((1, 1), 1)]
    at = np.zeros(2, int)
    for counts, width in pieces:
        ids, mask = np.zeros((2, width), int), np.zeros((2, width), int)
        for row, count in enumerate(counts):
            ids[row, width - count :], mask[row, width - count :] = IDS[row, at[row] : at[row] + count], 1
        out = step(ids, mask, cache)
        cache = out.cache
        for row, count in enumerate(counts):
            said[row].append(np.asarray(out.logits)[row, width - count :])
            at[row] += count
    for row in range(2):
        assert np.array_equal(np.concatenate(said[row]), whole(name)[row, : at[row]])


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.default_cases("t5")
def test_a_target_token_by_token(name):
    model, _ = program(name)
    params = tiny.random_params(model.config)
    context = jax.jit(lambda ids: model.apply({"params": params}, ids, method="encode"))(IDS[:2])

    @jax.jit
    def step(context, ids, cache):  # a context that is no argument is a constant, from which XLA computes by itself
        hidden, cache = model.apply({"params": params}, context, ids, cache=cache, method="decode")
        return model.apply({"params": params}, hidden, method="logits"), cache

    cache, said = init_cache(model.config, 2, 20), []
    for i in range(T):
        logits, cache = step(context, IDS[:2, ::-1][:, i : i + 1], cache)
        said.append(np.asarray(logits))
    assert np.array_equal(np.concatenate(said, axis=1), whole(name)[:2])


def gradient(name, numerics):
    """Of a function of the scores of three rows, with respect to the parameters."""
    model, scores = program(name, numerics)
    target = IDS[:3, ::-1] if model.config.architecture == "encoder_decoder" else None
    return jax.grad(lambda p: jnp.sum(jnp.sin(scores(p, IDS[:3], None, target))))(tiny.random_params(model.config))


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "modernbert"])
@pytest.mark.default_cases("gpt2")
def test_gradients_are_those_of_fast_numerics(name):
    found = [gradient(name, numerics) for numerics in ("exact", "fast")]
    # The gradient of the keys' biases is zero in truth, and rounding of the others' size.
    rounding = 1e-6 * max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(found[1]))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5 * np.abs(other).max() + rounding)


def test_a_pooled_mean_of_any_padding():
    model = SequenceClassifier(tiny.config_of("bert", numerics="exact", pooling="mean"), num_labels=3)
    params = tiny.random_params(model.config, model)
    classify = jax.jit(lambda ids, mask: model.apply({"params": params}, ids, mask).logits)
    expected = np.asarray(classify(IDS, np.ones((8, T), int)))
    for at in SIDES.values():
        ids, mask = np.zeros((8, PLACES), int), np.zeros((8, PLACES), int)
        ids[:, at], mask[:, at] = IDS, 1
        assert np.array_equal(classify(ids, mask), expected)


def test_refuses_a_rounded_cache_and_lengths_that_change_angles():
    with pytest.raises(UserError, match="a cache of bfloat16 is asked for and numerics is exact"):
        init_cache(tiny.config_of("gpt2", numerics="exact"), 1, 8, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"rope_scaling.type dynamic"):
        tiny.config_of("mistral", numerics="exact", rope_scaling={"type": "dynamic", "factor": 2.0})


def test_refuses_a_machine_that_breaks_the_promise(monkeypatch):
    config = tiny.config_of("gpt2", numerics="exact")
    machine.check_exact(config)
    machine.check_exact(tiny.config_of("gpt2"), "gpu")
    with pytest.raises(UserError, match="numerics is exact on a gpu, expected a cpu"):
        machine.check_exact(config, "gpu")
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_depends_on_rows", lambda inputs, outputs: True)
        with pytest.raises(UserError, match="depend on their number"):
            machine.check_exact(config)
    monkeypatch.setattr(machine, "_depends_on_queries", lambda width: True)
    with pytest.raises(UserError, match="heads of width 6 depends on the number of queries"):
        machine.check_exact(config)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "deberta_v3"])
@pytest.mark.default_cases("gpt2", "deberta_v3")
def test_products_of_bfloat16_are_near_those_of_float32(name):
    """Gradients: the error is that of numbers with 8 bits, and there is one."""
    found = [gradient(name, numerics) for numerics in ("bfloat16", "fast")]
    one, other = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(leaves)]) for leaves in found)
    assert 0 < np.linalg.norm(one - other) < 0.2 * np.linalg.norm(other)


def test_bfloat16_is_refused_where_nothing_would_be_rounded_or_everything():
    with pytest.raises(ValueError, match="numerics is bfloat16 and dtype bfloat16, which rounds everything"):
        tiny.config_of("gpt2", numerics="bfloat16", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"numerics is bfloat16 and num_experts .*are not rounded"):
        tiny.config_of("mixtral", numerics="bfloat16")
