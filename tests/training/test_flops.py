import jax
import pytest

from jaxformer.families import build_model, model_config
from jaxformer.hub.kinds import abstract_params
from jaxformer.models import TransformerConfig
from jaxformer.models.masked_lm import MaskedLM
from jaxformer.training.flops import flops_per_step, peak_flops


def test_flops_by_hand():
    keys = {"vocab_size": 10, "hidden_size": 8, "num_layers": 3, "num_heads": 2, "max_length": 4}
    config = TransformerConfig(**model_config(keys))
    params = abstract_params(build_model(config))
    multiplying = 10 * 8 + 3 * (12 * 64 + 13 * 8) + 16
    assert flops_per_step(config, params, {"input_ids": (5, 4)}) == 5 * 4 * (6 * multiplying + 12 * 3 * 8 * 4)


def test_flops_of_an_encoder_decoder_and_of_hidden_tokens_by_hand():
    sizes = {"vocab_size": 10, "hidden_size": 8, "num_layers": 3, "num_heads": 2, "head_size": 4}
    config = TransformerConfig(**model_config({"type": "t5", **sizes, "intermediate_size": 5, "num_decoder_layers": 1}))
    params = abstract_params(build_model(config))
    encoder, decoder = 3 * (4 * 64 + 2 * 40 + 16) + 8, 8 * 64 + 2 * 40 + 24 + 8
    shapes = {"input_ids": (7, 6), "decoder_input_ids": (7, 4)}
    attention = 12 * 8 * (3 * 6 * 6 + 4 * (4 + 6))
    assert flops_per_step(config, params, shapes) == 7 * (6 * (encoder * 6 + (decoder + 80) * 4) + attention)

    config = TransformerConfig(**model_config({"type": "bert", **sizes}))
    params = abstract_params(MaskedLM(config))
    body, head = 3 * (12 * 64 + 13 * 8) + 16, 64 + 8 + 16 + 10 + 80
    shapes = {"input_ids": (7, 6), "masked_positions": (7, 2)}
    assert flops_per_step(config, params, shapes) == 7 * (6 * (body * 6 + head * 2) + 12 * 8 * 3 * 36)


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5 lite", 197e12), ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", None), ("NVIDIA L40S", None)]
)
def test_peaks(kind, peak):
    class Device:
        device_kind = kind

    assert peak_flops(Device()) == peak
    assert peak_flops(jax.devices()[0]) is None
