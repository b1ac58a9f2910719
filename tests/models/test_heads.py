"""Pooling and what a decoder reads of a text, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.families import build_model, model_config
from jaxformer.models import Inputs, TransformerConfig
from jaxformer.models.heads import Pooler, SequenceClassifier, TokenClassifier, pooled_tokens

STATES = jnp.arange(24.0).reshape(2, 3, 4)
MASK = jnp.array([[1, 1, 0], [0, 1, 1]])  # padded right, padded left


def config_of(**keys):
    sizes = {"hidden_size": 4, "num_heads": 2, "num_layers": 1, "vocab_size": 20, "max_length": 8}
    return TransformerConfig(**model_config({**sizes, **keys}))


@pytest.mark.parametrize(
    ("family", "pooling", "expected"),
    [
        ("bert", None, [[0, 1, 2, 3], [16, 17, 18, 19]]),
        ("bert", "last", [[4, 5, 6, 7], [20, 21, 22, 23]]),
        ("bert", "mean", [[2, 3, 4, 5], [18, 19, 20, 21]]),
        ("gpt2", None, [[4, 5, 6, 7], [20, 21, 22, 23]]),
        ("gpt2", "first", [[0, 1, 2, 3], [16, 17, 18, 19]]),
    ],
)
def test_the_state_of_a_text(family, pooling, expected):
    pooler = Pooler(config_of(type=family, pooling=pooling, pooler=None))
    np.testing.assert_array_equal(pooler.apply({}, STATES, MASK), expected)


def test_the_mean_of_nothing_is_zero_and_padding_may_hold_anything():
    pooler = Pooler(config_of(type="bert", pooling="mean", pooler=None))
    poisoned = STATES.at[0, 2].set(jnp.inf).at[1].set(jnp.nan)
    pooled = pooler.apply({}, poisoned, MASK.at[1].set(0))
    np.testing.assert_array_equal(pooled, [[2, 3, 4, 5], [0, 0, 0, 0]])


def test_the_layer_of_the_pooler_before_every_token():
    model = TokenClassifier(config_of(type="modernbert", window=3, global_every=2), 3)
    params = model.init(jax.random.key(0), jnp.ones((1, 2), int))["params"]
    assert set(params["pooler"]) == {"dense", "norm"} and set(params["pooler"]["dense"]) == {"kernel"}


@pytest.mark.parametrize(
    ("keys", "mask", "segments", "expected"),
    [
        ({"decoder_start_token_id": 9}, None, None, [[9, 1, 2, 3], [9, 5, 6, 7]]),
        ({"decoder_start_token_id": 9}, [[1, 1, 1, 0], [0, 0, 1, 1]], None, [[9, 1, 2, 3], [0, 5, 9, 7]]),
        ({"decoder_start_token_id": 9}, None, [[1, 1, 2, 2], [1, 2, 2, 0]], [[9, 1, 9, 3], [9, 9, 6, 7]]),
        ({"decoder_start": "last"}, [[1, 1, 1, 0], [0, 0, 1, 1]], None, [[3, 1, 2, 3], [0, 5, 8, 7]]),
        ({}, None, None, [[1, 2, 3, 4], [5, 6, 7, 8]]),
    ],
)
def test_what_the_decoder_reads_of_a_text(keys, mask, segments, expected):
    model = build_model(config_of(type="bart", **keys))
    inputs = Inputs(jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]]), mask, segment_ids=segments).arrays()
    shifted = model.apply({}, inputs, method="shifted")
    np.testing.assert_array_equal(shifted, expected)


def test_a_classifier_of_the_bart_family_reads_the_last_end_token():
    # 2 ends a text. mBART writes a language code behind it; a text without an end is read at its last token.
    ids = jnp.array([[5, 2, 6, 2, 9, 1], [5, 6, 2, 7, 2, 2], [5, 6, 7, 8, 1, 1]])
    mask = jnp.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]])
    model = SequenceClassifier(config_of(type="mbart", eos_token_id=2, pad_token_id=1), 3)
    read = pooled_tokens(model.config, Inputs(ids, mask))
    assert [np.flatnonzero(row)[-1] for row in np.asarray(read)] == [3, 2, 3]


@pytest.mark.parametrize("kind", [SequenceClassifier, TokenClassifier])
def test_a_classifier_of_two_configurations_reads_its_decoder_whatever_the_padding(kind):
    """T5Gemma's: the state of a text's last token, or of each, in the decoder, whose tokens are the text, shifted."""
    ids = {"pad_token_id": 0, "decoder_start_token_id": 1, "eos_token_id": 2}
    config = config_of(type="t5gemma", encoder={"hidden_size": 6, "head_size": 4}, **ids)
    model, text = kind(config, 3), jnp.array([[5, 6, 7]])
    params = model.init(jax.random.key(0), text)
    alone = model.apply(params, text).logits[0]
    padded = jnp.array([[5, 6, 7, 0, 0], [0, 0, 5, 6, 7]])
    logits = model.apply(params, padded, jnp.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])).logits
    got = [logits[0, :3], logits[1, 2:]] if kind is TokenClassifier else [logits[0], logits[1]]
    for row in got:
        np.testing.assert_allclose(row, alone, atol=1e-5)
    # Its states are the decoder's: what the start token is changes them.
    other = model.clone(config=config.model_copy(update={"decoder_start_token_id": 9}))
    assert not np.allclose(other.apply(params, text).logits[0], alone, atol=1e-4)
