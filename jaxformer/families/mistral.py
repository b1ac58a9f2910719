"""Mistral (Jiang et al. 2023): LLaMA with a sliding window."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families import llama
from jaxformer.families.base import Family

# The shape is that of Mistral 7B v0.1.
DEFAULTS = {
    **llama.DEFAULTS,
    "hidden_size": 4096,
    "num_layers": 32,
    "head_size": None,
    "intermediate_size": 14336,
    "max_length": 32768,
    "rope_theta": 10_000.0,
    "window": 4096,
    "tie_embeddings": False,
}


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a Mistral ``config.json``; its window counts the token itself, as ours does.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    return {**llama.from_hf(hf), "type": "mistral", "window": hf.get("sliding_window")}


FAMILY = Family("mistral", DEFAULTS, from_hf, llama.names)
