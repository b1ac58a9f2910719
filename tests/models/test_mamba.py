"""State-space models: initial values, states in generation, refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.generation import generate
from jaxformer.generation.speculative import speculative_generate
from jaxformer.models import TransformerConfig, init_cache
from jaxformer.schema import UserError
from tests.models.tiny import config_of, tiny, tokens


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.default_cases("mamba")
def test_initial_values_are_the_published_ones(name):
    model, _ = tiny(name)
    mixer = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens(1, 2)))["params"]["layers"]["mixer"]
    steps = jax.nn.softplus(mixer["time_step"]["bias"])
    assert float(steps.min()) >= 1e-3 * 0.999 and float(steps.max()) <= 1e-1 * 1.001
    np.testing.assert_array_equal(mixer["D"], 1.0)
    if name == "mamba":  # A = -1 ... -R in every channel
        np.testing.assert_allclose(jnp.exp(mixer["A_log"][1, 3]), np.arange(1, 6), rtol=1e-6)
    else:
        rates = jnp.exp(mixer["a_log"])
        assert float(rates.min()) >= 1 and float(rates.max()) <= 16


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.default_cases("mamba2")
def test_left_padding_and_beams_change_no_text(name):
    """The state follows its beam: each text has the log-probability that a full pass gives it."""
    model, params = tiny(name)
    prompt = np.asarray(tokens(1, 4))
    alone = generate(model, params, prompt, max_new_tokens=5, num_beams=3)
    ids = np.concatenate([np.full((1, 3), 7), prompt], axis=1)
    padded = generate(model, params, ids, np.array([[0] * 3 + [1] * 4]), max_new_tokens=5, num_beams=3)
    np.testing.assert_array_equal(padded.tokens, alone.tokens)
    text = jnp.concatenate([prompt, jnp.asarray(alone.tokens)], axis=1)
    log_probs = jax.nn.log_softmax(jax.jit(lambda p: model.apply({"params": p}, text).logits)(params))[0, 3:-1]
    total = float(jnp.sum(jnp.take_along_axis(log_probs, jnp.asarray(alone.tokens[0])[:, None], axis=-1)))
    np.testing.assert_allclose(np.asarray(alone.scores).ravel()[0] * 5, total, rtol=1e-4)


def test_a_state_does_not_grow_with_the_text():
    config = config_of("mamba")
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(init_cache(config, 2, n).layers)) for n in (8, 800)]
    assert sizes[0] == sizes[1] == 2 * 2 * (22 * 2 + 22 * 5)  # layers, rows, tail and state of 22 channels


def test_what_has_no_meaning_is_said():
    model, params = tiny("mamba")
    ids = tokens(1, 3)
    with pytest.raises(UserError, match="cache_dtype is int8 for a model with mixer mamba, expected float32 or bfl"):
        init_cache(model.config, 1, 4, dtype="int8")
    with pytest.raises(UserError, match="with mixer mamba was given, expected attention for speculative decoding"):
        speculative_generate(model, params, model, params, ids)
    for extra in ({"output_attentions": True}, {"prefix_mask": jnp.ones((1, 3))}):
        with pytest.raises(ValueError, match=f"{next(iter(extra))} is given to a model with mixer mamba, expected non"):
            model.apply({"params": params}, ids, **extra)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"positions": "rotary"}, "mixer is mamba2 and positions rotary, expected none or learned or sinusoidal"),
        ({"window": 3}, "mixer is mamba2 and window 3, expected null"),
        ({"numerics": "exact"}, "mixer is mamba2 and numerics exact, expected fast"),
        ({"num_heads": 4, "state_groups": 3}, "num_heads 4 and state_groups 3, expected each a multiple of the next"),
    ],
)
def test_switches_of_attention_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{"mixer": "mamba2", "positions": "none", "num_experts": None} | keys)
