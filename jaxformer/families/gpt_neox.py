"""GPT-NeoX (Black et al. 2022) and Pythia: attention beside the feed-forward, rotary on a quarter of each head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import (
    SIZES,
    Family,
    Format,
    Key,
    Name,
    activation,
    attention_bias,
    decoder_heads,
    rows,
)
from jaxformer.families.rotary import read_rotary, write_rotary
from jaxformer.models.config import TransformerConfig

# The shape is that of Pythia 160M.
DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "max_length": 2048,
    "parallel_residual": True,
    "activation": "gelu",
    "positions": "rotary",
    "rotary_fraction": 0.25,
    "rope_theta": 10_000.0,
    "tie_embeddings": False,
}


KEYS = (
    *SIZES,
    Key("norm_epsilon", "layer_norm_eps"),
    Key("parallel_residual", "use_parallel_residual", True),
    activation("hidden_act"),
    Key("tie_embeddings", "tie_word_embeddings", False),
    *attention_bias(True),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions, whose keys differ between versions 4 and 5 of transformers."""
    rope = hf.get("rope_parameters") or {}
    share = hf.get("rotary_pct", rope.get("partial_rotary_factor", 0.25))
    return {"rotary_fraction": share, **read_rotary({"rope_theta": hf.get("rotary_emb_base"), **hf})}


def write(config: TransformerConfig) -> dict[str, Any]:
    """The way back."""
    rotary = write_rotary(config)
    return {"rotary_pct": config.rotary_fraction, "rotary_emb_base": rotary["rope_theta"], **rotary}


BLOCK = {
    "attention_norm": "input_layernorm",
    "attention/query+key+value": "attention.query_key_value",
    "attention/output": "attention.dense",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward/up": "mlp.dense_h_to_4h",
    "feed_forward/down": "mlp.dense_4h_to_h",
}


def names(config: TransformerConfig) -> list[Name]:
    """Query, key and value of a head are together in one matrix, ``[N, 3, H]``."""
    table = rows({"embeddings/token": "embed_in", "final_norm": "final_layer_norm"})
    return [*table, *rows(BLOCK, "layers/", "layers.{}.", groups=config.num_heads)]


FORMAT = Format(
    "gpt_neox",
    KEYS,
    names,
    decoder_heads("GPTNeoX", output="embed_out"),
    prefix="gpt_neox.",
    read=read,
    write=write,
    ignored=r"attention\.(masked_)?bias$|rotary_emb\.inv_freq$",
)
FAMILY = Family("gpt_neox", DEFAULTS, FORMAT)
