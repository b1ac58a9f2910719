"""Qwen3 (Yang et al. 2025): LLaMA with a norm of every query and key head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families import llama
from jaxformer.families.base import Family, Name, norm, require
from jaxformer.models.config import TransformerConfig

# The shape is that of Qwen3 0.6B.
DEFAULTS = {
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


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a Qwen3 ``config.json``, of transformers 4 or 5.

    Raises:
        UserError: if it asks for something no switch here expresses: a window in the upper layers only.
    """
    require(hf, use_sliding_window=False)
    return {**llama.from_hf(hf), "type": "qwen3"}


def names(config: TransformerConfig) -> list[Name]:
    """The table of LLaMA and the norms of the heads."""
    table = llama.names(config)
    table += norm("layers/attention/query_norm", "model.layers.{}.self_attn.q_norm", bias=False)
    table += norm("layers/attention/key_norm", "model.layers.{}.self_attn.k_norm", bias=False)
    return table


FAMILY = Family("qwen3", DEFAULTS, from_hf, names)
