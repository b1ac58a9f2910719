"""Gemma (Gemma Team 2024), the first: LLaMA with gated GELU, scaled embedding and norms that scale by 1 + weight.

``sqrt(D)`` multiplies the embedding in float32; transformers first rounds it to the dtype of the weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxformer.families import llama
from jaxformer.families.format import (
    Family,
    Key,
    attention_bias,
    read_activation,
    require,
    write_activation,
)
from jaxformer.families.rotary import read_rotary, write_rotary
from jaxformer.models.config import TransformerConfig

# The shape is that of Gemma 2B.
DEFAULTS = {
    **llama.DEFAULTS,
    "hidden_size": 2048,
    "num_layers": 18,
    "num_heads": 8,
    "num_kv_heads": 1,
    "head_size": 256,
    "intermediate_size": 16384,
    "max_length": 8192,
    "norm_epsilon": 1e-6,
    "norm_offset": 1.0,
    "activation": "gelu_tanh",
    "scale_embedding": True,
    "rope_theta": 10_000.0,
}


KEYS = (
    *(key for key in llama.KEYS if key.ours not in ("activation", "tie_embeddings")),
    Key("tie_embeddings", "tie_word_embeddings", True),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions and the activation."""
    if hf.get("use_bidirectional_attention"):
        require(hf, use_bidirectional_attention=False)
    # The first files said "gelu" and meant the formula with tanh, which a second key then named.
    act = read_activation(hf.get("hidden_activation") or hf.get("hidden_act", "gelu"))
    return {**read_rotary(hf), "activation": "gelu_tanh" if act == "gelu" else act}


def write(config: TransformerConfig) -> dict[str, Any]:
    """The way back; the activation under both keys."""
    act = "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else write_activation(config.activation)
    return {**write_rotary(config), "hidden_act": act, "hidden_activation": act}


FORMAT = replace(
    llama.FORMAT,
    model_type="gemma",
    keys=(*KEYS, *attention_bias(False)),
    # transformers has no Gemma for questions.
    heads={kind: head for kind, head in llama.heads("Gemma").items() if kind != "question_answering"},
    read=read,
    write=write,
)
FAMILY = Family("gemma", DEFAULTS, FORMAT)
