"""What holds for every family, driven by one table: a published model, its ``config.json`` and its size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from jaxformer.families import FAMILIES, build_model, model_config
from jaxformer.models import TransformerConfig
from tests.families.compare import assert_parity
from tests.golden import make


class Published(NamedTuple):
    """A published model.

    Attributes:
        family: ours.
        hub: its name on the Hugging Face Hub.
        parameters: their number, a tied head counted once, as PyTorch ``transformers`` 5.23 counts them for the
            published config on the meta device.
        hf: what its config.json says, as far as it is about the model.
        differs: the keys of ours in which the family's defaults are not those of this model.
    """

    family: str
    hub: str
    parameters: int
    hf: dict[str, Any]
    differs: dict[str, Any] = {}


PUBLISHED = [
    Published(
        "gpt2",
        "openai-community/gpt2",
        124_439_808,
        {
            "activation_function": "gelu_new",
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
        },
    ),
    Published(
        "llama",
        "meta-llama/Llama-3.2-1B",
        1_235_814_400,
        {
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 128256,
        },
        {"max_length": 131072, "rope_scaling": {"type": "llama3", "factor": 32.0}},
    ),
]
EVERY_PUBLISHED = pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.hub)


def config_of(family, **keys):
    return TransformerConfig(**model_config({"type": family, **keys}))


def shapes(config):
    return jax.eval_shape(build_model(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


@EVERY_PUBLISHED
def test_the_defaults_are_the_published_model(published):
    config = TransformerConfig(**model_config(FAMILIES[published.family].from_hf(published.hf)))
    assert config == config_of(published.family, vocab_size=published.hf["vocab_size"], **published.differs)


@EVERY_PUBLISHED
def test_the_published_model_has_its_size(published):
    config = TransformerConfig(**model_config(FAMILIES[published.family].from_hf(published.hf)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(config))) == published.parameters


def test_every_family_has_a_published_model_and_a_golden_file():
    assert {published.family for published in PUBLISHED} == set(FAMILIES)
    assert {family for family, _ in make.CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_names_every_parameter_once(family, tied):
    config = config_of(family, vocab_size=5, tie_embeddings=tied)
    ours = [name.ours for name in FAMILIES[family].names(config)]
    assert sorted(ours) == sorted(flatten_dict(shapes(config), sep="/"))


@pytest.mark.parametrize("name", make.CASES)
def test_logits_loss_and_gradients_of_pytorch(name):
    assert_parity(make.CASES[name][0], make.load(name))
