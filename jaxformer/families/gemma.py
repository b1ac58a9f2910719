"""Gemma (Gemma Team 2024), LLaMA with norms that scale by 1 + weight, and Gemma 2, with four norms a block.

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
    rows,
    write_activation,
)
from jaxformer.families.rotary import read_rotary, write_rotary
from jaxformer.families.windows import FULL, SLIDING, layer_types, read_layer_types
from jaxformer.models.config import TransformerConfig

# The shape is that of Gemma 2B.
GEMMA = {
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
# The shape is that of Gemma 2 2B (Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size").
GEMMA2 = {
    **GEMMA,
    "hidden_size": 2304,
    "num_layers": 26,
    "num_kv_heads": 4,
    "intermediate_size": 9216,
    "norm_place": "both",
    "score_width": 256,
    "score_softcap": 50.0,
    "logits_softcap": 30.0,
    "window": 4096,
    "global_every": 2,
    "global_first": 1,
}


KEYS = (
    *(key for key in llama.KEYS if key.ours not in ("activation", "tie_embeddings")),
    Key("tie_embeddings", "tie_word_embeddings", True),
    *attention_bias(False),
)
GEMMA2_KEYS = (
    *KEYS,
    Key("score_width", "query_pre_attn_scalar"),
    Key("score_softcap", "attn_logit_softcapping", None),
    Key("logits_softcap", "final_logit_softcapping", None),
)


def read_gelu(hf: Mapping[str, Any]) -> str:
    """The activation: the first files said "gelu" and meant the formula with tanh, which a second key then named."""
    act = read_activation(hf.get("hidden_activation") or hf.get("hidden_act", "gelu"))
    return "gelu_tanh" if act == "gelu" else act


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions and the activation."""
    if hf.get("use_bidirectional_attention"):
        require(hf, use_bidirectional_attention=False)
    return {**read_rotary(hf), "activation": read_gelu(hf)}


def write(config: TransformerConfig) -> dict[str, Any]:
    """The way back; the activation under both keys."""
    act = "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else write_activation(config.activation)
    return {**write_rotary(config), "hidden_act": act, "hidden_activation": act}


def read_windows(hf: Mapping[str, Any], every: int) -> dict[str, Any]:
    """The window and the blocks without it, for which old files have a number, or nothing."""
    every = hf.get("sliding_window_pattern") or every
    old = [SLIDING if (layer + 1) % every else FULL for layer in range(hf["num_hidden_layers"])]
    kinds = hf.get("layer_types") or old
    window = hf.get("sliding_window") if SLIDING in kinds else None
    return {"window": window, **read_layer_types(kinds if window else [])}


def read_gemma2(hf: Mapping[str, Any]) -> dict[str, Any]:
    """As ``read``, and the window of every other block."""
    return {**read(hf), **read_windows(hf, every=2)}


def write_gemma2(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read_gemma2``."""
    return {**write(config), "sliding_window": config.window or 4096, "layer_types": layer_types(config)}


FORMAT = replace(
    llama.FORMAT,
    model_type="gemma",
    keys=KEYS,
    # transformers has no Gemma for questions.
    heads={kind: head for kind, head in llama.heads("Gemma").items() if kind != "question_answering"},
    read=read,
    write=write,
)
BLOCK = {
    **llama.BLOCK,
    "attention_output_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_output_norm": "post_feedforward_layernorm",
}
GEMMA2_FORMAT = replace(
    FORMAT,
    model_type="gemma2",
    keys=GEMMA2_KEYS,
    body=[*llama.TABLE, *rows(BLOCK, "layers/", "layers.{}.")],
    heads={kind: head for kind, head in llama.heads("Gemma2").items() if kind != "question_answering"},
    read=read_gemma2,
    write=write_gemma2,
)
FAMILIES = (Family("gemma", GEMMA, FORMAT), Family("gemma2", GEMMA2, GEMMA2_FORMAT))
