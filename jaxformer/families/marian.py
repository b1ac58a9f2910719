"""Marian (Tiedemann and Thottingal 2020) and PEGASUS (Zhang et al. 2020): BART with sinusoids."""

from jaxformer.families.bart import BART, format_of
from jaxformer.families.format import Family

# Marian's models of OPUS-MT (Tiedemann and Thottingal 2020): sinusoids, no norm after the embedding, a bias of the
# output layer.
MARIAN = {
    **BART,
    "hidden_size": 512,
    "num_heads": 8,
    "intermediate_size": 2048,
    "max_length": 512,
    "embedding_norm": False,
    "activation": "silu",
    "positions": "sinusoidal",
    "position_offset": 0,
    "sinusoidal_halves": True,
    "scale_embedding": True,
    "logits_bias": True,
    "decoder_start": "pad",
}
# PEGASUS-large (Zhang et al. 2020).
PEGASUS = {
    **MARIAN,
    "hidden_size": 1024,
    "num_layers": 16,
    "num_heads": 16,
    "intermediate_size": 4096,
    "max_length": 1024,
    "norm_place": "pre",
    "activation": "relu",
    "logits_bias": False,
}
MARIAN_FORMAT = format_of(
    "marian", "Marian", static_position_embeddings=True, share_encoder_decoder_embeddings=True, normalize_before=False
)
PEGASUS_FORMAT = format_of("pegasus", "Pegasus", static_position_embeddings=True)
FAMILIES = (
    Family("marian", MARIAN, MARIAN_FORMAT, "span_corruption"),
    Family("pegasus", PEGASUS, PEGASUS_FORMAT, "span_corruption"),
)
