import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from jaxformer.families import FAMILIES, build_model, model_config
from jaxformer.families.llama import from_hf, names
from jaxformer.models import RopeScaling, TransformerConfig
from tests.families.compare import assert_parity
from tests.golden import make

# What the published config.json of meta-llama/Llama-3.2-1B says, as far as it is about the model.
SCALING = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
PUBLISHED = {
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
    "rope_scaling": {**SCALING, "rope_type": "llama3"},
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied"])
def test_logits_loss_and_gradients_of_pytorch(name):
    assert_parity("llama", make.load(name))


def test_the_defaults_have_the_size_of_the_published_model():
    bare = TransformerConfig(**model_config({"type": "llama", "vocab_size": 128256}))
    published = TransformerConfig(**model_config(from_hf(PUBLISHED)))
    scaling = RopeScaling(type="llama3", factor=32.0)
    assert published == bare.model_copy(update={"max_length": 131072, "rope_scaling": scaling})
    params = jax.eval_shape(build_model(published).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_235_814_400


def test_transformers_5_keeps_rotary_keys_together():
    hf = {key: value for key, value in PUBLISHED.items() if key not in ("rope_theta", "rope_scaling")}
    hf["rope_parameters"] = {**SCALING, "rope_type": "llama3", "rope_theta": 500000.0}
    assert from_hf(hf) == from_hf(PUBLISHED)


def test_rotary_scaling_of_older_checkpoints():
    plain = from_hf({**PUBLISHED, "rope_scaling": None})
    assert plain["rope_scaling"] is None and plain["rope_theta"] == 500000.0
    linear = from_hf({**PUBLISHED, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert linear["rope_scaling"] == {"type": "linear", "factor": 2.0}


@pytest.mark.parametrize("tied", [True, False])
def test_the_table_names_every_parameter_once(tied):
    config = TransformerConfig(**model_config({"type": "llama", "vocab_size": 5, "tie_embeddings": tied}))
    params = jax.eval_shape(build_model(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    ours = [name.ours for name in names(config)]
    assert sorted(ours) == sorted(flatten_dict(params, sep="/"))


def test_the_family_is_registered():
    assert FAMILIES["llama"].from_hf is from_hf
