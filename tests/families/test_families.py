"""What holds for every family, driven by the table of published models and the golden files."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from jaxformer.families import FAMILIES, build_model, model_config
from jaxformer.models import TransformerConfig
from jaxformer.schema import UserError
from tests.families.compare import assert_parity
from tests.families.published import PUBLISHED
from tests.golden import make

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


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "add_cross_attention", True),
        ("gpt_neox", "attention_bias", False),
        ("opt", "do_layer_norm_before", False),
        ("opt", "word_embed_proj_dim", 512),
        ("opt", "enable_bias", False),
        ("opt", "layer_norm_elementwise_affine", False),
        ("opt", "_remove_final_layer_norm", True),
        ("bloom", "apply_residual_connection_post_layernorm", True),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("qwen3", "attention_bias", True),
        ("qwen3", "use_sliding_window", True),
        ("gemma", "use_bidirectional_attention", True),
    ],
)
def test_a_variant_without_a_switch_is_refused(family, key, value):
    hf = next(published.hf for published in PUBLISHED if published.family == family)
    with pytest.raises(UserError, match=f"config.json has {key}: {value}, expected .*; this variant is not supported"):
        FAMILIES[family].from_hf({**hf, key: value})


@pytest.mark.parametrize("name", make.CASES)
def test_logits_loss_and_gradients_of_pytorch(name):
    assert_parity(make.CASES[name][0], make.load(name))
