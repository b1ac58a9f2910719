"""Gemma (Gemma Team 2024), the first: LLaMA with gated GELU, scaled embedding and norms that scale by 1 + weight.

``sqrt(D)`` multiplies the embedding in float32; transformers first rounds it to the dtype of the weights.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.families import llama
from jaxformer.families.base import Family, activation, require

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


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a Gemma ``config.json``, of transformers 4 or 5.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    if hf.get("use_bidirectional_attention"):
        require(hf, use_bidirectional_attention=False)
    # The first files said "gelu" and meant the formula with tanh, which a second key then named.
    act = activation({"hidden_act": hf.get("hidden_activation") or hf["hidden_act"]}, "hidden_act")
    return {
        **llama.from_hf(hf),
        "type": "gemma",
        "activation": "gelu_tanh" if act == "gelu" else act,
        "tie_embeddings": hf.get("tie_word_embeddings", True),
    }


FAMILY = Family("gemma", DEFAULTS, from_hf, llama.names)
