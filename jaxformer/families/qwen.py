"""Qwen2 (Yang et al. 2024), LLaMA with biases of queries, keys and values; Qwen3 (Yang et al. 2025), with norms."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxformer.families import llama
from jaxformer.families.format import Family, attention_bias, require
from jaxformer.families.rotary import read_rotary, write_rotary
from jaxformer.models.config import TransformerConfig

# The shape is that of Qwen2 0.5B.
QWEN2 = {
    **llama.DEFAULTS,
    "hidden_size": 896,
    "num_layers": 24,
    "num_heads": 14,
    "num_kv_heads": 2,
    "head_size": None,
    "intermediate_size": 4864,
    "max_length": 131072,
    "norm_epsilon": 1e-6,
    "qkv_bias": True,
    "rope_theta": 1_000_000.0,
}
# The shape is that of Qwen3 0.6B.
QWEN3 = {
    **llama.DEFAULTS,
    "hidden_size": 1024,
    "num_layers": 28,
    "num_heads": 16,
    "head_size": 128,
    "intermediate_size": 3072,
    "max_length": 40960,
    "norm_epsilon": 1e-6,
    "qk_norm": True,
    "rope_theta": 1_000_000.0,
}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions, and the window of the upper layers, for which version 5 has a list of layers."""
    layers, rotary = hf["num_hidden_layers"], read_rotary(hf)
    window = hf.get("sliding_window") if hf.get("use_sliding_window") else None
    first = hf.get("max_window_layers", 28)
    kinds = hf.get("layer_types")
    if kinds is not None:
        first = sum(kind == "full_attention" for kind in kinds)
        require({"layer_types": list(kinds)}, layer_types=_layer_types(first, layers))
    if window is None or first >= layers:
        return {**rotary, "window": None}
    return {**rotary, "window": window, "window_from": first}


def _layer_types(first: int, layers: int) -> list[str]:
    return ["full_attention"] * first + ["sliding_attention"] * (layers - first)


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    first = config.num_layers if config.window is None else config.window_from
    return {
        **write_rotary(config),
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "max_window_layers": first,
        "layer_types": _layer_types(first, config.num_layers),
    }


QWEN2_FORMAT = replace(
    llama.FORMAT,
    model_type="qwen2",
    # Its class has no head size of its own.
    keys=tuple(key for key in llama.KEYS if key.theirs != "head_dim"),
    heads=llama.heads("Qwen2"),
    constants={},
    read=read,
    write=write,
)
QWEN3_FORMAT = replace(
    llama.FORMAT,
    model_type="qwen3",
    heads=llama.heads("Qwen3"),
    keys=(*llama.KEYS, *attention_bias(False)),
    constants={},
    read=read,
    write=write,
)
FAMILIES = (Family("qwen2", QWEN2, QWEN2_FORMAT), Family("qwen3", QWEN3, QWEN3_FORMAT))
