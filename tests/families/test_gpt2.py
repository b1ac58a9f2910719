import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from jaxformer.families import FAMILIES, build_model, model_config
from jaxformer.families.gpt2 import from_hf, names
from jaxformer.models import TransformerConfig
from tests.families.compare import assert_parity
from tests.golden import make

# What the published config.json of openai/gpt2 says, as far as it is about the model.
PUBLISHED = {
    "activation_function": "gelu_new",
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}


@pytest.mark.parametrize("name", ["gpt2_tied", "gpt2_untied"])
def test_logits_loss_and_gradients_of_pytorch(name):
    assert_parity("gpt2", make.load(name))


def test_the_defaults_are_the_published_model():
    bare = TransformerConfig(**model_config({"type": "gpt2", "vocab_size": 50257}))
    published = TransformerConfig(**model_config(from_hf(PUBLISHED)))
    assert bare == published
    params = jax.eval_shape(build_model(bare).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    # The sum over the shapes of the published checkpoint, the tied head counted once.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 124_439_808


@pytest.mark.parametrize("tied", [True, False])
def test_the_table_names_every_parameter_once(tied):
    config = TransformerConfig(**model_config({"type": "gpt2", "vocab_size": 5, "tie_embeddings": tied}))
    params = jax.eval_shape(build_model(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    ours = [name.ours for name in names(config)]
    assert sorted(ours) == sorted(flatten_dict(params, sep="/"))


def test_the_family_is_registered():
    assert FAMILIES["gpt2"].from_hf is from_hf
