"""OPT (Zhang et al. 2022): learned positions from row 2 of their table on, pre-norm LayerNorm, ReLU, tied head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.bart import BLOCK
from jaxformer.families.format import Family, Format, Key, activation, decoder_heads, require, rows, same
from jaxformer.models.config import TransformerConfig

# The shape is that of OPT 125M.
DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "max_length": 2048,
    "activation": "relu",
    "position_offset": 2,
}


KEYS = (
    *same("vocab_size", "hidden_size"),
    Key("num_layers", "num_hidden_layers"),
    Key("num_heads", "num_attention_heads"),
    Key("intermediate_size", "ffn_dim"),
    Key("max_length", "max_position_embeddings"),
    activation("activation_function"),
    Key("tie_embeddings", "tie_word_embeddings", True),
    Key("initializer_range", "init_std"),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses OPT 350M, which is post-norm with an embedding narrower than the model."""
    require(hf, word_embed_proj_dim=hf["hidden_size"])
    return {}


def write(config: TransformerConfig) -> dict[str, Any]:
    """The width of the embedding, which is the model's."""
    return {"word_embed_proj_dim": config.hidden_size}


TABLE = {
    "embeddings/token": "embed_tokens",
    "embeddings/position": "embed_positions",
    "final_norm": "final_layer_norm",
}
HEADS = decoder_heads("OPT")
# transformers has no OPT for tokens.
del HEADS["token_classification"]
FORMAT = Format(
    "opt",
    KEYS,
    [*rows(TABLE, theirs="decoder."), *rows(BLOCK, "layers/", "decoder.layers.{}.")],
    HEADS,
    prefix="model.",
    constants={
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
    read=read,
    write=write,
)
FAMILY = Family("opt", DEFAULTS, FORMAT)
