"""GPT-NeoX (Black et al. 2022) and Pythia: attention beside the feed-forward, rotary on a quarter of each head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.base import Family, Name, activation, linear, norm, require, rotary
from jaxformer.models.config import TransformerConfig

# The shape is that of Pythia 160M.
DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "max_length": 2048,
    "norm": "layer_norm",
    "norm_epsilon": 1e-5,
    "parallel_residual": True,
    "activation": "gelu",
    "gated": False,
    "use_bias": True,
    "positions": "rotary",
    "rotary_fraction": 0.25,
    "rope_theta": 10_000.0,
    "tie_embeddings": False,
}


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a GPT-NeoX ``config.json``, of transformers 4 or 5.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    require(hf, attention_bias=True)
    rope = hf.get("rope_parameters") or {}
    return {
        "type": "gpt_neox",
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "intermediate_size": hf["intermediate_size"],
        "max_length": hf["max_position_embeddings"],
        "norm_epsilon": hf["layer_norm_eps"],
        "parallel_residual": hf.get("use_parallel_residual", True),
        "activation": activation(hf, "hidden_act"),
        "rotary_fraction": hf.get("rotary_pct", rope.get("partial_rotary_factor", 0.25)),
        **rotary({"rope_theta": hf.get("rotary_emb_base"), **hf}),
        "tie_embeddings": hf.get("tie_word_embeddings", False),
        "initializer_range": hf["initializer_range"],
    }


def names(config: TransformerConfig) -> list[Name]:
    """Query, key and value of a head lie together in one matrix, ``[N, 3, H]``."""
    table = [Name("embeddings/token/embedding", "gpt_neox.embed_in.weight")]
    table += norm("final_norm", "gpt_neox.final_layer_norm")
    if not config.tie_embeddings:
        table += linear("lm_head", "embed_out", bias=False)
    block = "gpt_neox.layers.{}."
    table += norm("layers/attention_norm", f"{block}input_layernorm")
    table += norm("layers/feed_forward_norm", f"{block}post_attention_layernorm")
    for index, ours in enumerate(("query", "key", "value")):
        fused = f"{block}attention.query_key_value"
        table += linear(f"layers/attention/{ours}", fused, part=(index, 3), groups=config.num_heads)
    table += linear("layers/attention/output", f"{block}attention.dense")
    table += linear("layers/feed_forward/up", f"{block}mlp.dense_h_to_4h")
    table += linear("layers/feed_forward/down", f"{block}mlp.dense_4h_to_h")
    return table


FAMILY = Family("gpt_neox", DEFAULTS, from_hf, names)
