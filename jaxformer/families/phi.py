"""Phi (Gunasekar et al. 2023; Li et al. 2023): attention beside the feed-forward after one norm; Phi-3, a LLaMA."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxformer.families import llama
from jaxformer.families.format import SIZES, Family, Format, Key, Name, activation, decoder_heads, rows
from jaxformer.families.rotary import read_rotary, write_rotary
from jaxformer.models.config import TransformerConfig

# The shape is that of Phi-1 and Phi-1.5.
PHI = {
    "hidden_size": 2048,
    "num_layers": 24,
    "num_heads": 32,
    "intermediate_size": 8192,
    "max_length": 2048,
    "parallel_residual": True,
    "shared_norm": True,
    "positions": "rotary",
    "rotary_fraction": 0.5,
    "tie_embeddings": False,
    "logits_bias": True,
}
# The shape is that of Phi-3 mini for 4,096 tokens (Abdin et al. 2024).
PHI3 = {
    **llama.DEFAULTS,
    "hidden_size": 3072,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 32,
    "head_size": 96,
    "intermediate_size": 8192,
    "max_length": 4096,
    "rope_theta": 10_000.0,
    "window": 2047,
    "tie_embeddings": False,
}
DROPOUTS = (
    Key("dropout", "resid_pdrop", 0.0),
    Key("dropout", "embd_pdrop", 0.0),
    Key("attention_dropout", "attention_dropout", 0.0),
)
KEYS = (
    *SIZES,
    Key("num_kv_heads", "num_key_value_heads", None),
    Key("norm_epsilon", "layer_norm_eps"),
    activation("hidden_act"),
    Key("tie_embeddings", "tie_word_embeddings", False),
    *DROPOUTS,
)
PHI3_KEYS = (
    *(key for key in llama.KEYS if key.ours not in ("head_size", "attention_dropout")),
    *DROPOUTS,
    Key("window", "sliding_window", None),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions and the share of each head that they rotate."""
    share = (hf.get("rope_parameters") or {}).get("partial_rotary_factor", 0.5)
    return {"rotary_fraction": hf.get("partial_rotary_factor") or share, **read_rotary(hf)}


def read_phi3(hf: Mapping[str, Any]) -> dict[str, Any]:
    """As ``read``; by default all of a head is rotated."""
    return read({"partial_rotary_factor": (hf.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0), **hf})


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    rotary = write_rotary(config)
    scaling = config.rope_scaling
    original = config.max_length if scaling is None else scaling.original_max_length
    return {
        **rotary,
        "partial_rotary_factor": config.rotary_fraction,
        "original_max_position_embeddings": original,
    }


BLOCK = {
    "attention_norm": "input_layernorm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.dense",
    "feed_forward/up": "mlp.fc1",
    "feed_forward/down": "mlp.fc2",
}
FUSED = {"attention/query+key+value": "self_attn.qkv_proj", "feed_forward/gate+up": "mlp.gate_up_proj"}


def phi3_names(config: TransformerConfig) -> list[Name]:
    """LLaMA's, with one matrix for queries, keys and values, whose parts differ in size, and one for both of a gate."""
    heads, kv_heads = config.num_heads, config.kv_heads
    names = [*rows({"embeddings/token": "embed_tokens", "final_norm": "norm"})]
    names += rows(FUSED, "layers/", "layers.{}.", sizes={"attention/query+key+value": (heads, kv_heads, kv_heads)})
    parts = ("query", "key", "value", "gate", "up")
    rest = {ours: theirs for ours, theirs in llama.BLOCK.items() if ours.rpartition("/")[2] not in parts}
    return [*names, *rows(rest, "layers/", "layers.{}.")]


def _heads(name: str, *, bias: bool = False) -> dict[str, Any]:
    heads = decoder_heads(name, tokens="score", bias=bias)
    # transformers has none for questions.
    del heads["question_answering"]
    return heads


FORMAT = Format(
    "phi",
    KEYS,
    [
        *rows({"embeddings/token": "embed_tokens", "final_norm": "final_layernorm"}),
        *rows(BLOCK, "layers/", "layers.{}."),
    ],
    _heads("Phi", bias=True),
    prefix="model.",
    constants={"qk_layernorm": False},
    read=read,
    write=write,
    ignored=r"rotary_emb\.inv_freq$",
)
PHI3_FORMAT = replace(
    FORMAT,
    model_type="phi3",
    keys=PHI3_KEYS,
    body=phi3_names,
    heads=_heads("Phi3"),
    constants={},
    read=read_phi3,
)
FAMILIES = (Family("phi", PHI, FORMAT), Family("phi3", PHI3, PHI3_FORMAT))
