"""ModernBERT (Warner et al. 2024): pre-norm encoder, rotary positions, gated GELU, two local layers for each global."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.base import Family, Name, activation, linear, norm, require
from jaxformer.models.config import TransformerConfig

DEFAULTS: dict[str, Any] = {
    "architecture": "encoder",
    "hidden_size": 768,
    "num_layers": 22,
    "num_heads": 12,
    "intermediate_size": 1152,
    "max_length": 8192,
    "norm": "layer_norm",
    "norm_place": "pre",
    "norm_epsilon": 1e-5,
    "embedding_norm": True,
    "first_norm": False,
    "activation": "gelu",
    "gated": True,
    "use_bias": False,
    "positions": "rotary",
    "rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    # 64 tokens on either side and the token itself; the published number, 128, counts both sides.
    "window": 65,
    "global_every": 3,
    "tie_embeddings": True,
    "pooler": "gelu",
}


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a ModernBERT ``config.json``, of transformers 4 or 5.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    require(hf, attention_bias=False, mlp_bias=False, norm_bias=False, decoder_bias=True, classifier_bias=False)
    rope = hf.get("rope_parameters") or {}
    full, local = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    every = hf.get("global_attn_every_n_layers")
    kinds = hf.get("layer_types") or []
    if every is None:
        every = next((i for i, kind in enumerate(kinds) if i and kind == "full_attention"), len(kinds))
    expected = ["sliding_attention" if i % every else "full_attention" for i in range(len(kinds))]
    require({"layer_types": kinds}, layer_types=expected)
    return {
        "type": "modernbert",
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "intermediate_size": hf["intermediate_size"],
        "max_length": hf["max_position_embeddings"],
        "norm_epsilon": hf["norm_eps"],
        "activation": activation(hf, "hidden_activation"),
        "rope_theta": full.get("rope_theta") or hf["global_rope_theta"],
        "local_rope_theta": local.get("rope_theta") or hf["local_rope_theta"],
        "window": hf["local_attention"] // 2 + 1,
        "global_every": every,
        "initializer_range": hf["initializer_range"],
    }


def names(config: TransformerConfig) -> list[Name]:
    """``ModernBertForMaskedLM``."""
    block = "model.layers.{}."
    table = [
        Name("embeddings/token/embedding", "model.embeddings.tok_embeddings.weight"),
        *norm("embeddings/norm", "model.embeddings.norm", bias=False),
        Name("layers/attention_norm/scale", f"{block}attn_norm.weight", not_first=True),
        *norm("layers/feed_forward_norm", f"{block}mlp_norm", bias=False),
        *norm("final_norm", "model.final_norm", bias=False),
    ]
    for index, part in enumerate(("query", "key", "value")):
        table += linear(f"layers/attention/{part}", f"{block}attn.Wqkv", bias=False, part=(index, 3))
    return [
        *table,
        *linear("layers/attention/output", f"{block}attn.Wo", bias=False),
        *linear("layers/feed_forward/gate", f"{block}mlp.Wi", bias=False, part=(0, 2)),
        *linear("layers/feed_forward/up", f"{block}mlp.Wi", bias=False, part=(1, 2)),
        *linear("layers/feed_forward/down", f"{block}mlp.Wo", bias=False),
        *linear("mlm_head/dense", "head.dense", bias=False),
        *norm("mlm_head/norm", "head.norm", bias=False),
        Name("mlm_head/bias", "decoder.bias"),
    ]


FAMILY = Family("modernbert", DEFAULTS, from_hf, names, "masked_lm")
