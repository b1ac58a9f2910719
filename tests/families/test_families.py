"""What holds for every family, driven by the table of published models and the golden files."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from jaxformer.families import FAMILIES, build_model, family_of, model_config
from jaxformer.hub.kinds import WITH_POOLER, abstract_params, build
from jaxformer.models import TransformerConfig
from jaxformer.models.heads import SequenceClassifier
from jaxformer.schema import UserError
from tests.families.compare import assert_bidirectional_parity, assert_parity
from tests.families.published import PUBLISHED, resolved
from tests.golden import bidirectional, heads, make

EVERY_PUBLISHED = pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.hub)


def config_of(family, **keys):
    return TransformerConfig(**model_config({"type": family, **keys}))


def shapes(config, model=None):
    model = model or build_model(config)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@EVERY_PUBLISHED
def test_the_defaults_are_the_published_model(published):
    config = TransformerConfig(**model_config(FAMILIES[published.family].from_hf(published.hf)))
    defaults = config_of(published.family, vocab_size=published.hf["vocab_size"], **published.differs)
    # A size may be left to follow from others.
    assert resolved(config) == resolved(defaults)


@EVERY_PUBLISHED
def test_the_published_model_has_its_size(published):
    config = TransformerConfig(**model_config(FAMILIES[published.family].from_hf(published.hf)))
    params = shapes(config)
    # transformers counts the pooler to the body; CLIP's has no layer.
    if published.family in WITH_POOLER and config.pooler is not None:
        params["pooler"] = shapes(config, SequenceClassifier(config))["pooler"]
    if config.encoder is not None and published.family == "encoder_decoder":
        params["pooler"] = FAMILIES[published.family].hub.derived(config)
    # The first block of ModernBERT has no norm before its attention; ours is there and not used.
    unused = 0 if config.first_norm else config.hidden_size
    assert size(params) - unused == published.parameters


def test_the_transformer_of_2017_has_the_size_its_paper_says():
    """Vaswani et al. 2017, table 3: 65 million with a vocabulary of about 37,000."""
    assert round(size(shapes(config_of("transformer", vocab_size=37_000))) / 1e6) in (63, 64, 65)


def test_every_family_has_a_published_model_and_a_golden_file():
    # The Transformer of 2017 is not on the Hub; a parity test compares it with PyTorch's own layers.
    families = set(FAMILIES) - {"transformer"}
    assert {published.family for published in PUBLISHED} == families
    golden = {family for family, _, _ in heads.FAMILIES.values()}
    assert golden | {"flan_t5", "byt5"} == families, "these are others under another name"


EVERY_HEAD = [(name, kind) for name, family in FAMILIES.items() if family.format for kind in family.format.heads]
# Rows for what only a relative of the family has, or another head (T5 tags tokens with the encoder alone).
OPTIONAL = {"lm_head", "embeddings/token_type", "layers/attention/query_norm", "layers/attention/key_norm"}
SHARED_TABLES = {name for name, family in FAMILIES.items() if family.defaults.get("architecture") == "encoder_decoder"}
SHARED_TABLES |= {"electra", "roformer"}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("family", "kind"), EVERY_HEAD)
@pytest.mark.default_cases("bert-*", "gpt2-*", "llama-*", "modernbert-*", "t5-*")
def test_the_table_names_every_parameter_once(family, kind, tied):
    config = config_of(family, vocab_size=5)
    architecture = "decoder" if kind == "causal_lm" else config.architecture
    changes = {"tie_embeddings": tied, "architecture": architecture}
    if family == "marian" and kind == "causal_lm":
        changes["logits_bias"] = False  # of the whole model only
    config = config.model_copy(update=changes)
    names = FAMILIES[family].hub.names(config, kind)
    ours, model = [name.ours for name in names], set(flatten_dict(abstract_params(build(config, kind)), sep="/"))
    assert len(ours) == len(set(ours))
    assert set(ours) >= model
    # A layer may have rows that its kind lacks, as the bias of an RMS norm.
    layers = {path.rpartition("/")[0] for path in model}
    assert family in SHARED_TABLES or {path.rpartition("/")[0] for path in ours} - OPTIONAL == layers - OPTIONAL
    # Theirs are in it as often as they have parts.
    assert all(sum(n.theirs == name.theirs for n in names) == name.part[1] for name in names)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "add_cross_attention", True),
        ("opt", "do_layer_norm_before", False),
        ("opt", "word_embed_proj_dim", 512),
        ("opt", "enable_bias", False),
        ("opt", "layer_norm_elementwise_affine", False),
        ("opt", "_remove_final_layer_norm", True),
        ("bloom", "apply_residual_connection_post_layernorm", True),
        ("marian", "share_encoder_decoder_embeddings", False),
        ("pegasus", "static_position_embeddings", False),
        ("gemma", "use_bidirectional_attention", True),
        ("bert", "position_embedding_type", "relative_key"),
        ("roberta", "add_cross_attention", True),
        ("albert", "is_decoder", True),
        ("distilbert", "sinusoidal_pos_embds", True),
        ("electra", "position_embedding_type", "relative_key"),
        ("albert", "num_hidden_groups", 2),
        ("modernbert", "norm_bias", True),
    ],
)
def test_a_variant_without_a_switch_is_refused(family, key, value):
    hf = next(published.hf for published in PUBLISHED if published.family == family)
    with pytest.raises(
        UserError, match=f"config.json has {key}: {value!r}, expected .*; this variant is not supported"
    ):
        FAMILIES[family].from_hf({**hf, key: value})


@EVERY_PUBLISHED
def test_the_published_config_comes_back(published):
    """Read, written and read again: the same model."""
    family = FAMILIES[published.family]
    config = TransformerConfig(**model_config(family.from_hf(published.hf)))
    for kind in family.hub.heads:
        written = json.loads(json.dumps(family.hub.to_hf(config, kind)))
        assert family_of(written).format is family.format
        again = TransformerConfig(**model_config(family.from_hf(written)))
        assert resolved(config) == resolved(again)


@pytest.mark.parametrize("name", [*make.CASES, *bidirectional.CASES])
@pytest.mark.default_cases("albert", "bart", "bert", "gpt2_tied", "llama_untied", "modernbert", "opt", "qwen3", "t5")
def test_logits_loss_and_gradients_of_pytorch(name):
    if name in bidirectional.CASES:
        assert_bidirectional_parity(name, make.load(name))
    else:
        assert_parity(make.CASES[name][0], make.load(name))


def published_hf(family):
    return next(published.hf for published in PUBLISHED if published.family == family)


def test_the_names_of_blooms_sizes_changed_over_time():
    hf, from_hf = published_hf("bloom"), FAMILIES["bloom"].from_hf
    later = {"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "num_attention_heads": "n_head"}
    assert from_hf({later.get(key, key): value for key, value in hf.items()}) == from_hf(hf)


@pytest.mark.parametrize(
    "keys",
    [
        {"hidden_act": "gelu"},
        {"hidden_act": "gelu", "hidden_activation": None},
        {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_pytorch_tanh"},
    ],
    ids=str,
)
def test_every_spelling_of_gemmas_activation_is_the_formula_with_tanh(keys):
    hf = {key: value for key, value in published_hf("gemma").items() if key not in ("hidden_act", "hidden_activation")}
    assert FAMILIES["gemma"].from_hf({**hf, **keys})["activation"] == "gelu_tanh"


def test_rotary_scaling_of_every_version():
    hf, from_hf = published_hf("llama"), FAMILIES["llama"].from_hf
    five = from_hf({**hf, "rope_scaling": None, "rope_parameters": {**hf["rope_scaling"], "rope_theta": 500000.0}})
    assert from_hf(hf) == five
    assert five["rope_theta"] == 500000.0
    assert five["rope_scaling"] == {
        "type": "llama3",
        "factor": 32.0,
        "low_frequency_factor": 1.0,
        "high_frequency_factor": 4.0,
        "original_max_length": 8192,
    }
    plain = from_hf({**hf, "rope_scaling": None})
    assert plain["rope_scaling"] is None and plain["rope_theta"] == 500000.0
    linear = from_hf({**hf, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert linear["rope_scaling"] == {"type": "linear", "factor": 2.0}
