"""XGLM (Lin et al. 2022): BART's decoder alone, with sinusoids from position 2 on."""

from jaxformer.families.bart import BLOCK
from jaxformer.families.format import Family, Format, Key, activation, decoder_heads, rows, same

# The shape is that of XGLM 564M.
DEFAULTS = {
    "hidden_size": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "intermediate_size": 4096,
    "max_length": 2048,
    "activation": "gelu",
    "positions": "sinusoidal",
    "position_offset": 2,
    "sinusoidal_halves": True,
    "sinusoidal_inclusive": True,
    "scale_embedding": True,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
KEYS = (
    *same("vocab_size", "num_layers", "dropout", "attention_dropout"),
    Key("hidden_size", "d_model"),
    Key("num_heads", "attention_heads"),
    Key("intermediate_size", "ffn_dim"),
    Key("max_length", "max_position_embeddings"),
    Key("scale_embedding", "scale_embedding", True),
    activation("activation_function"),
    Key("tie_embeddings", "tie_word_embeddings", True),
    Key("initializer_range", "init_std"),
)
HEADS = decoder_heads("XGLM")
FORMAT = Format(
    "xglm",
    KEYS,
    [*rows({"embeddings/token": "embed_tokens", "final_norm": "layer_norm"}), *rows(BLOCK, "layers/", "layers.{}.")],
    {kind: HEADS[kind] for kind in ("body", "causal_lm")},
    prefix="model.",
    constants={"add_cross_attention": False},
    ignored=r"embed_positions\.weights$",
)
FAMILY = Family("xglm", DEFAULTS, FORMAT)
