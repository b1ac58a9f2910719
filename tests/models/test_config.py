import pytest
from pydantic import ValidationError

from jaxformer.models import RopeScaling, TransformerConfig
from jaxformer.schema import UserError

ROPE = {"type": "linear", "factor": 2.0}


def test_sizes_that_follow_from_others():
    config = TransformerConfig(hidden_size=30, num_heads=6)
    assert (config.kv_heads, config.head_width, config.inner_size) == (6, 5, 120)
    config = TransformerConfig(hidden_size=30, num_heads=6, num_kv_heads=2, head_size=4, intermediate_size=7)
    assert (config.kv_heads, config.head_width, config.inner_size) == (2, 4, 7)


def test_a_gate_narrows_the_feed_forward():
    # Three matrices of 8/3 D have the parameters of two of 4 D; rounded up to a multiple of 64.
    assert TransformerConfig(hidden_size=192, num_heads=6, gated=True).inner_size == 512
    assert TransformerConfig(hidden_size=200, num_heads=5, gated=True).inner_size == 576
    assert TransformerConfig(hidden_size=200, num_heads=5, gated=True, intermediate_size=7).inner_size == 7


def test_a_head_size_frees_the_hidden_size():
    assert TransformerConfig(hidden_size=31, num_heads=6, head_size=8).head_width == 8


def test_the_vocabulary_must_be_known_in_the_end():
    assert TransformerConfig(vocab_size=7).vocabulary == 7
    with pytest.raises(
        UserError, match=r"model\.vocab_size is not set, expected a number; give it or train with a tok"
    ):
        _ = TransformerConfig().vocabulary


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"hidden_size": 100, "num_heads": 12},
            "hidden_size is 100 and num_heads 12, expected a multiple: set hidden_size to 96, or give head_size",
        ),
        ({"hidden_size": 5, "num_heads": 12}, "set hidden_size to 12, or give head_size"),
        ({"num_heads": 12, "num_kv_heads": 5}, "num_heads is 12 and num_kv_heads 5, expected a multiple of the latter"),
        ({"positions": "rotary", "head_size": 5}, "head_size is 5, expected an even number for rotary positions"),
        (
            {"positions": "rotary", "head_size": 12, "rotary_fraction": 0.25},
            "head_size is 12 times rotary_fraction 0.25, expected an even number",
        ),
        (
            {"positions": "sinusoidal", "hidden_size": 9, "num_heads": 3},
            "hidden_size is 9, expected an even number for sinusoidal positions",
        ),
        ({"rope_scaling": ROPE}, "rope_scaling is given with positions: learned, expected positions: rotary"),
        (
            {"parallel_residual": True, "norm_place": "post"},
            "parallel_residual is given with norm_place: post, expected norm_place: pre",
        ),
        (
            {"positions": "relative", "relative_buckets": 32, "relative_max_distance": 16},
            "relative_max_distance is 16 and relative_buckets 32, expected a distance above 16",
        ),
        ({"activation": "swish"}, "unknown activation 'swish', expected one of gelu, gelu_tanh, gelu_sigmoid"),
        ({"hiden_size": 8}, "hiden_size\n  Extra inputs are not permitted"),
        ({"num_layers": 0}, "greater than or equal to 1"),
        ({"dropout": 1.0}, "less than 1"),
        ({"window": 0}, "greater than or equal to 1"),
        ({"norm": "batch_norm"}, "'layer_norm' or 'rms_norm'"),
        (
            {"positions": "rotary", "rope_scaling": {"type": "ntk", "factor": 2.0}},
            "'longrope' or 'dynamic'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValidationError) as caught:
        TransformerConfig(**keys)
    assert message in str(caught.value)


def test_a_configuration_does_not_change():
    config = TransformerConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.num_layers = 3
    with pytest.raises(ValidationError, match="frozen"):
        RopeScaling(**ROPE).factor = 3.0


def test_every_key_says_what_it_means():
    for schema in (TransformerConfig, RopeScaling):
        assert [key for key, field in schema.model_fields.items() if not field.description] == []


def test_a_configuration_is_what_its_json_says():
    config = TransformerConfig(positions="rotary", rope_scaling=ROPE, vocab_size=3)
    assert TransformerConfig.model_validate_json(config.model_dump_json()) == config
