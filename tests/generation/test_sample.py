import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxformer.families import build_model, model_config
from jaxformer.generation import sample
from jaxformer.models import TransformerConfig


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request):
    keys = {"type": request.param, "vocab_size": 17, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "unroll": 1}
    model = build_model(TransformerConfig(**model_config({**keys, "max_length": 24, "initializer_range": 0.3})))
    params = nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    return model, params


def test_greedy_is_the_argmax_of_the_full_forward_pass_at_every_step(pair):
    model, params = pair
    tokens = jax.random.randint(jax.random.key(1), (3, 5), 0, 17)
    new = sample(model, params, tokens, max_new_tokens=6, temperature=0.0)
    for count in range(6):
        prefix = jnp.concatenate([tokens, new[:, :count]], axis=1)
        expected = jnp.argmax(model.apply({"params": params}, prefix).logits[:, -1], axis=-1)
        np.testing.assert_array_equal(new[:, count], expected)


def test_padding_on_either_side_changes_nothing(pair):
    model, params = pair
    tokens = jax.random.randint(jax.random.key(1), (1, 5), 0, 17)
    alone = sample(model, params, tokens, max_new_tokens=4, temperature=0.0)
    for pad in ((3, 0), (0, 3), (2, 1)):
        padded = jnp.pad(tokens, ((0, 0), pad), constant_values=16)
        mask = jnp.pad(jnp.ones_like(tokens), ((0, 0), pad))
        np.testing.assert_array_equal(sample(model, params, padded, mask, max_new_tokens=4, temperature=0.0), alone)


def test_draws_are_a_function_of_seed_and_row(pair):
    model, params = pair
    tokens = jnp.zeros((4, 3), jnp.int32)
    draw = lambda seed, rows: np.asarray(sample(model, params, tokens[:rows], max_new_tokens=8, seed=seed))  # noqa: E731
    np.testing.assert_array_equal(draw(1, 4), draw(1, 4))
    np.testing.assert_array_equal(draw(1, 4)[:2], draw(1, 2))
    assert (draw(1, 4) != draw(2, 4)).any()
    assert len({row.tobytes() for row in draw(1, 4)}) == 4


def test_a_row_ends_with_eos_and_stays_there(pair):
    model, params = pair
    tokens = jnp.zeros((8, 3), jnp.int32)
    free = np.asarray(sample(model, params, tokens, max_new_tokens=12, temperature=2.0))
    eos = int(free[0, 3])
    ended = np.asarray(sample(model, params, tokens, max_new_tokens=12, temperature=2.0, eos_id=eos))
    for row, other in zip(ended, free, strict=True):
        (ends,) = np.nonzero(other == eos)
        stop = ends[0] if len(ends) else 12
        np.testing.assert_array_equal(row[:stop], other[:stop])
        assert (row[stop:] == eos).all()


def test_nothing_asked_and_too_much_asked(pair):
    model, params = pair
    tokens = jnp.zeros((2, 3), jnp.int32)
    assert sample(model, params, tokens, max_new_tokens=0).shape == (2, 0)
    with pytest.raises(ValueError, match="3 prompt and 22 new tokens, expected at most max_length 24"):
        sample(model, params, tokens, max_new_tokens=22)
