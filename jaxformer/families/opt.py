"""OPT (Zhang et al. 2022): learned positions from row 2 of their table on, pre-norm LayerNorm, ReLU, tied head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.base import Family, Name, activation, linear, norm, require
from jaxformer.models.config import TransformerConfig

# The shape is that of OPT 125M.
DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "max_length": 2048,
    "norm": "layer_norm",
    "norm_epsilon": 1e-5,
    "activation": "relu",
    "gated": False,
    "use_bias": True,
    "positions": "learned",
    "position_offset": 2,
    "tie_embeddings": True,
}


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from an OPT ``config.json``.

    Raises:
        UserError: if it asks for something no switch here expresses, as OPT 350M does: it is post-norm, and its
            embedding is narrower than the model.
    """
    require(hf, do_layer_norm_before=True, word_embed_proj_dim=hf["hidden_size"])
    require(hf, enable_bias=True, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False)
    return {
        "type": "opt",
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "intermediate_size": hf["ffn_dim"],
        "max_length": hf["max_position_embeddings"],
        "activation": activation(hf, "activation_function"),
        "tie_embeddings": hf.get("tie_word_embeddings", True),
        "initializer_range": hf["init_std"],
    }


def names(config: TransformerConfig) -> list[Name]:
    """Every kernel is a ``torch.nn.Linear`` weight, ``[out, in]``."""
    table = [
        Name("embeddings/token/embedding", "model.decoder.embed_tokens.weight"),
        Name("embeddings/position/embedding", "model.decoder.embed_positions.weight"),
        *norm("final_norm", "model.decoder.final_layer_norm"),
    ]
    if not config.tie_embeddings:
        table += linear("lm_head", "lm_head", bias=False)
    block = "model.decoder.layers.{}."
    table += norm("layers/attention_norm", f"{block}self_attn_layer_norm")
    table += norm("layers/feed_forward_norm", f"{block}final_layer_norm")
    linears = {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/output": "self_attn.out_proj",
        "feed_forward/up": "fc1",
        "feed_forward/down": "fc2",
    }
    for ours, theirs in linears.items():
        table += linear(f"layers/{ours}", f"{block}{theirs}")
    return table


FAMILY = Family("opt", DEFAULTS, from_hf, names)
