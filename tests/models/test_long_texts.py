"""Models of long texts: BigBird's block-sparse attention, LongT5's neighbourhoods with sums of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.check.textbook import states
from tests.models.tiny import config_of, tiny, tokens

T = 27
SPARSE = {"sparse_block_size": 2, "num_random_blocks": 1, "max_length": 32}


def exact(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def test_block_sparse_states_are_those_of_the_textbook():
    model, params = tiny("big_bird", **SPARSE)
    ids = tokens(2, T)
    assert model.config.is_sparse(T) and not model.config.is_sparse(14)
    run = jax.jit(lambda ids: model.apply({"params": params}, ids, output_attentions=True))
    output = run(ids)
    for row in range(2):
        expected = states(model.config, exact(params), np.asarray(ids[row]), causal=False)
        np.testing.assert_allclose(output.last_hidden_state[row], expected, atol=1e-4)
    np.testing.assert_allclose(np.sum(output.attentions[0], axis=-1), 1.0, atol=1e-5)
    full, _ = tiny("big_bird", **{**SPARSE, "sparse_block_size": None})
    other = full.apply({"params": params}, ids).last_hidden_state
    assert not np.allclose(other, output.last_hidden_state, atol=1e-2)


def test_padding_on_the_left_of_block_sparse_attention_changes_nothing():
    model, params = tiny("big_bird", **SPARSE)
    ids, real = np.asarray(tokens(1, T)), np.arange(T)[None] < 19
    run = jax.jit(lambda ids, real: model.apply({"params": params}, ids, real).last_hidden_state)
    right = run(ids, real)
    left = run(np.roll(ids, T - 19, axis=1), np.roll(real, T - 19, axis=1))
    np.testing.assert_allclose(left[0, -19:], right[0, :19], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "switches"),
    [("big_bird", SPARSE), ("longt5", {"encoder_window": 3, "summary_size": 4, "max_length": 32})],
)
def test_training_with_remat_is_training_without(name, switches):
    found = []
    for remat in ("none", "full"):
        model, params = tiny(name, **switches, remat=remat, dropout=0.1, attention_dropout=0.1)
        ids = tokens(2, T)

        def loss(params, model=model, ids=ids):
            rngs = {"dropout": jax.random.key(0)}
            output = model.apply({"params": params}, ids, deterministic=False, rngs=rngs)
            return jnp.mean(jnp.sin(output.last_hidden_state))

        found.append(jax.jit(jax.value_and_grad(loss))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)
    model, params = tiny(name, **switches)
    assert abs(float(jnp.mean(jnp.sin(model.apply({"params": params}, ids).last_hidden_state))) - found[0][0]) > 1e-5


def test_packed_documents_of_long_t5_are_those_alone():
    model, params = tiny("longt5", encoder_window=2, summary_size=3, max_length=32)
    first, second = np.asarray(tokens(1, 11)), np.asarray(tokens(2, 8))[1:]
    ids = np.concatenate([first, second, np.zeros((1, 3), int)], axis=1)
    segments = np.array([[1] * 11 + [2] * 8 + [0] * 3])
    encode = jax.jit(lambda ids, **inputs: model.apply({"params": params}, ids, method="encode", **inputs).hidden)
    packed = encode(ids, segment_ids=segments)
    np.testing.assert_allclose(packed[:, :11], encode(first), atol=1e-5)
    np.testing.assert_allclose(packed[:, 11:19], encode(second), atol=1e-5)


def test_what_does_not_go_together_is_refused():
    model, params = tiny("big_bird", **SPARSE)
    with pytest.raises(ValueError, match="segment_ids are given for block-sparse attention of 27 tokens, expected one"):
        model.apply({"params": params}, tokens(1, T), segment_ids=jnp.ones((1, T), int))
    for name, switches, message in (
        ("longt5", {"window": 4}, "encoder_window is 2 and window 4, expected window None"),
        ("longt5", {"positions": "learned"}, "and positions learned, expected positions relative"),
        ("longt5", {"encoder_window": None}, "summary_size is 3 without encoder_window, expected both"),
        ("big_bird", {"window": 4}, "sparse_block_size is 64 with window 4, expected one of them"),
        ("bert", {"encoder_window": 4}, "architecture encoder, expected architecture encoder_decoder"),
    ):
        with pytest.raises(ValueError, match=message):
            config_of(name, **switches)
