"""T5 (Raffel et al. 2020) and its successors: relative position biases, RMS norm, no biases, unscaled scores."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxformer.families.base import ACTIVATIONS, Family, Name, linear, norm
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

# T5-small of version 1.0. Relative positions have no longest length; 512 is what it was trained with.
T5: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "hidden_size": 512,
    "num_layers": 6,
    "num_heads": 8,
    "head_size": 64,
    "intermediate_size": 2048,
    "max_length": 512,
    "norm": "rms_norm",
    "norm_place": "pre",
    "norm_epsilon": 1e-6,
    "activation": "relu",
    "gated": False,
    "use_bias": False,
    "positions": "relative",
    "relative_buckets": 32,
    "relative_max_distance": 128,
    "scale_scores": False,
    "tie_embeddings": True,
    "scale_logits": True,
    "pooler": "tanh",
    "initializer": "fan_in",
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
# Version 1.1 was pre-trained without dropout; Flan-T5 and mT5 are of the same shape (Chung et al. 2022; Xue et al.
# 2021), mT5 with a vocabulary of 250,112.
T5_V1_1 = {
    **T5,
    "num_layers": 8,
    "num_heads": 6,
    "intermediate_size": 1024,
    "activation": "gelu_tanh",
    "gated": True,
    "tie_embeddings": False,
    "scale_logits": False,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def from_hf(hf: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a T5 or mT5 ``config.json``.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    kind = hf["feed_forward_proj"]
    gated = kind.startswith("gated-")
    activation = kind.removeprefix("gated-")
    # "gated-gelu" means the tanh form: the only exception to the names (T5 v1.1's own configuration).
    activation = "gelu_new" if gated and activation == "gelu" else activation
    if activation not in ACTIVATIONS:
        raise UserError(f"feed_forward_proj is {kind!r}, expected [gated-] and one of {list(ACTIVATIONS)}")
    tied = hf.get("tie_word_embeddings", True)
    return {
        "type": name,
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["d_model"],
        "num_layers": hf["num_layers"],
        "num_decoder_layers": hf.get("num_decoder_layers"),
        "num_heads": hf["num_heads"],
        "head_size": hf["d_kv"],
        "intermediate_size": hf["d_ff"],
        "norm_epsilon": hf["layer_norm_epsilon"],
        "activation": ACTIVATIONS[activation],
        "gated": gated,
        "relative_buckets": hf["relative_attention_num_buckets"],
        "relative_max_distance": hf.get("relative_attention_max_distance", 128),
        "tie_embeddings": tied,
        # mT5 never scales; version 5 of transformers writes the factor under a name of its own.
        "scale_logits": name != "mt5" and hf.get("scale_decoder_outputs", tied),
        "dropout": hf["dropout_rate"],
        "attention_dropout": hf["dropout_rate"],
    }


def names(config: TransformerConfig) -> list[Name]:
    """``T5ForConditionalGeneration``; the relative bias stands in the first block of each side."""
    table = [Name("shared/embedding", "shared.weight")]
    if not config.tie_embeddings:
        table.append(Name("lm_head/kernel", "lm_head.weight", transposed=True))
    sublayers = {
        "encoder": [("attention", "SelfAttention"), ("feed_forward", "DenseReluDense")],
        "decoder": [
            ("attention", "SelfAttention"),
            ("cross_attention", "EncDecAttention"),
            ("feed_forward", "DenseReluDense"),
        ],
    }
    linears = {
        "SelfAttention": {"query": "q", "key": "k", "value": "v", "output": "o"},
        "EncDecAttention": {"query": "q", "key": "k", "value": "v", "output": "o"},
        "DenseReluDense": {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.gated else {"up": "wi", "down": "wo"},
    }
    for side, parts in sublayers.items():
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table.append(Name(f"{side}/relative_bias/embedding", bias))
        table += norm(f"{side}/final_norm", f"{side}.final_layer_norm", bias=False)
        for index, (ours, theirs) in enumerate(parts):
            layer = f"{side}.block.{{}}.layer.{index}"
            table += norm(f"{side}/layers/{ours}_norm", f"{layer}.layer_norm", bias=False)
            for part, name in linears[theirs].items():
                table += linear(f"{side}/layers/{ours}/{part}", f"{layer}.{theirs}.{name}", bias=False)
    return table


FAMILIES = tuple(
    Family(name, defaults, partial(from_hf, name=name), names, "span_corruption")
    for name, defaults in (("t5", T5), ("t5_v1_1", T5_V1_1), ("flan_t5", T5_V1_1), ("mt5", T5_V1_1))
)
