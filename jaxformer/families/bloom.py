"""BLOOM (BigScience 2022): ALiBi instead of position embeddings, a norm after the embedding, tied head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import Family, Format, Key, Name, decoder_heads, rows, same
from jaxformer.models.config import TransformerConfig

# The shape is that of BLOOM 560M.
DEFAULTS = {
    "hidden_size": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "max_length": 2048,
    "embedding_norm": True,
    "positions": "alibi",
}


KEYS = (
    *same("vocab_size", "initializer_range"),
    # ALiBi has no longest length; the model was trained with this one.
    Key("max_length", "seq_length", 2048),
    Key("norm_epsilon", "layer_norm_epsilon"),
    Key("tie_embeddings", "tie_word_embeddings", True),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes, which have other names in older files."""
    return {
        "hidden_size": hf["n_embed"] if "n_embed" in hf else hf["hidden_size"],
        "num_layers": hf["n_layer"] if "n_layer" in hf else hf["num_hidden_layers"],
        "num_heads": hf["n_head"] if "n_head" in hf else hf["num_attention_heads"],
    }


def write(config: TransformerConfig) -> dict[str, Any]:
    """The sizes under the names of today."""
    return {"hidden_size": config.hidden_size, "n_layer": config.num_layers, "n_head": config.num_heads}


TABLE = {
    "embeddings/token": "word_embeddings",
    "embeddings/norm": "word_embeddings_layernorm",
    "final_norm": "ln_f",
}
BLOCK = {
    "attention_norm": "input_layernorm",
    "attention/query+key+value": "self_attention.query_key_value",
    "attention/output": "self_attention.dense",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward/up": "mlp.dense_h_to_4h",
    "feed_forward/down": "mlp.dense_4h_to_h",
}


def names(config: TransformerConfig) -> list[Name]:
    """Query, key and value of a head are together in one matrix, ``[N, 3, H]``."""
    return [*rows(TABLE), *rows(BLOCK, "layers/", "h.{}.", groups=config.num_heads)]


FORMAT = Format(
    "bloom",
    KEYS,
    names,
    decoder_heads("Bloom"),
    prefix="transformer.",
    constants={"apply_residual_connection_post_layernorm": False},
    read=read,
    write=write,
)
FAMILY = Family("bloom", DEFAULTS, FORMAT)
