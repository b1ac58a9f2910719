"""LLaMA (Touvron et al. 2023): rotary positions, pre-norm RMSNorm, gated SiLU, grouped key/value heads, no biases."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.base import Family, Name, activation, linear, norm, require, rotary
from jaxformer.models.config import TransformerConfig

# The shape is that of Llama 3.2 1B, so that the bare defaults are a model people know.
DEFAULTS = {
    "hidden_size": 2048,
    "num_layers": 16,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_size": 64,
    "intermediate_size": 8192,
    "max_length": 8192,
    "norm": "rms_norm",
    "norm_epsilon": 1e-5,
    "activation": "silu",
    "gated": True,
    "use_bias": False,
    "positions": "rotary",
    "rope_theta": 500_000.0,
    "tie_embeddings": True,
}


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a LLaMA ``config.json``, of transformers 4 or 5.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    require(hf, attention_bias=False, mlp_bias=False)
    return {
        "type": "llama",
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "num_kv_heads": hf.get("num_key_value_heads"),
        "head_size": hf.get("head_dim"),
        "intermediate_size": hf["intermediate_size"],
        "max_length": hf["max_position_embeddings"],
        "norm_epsilon": hf["rms_norm_eps"],
        "activation": activation(hf, "hidden_act"),
        **rotary(hf),
        "tie_embeddings": hf.get("tie_word_embeddings", False),
        "initializer_range": hf["initializer_range"],
    }


def names(config: TransformerConfig) -> list[Name]:
    """Every kernel is a ``torch.nn.Linear`` weight, ``[out, in]``."""
    table = [
        Name("embeddings/token/embedding", "model.embed_tokens.weight"),
        *norm("final_norm", "model.norm", bias=False),
    ]
    if not config.tie_embeddings:
        table += linear("lm_head", "lm_head", bias=False)
    block = "model.layers.{}."
    table += norm("layers/attention_norm", f"{block}input_layernorm", bias=False)
    table += norm("layers/feed_forward_norm", f"{block}post_attention_layernorm", bias=False)
    linears = {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/output": "self_attn.o_proj",
        "feed_forward/gate": "mlp.gate_proj",
        "feed_forward/up": "mlp.up_proj",
        "feed_forward/down": "mlp.down_proj",
    }
    for ours, theirs in linears.items():
        table += linear(f"layers/{ours}", f"{block}{theirs}", bias=False)
    return table


FAMILY = Family("llama", DEFAULTS, from_hf, names)
