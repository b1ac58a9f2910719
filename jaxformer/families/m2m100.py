"""M2M100 (Fan et al. 2021) and NLLB (NLLB Team 2022): mBART with fairseq's sinusoids and no norm of the embedding."""

from dataclasses import replace
from typing import Any

from jaxformer.families import bart
from jaxformer.families.format import Family
from jaxformer.models.config import TransformerConfig

# The shape is that of M2M100 418M.
DEFAULTS = {
    **bart.MBART,
    "embedding_norm": False,
    "activation": "relu",
    "positions": "sinusoidal",
    "position_offset": "after_pad",
    "sinusoidal_halves": True,
    "sinusoidal_inclusive": True,
    "decoder_start": "sep",
    "attention_dropout": 0.1,
}


def write(config: TransformerConfig) -> dict[str, Any]:
    """BART's keys; no layer is ever left out in training."""
    return {**bart.write(config), "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}


BASE = bart.format_of("m2m_100", "M2M100")
FORMAT = replace(
    BASE,
    heads={kind: BASE.heads[kind] for kind in ("body", "seq2seq_lm")},
    write=write,
    ignored=BASE.ignored + r"|embed_positions\.weights?$",
)
FAMILY = Family("m2m100", DEFAULTS, FORMAT, "span_corruption")
