"""Blenderbot (Roller et al. 2021): BART that talks, pre-norm; the small one is post-norm."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxformer.families import bart
from jaxformer.families.format import Family, Format

# The shape is that of Blenderbot 400M distilled.
BLENDERBOT = {
    **bart.BART,
    "hidden_size": 1280,
    "num_layers": 2,
    "num_decoder_layers": 12,
    "num_heads": 32,
    "intermediate_size": 5120,
    "max_length": 128,
    "norm_place": "pre",
    "embedding_norm": False,
    "position_offset": 0,
    "scale_embedding": True,
    "decoder_start": "cls",
}
# The shape is that of Blenderbot-small 90M.
SMALL = {
    **bart.BART,
    "hidden_size": 512,
    "num_layers": 8,
    "num_heads": 16,
    "intermediate_size": 2048,
    "max_length": 512,
    "position_offset": 0,
    "scale_embedding": True,
    "decoder_embedding_norm": "tokens",
    "decoder_start": "cls",
}


def format_of(model_type: str, name: str) -> Format:
    """The format of BART without its classifiers."""
    format = bart.format_of(model_type, name)
    return replace(format, heads={kind: format.heads[kind] for kind in ("body", "causal_lm", "seq2seq_lm")})


def read_small(hf: Mapping[str, Any]) -> dict[str, Any]:
    """BART's keys; the norm of the decoder's embedding is that of the model, if it stands alone."""
    keys = bart.read(hf)
    return {**keys, "embedding_norm": "tokens", "decoder_embedding_norm": None} if keys else keys


SMALL_FORMAT = replace(format_of("blenderbot-small", "BlenderbotSmall"), read=read_small)
FAMILIES = (
    Family("blenderbot", BLENDERBOT, format_of("blenderbot", "Blenderbot"), "denoising"),
    Family("blenderbot_small", SMALL, SMALL_FORMAT, "denoising"),
)
