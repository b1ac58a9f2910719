"""Gemma 3 (Gemma Team 2025), five blocks with a window for each without; EmbeddingGemma, an encoder of its blocks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxformer.families import llama
from jaxformer.families.format import Family, Head
from jaxformer.families.gemma import GEMMA, GEMMA2_FORMAT, read_gelu, read_windows, write_gemma2
from jaxformer.families.rotary import read_rotary
from jaxformer.families.windows import FULL, SLIDING
from jaxformer.models.config import TransformerConfig

# The shape is that of Gemma 3 1B (Gemma Team 2025, "Gemma 3 Technical Report").
GEMMA3 = {
    **GEMMA,
    "hidden_size": 1152,
    "num_layers": 26,
    "num_heads": 4,
    "intermediate_size": 6912,
    "max_length": 32_768,
    "norm_place": "both",
    "qk_norm": True,
    "score_width": 256,
    "rope_theta": 1_000_000.0,
    "local_rope_theta": 10_000.0,
    "window": 512,
    "global_every": 6,
    "global_first": 5,
}
# EmbeddingGemma 300M (Vera et al. 2025): an encoder with the blocks of Gemma 3.
EMBEDDING_GEMMA = {
    **GEMMA3,
    "architecture": "encoder",
    "hidden_size": 768,
    "num_layers": 24,
    "num_heads": 3,
    "intermediate_size": 1152,
    "max_length": 2048,
    # 256 tokens on either side and the token itself; the published number, 512, is of both sides.
    "window": 257,
    "pooling": "mean",
}


def read_gemma3(hf: Mapping[str, Any]) -> dict[str, Any]:
    """As ``read_gemma2``; the blocks with a window have rotary positions of their own, and an encoder half of it."""
    rope, both = hf.get("rope_parameters") or {}, bool(hf.get("use_bidirectional_attention"))
    full = {**hf, "rope_parameters": rope.get(FULL), "rope_theta": hf.get("rope_theta") or 1_000_000.0}
    full["rope_theta"] = (rope.get(FULL) or {}).get("rope_theta") or full["rope_theta"]
    local = (rope.get(SLIDING) or {}).get("rope_theta") or hf.get("rope_local_base_freq", 10_000.0)
    keys = {**read_rotary(full), "activation": read_gelu(hf), **read_windows(hf, every=6)}
    window = keys["window"]
    return {
        **keys,
        "local_rope_theta": local,
        "window": window // 2 + 1 if both and window else window,
        "architecture": "encoder" if both else "decoder",
    }


def write_gemma3(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read_gemma3``."""
    encodes = config.architecture == "encoder"
    window = config.window or 512
    return {
        **write_gemma2(config),
        "rope_local_base_freq": config.local_rope_theta,
        "sliding_window": (window - 1) * 2 if encodes else window,
        "use_bidirectional_attention": encodes,
    }


GEMMA3_FORMAT = replace(
    GEMMA2_FORMAT,
    model_type="gemma3_text",
    heads={
        "body": Head("Gemma3TextModel"),
        "causal_lm": llama.heads("Gemma3")["causal_lm"],
        "sequence_classification": llama.heads("Gemma3Text")["sequence_classification"],
    },
    read=read_gemma3,
    write=write_gemma3,
)
ENCODER_FORMAT = replace(GEMMA3_FORMAT, heads={"body": Head("Gemma3TextModel")})
FAMILY = Family("gemma3", GEMMA3, GEMMA3_FORMAT)
ENCODER_FAMILY = Family("embedding_gemma", EMBEDDING_GEMMA, ENCODER_FORMAT, "masked_lm")
