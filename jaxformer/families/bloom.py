"""BLOOM (BigScience 2022): ALiBi instead of position embeddings, a norm behind the embedding, tied head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.base import Family, Name, linear, norm, require
from jaxformer.models.config import TransformerConfig

# The shape is that of BLOOM 560M.
DEFAULTS = {
    "hidden_size": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "max_length": 2048,
    "norm": "layer_norm",
    "norm_epsilon": 1e-5,
    "embedding_norm": True,
    "activation": "gelu_tanh",
    "gated": False,
    "use_bias": True,
    "positions": "alibi",
    "tie_embeddings": True,
}


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a BLOOM ``config.json``; older ones have other names for some sizes.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    require(hf, apply_residual_connection_post_layernorm=False)
    return {
        "type": "bloom",
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["n_embed"] if "n_embed" in hf else hf["hidden_size"],
        "num_layers": hf["n_layer"] if "n_layer" in hf else hf["num_hidden_layers"],
        "num_heads": hf["n_head"] if "n_head" in hf else hf["num_attention_heads"],
        # ALiBi has no longest length: this one is what the model was trained on.
        "max_length": hf.get("seq_length", 2048),
        "norm_epsilon": hf["layer_norm_epsilon"],
        "tie_embeddings": hf.get("tie_word_embeddings", True),
        "initializer_range": hf["initializer_range"],
    }


def names(config: TransformerConfig) -> list[Name]:
    """Query, key and value of a head lie together in one matrix, ``[N, 3, H]``."""
    table = [Name("embeddings/token/embedding", "transformer.word_embeddings.weight")]
    table += norm("embeddings/norm", "transformer.word_embeddings_layernorm") + norm("final_norm", "transformer.ln_f")
    if not config.tie_embeddings:
        table += linear("lm_head", "lm_head", bias=False)
    block = "transformer.h.{}."
    table += norm("layers/attention_norm", f"{block}input_layernorm")
    table += norm("layers/feed_forward_norm", f"{block}post_attention_layernorm")
    for index, ours in enumerate(("query", "key", "value")):
        fused = f"{block}self_attention.query_key_value"
        table += linear(f"layers/attention/{ours}", fused, part=(index, 3), groups=config.num_heads)
    table += linear("layers/attention/output", f"{block}self_attention.dense")
    table += linear("layers/feed_forward/up", f"{block}mlp.dense_h_to_4h")
    table += linear("layers/feed_forward/down", f"{block}mlp.dense_4h_to_h")
    return table


FAMILY = Family("bloom", DEFAULTS, from_hf, names)
