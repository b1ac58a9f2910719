"""T5Gemma (Zhang et al. 2025): an encoder and a decoder of Gemma 2's blocks, the decoder with cross-attention."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxformer.families.encoder_decoder import moved, token_ids
from jaxformer.families.format import Family, Format, Head, Key, Name, rows
from jaxformer.families.gemma import BLOCK, GEMMA2_FORMAT, GEMMA2_KEYS, read_gemma2, write_gemma2
from jaxformer.families.llama import TABLE
from jaxformer.models.config import SIDES, TransformerConfig
from jaxformer.schema import UserError

# Both sides have the shape of Gemma 2 2B. An encoder's window, as its tokens see it, has one token more on a side.
DEFAULTS: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "encoder": {"type": "gemma2", "architecture": "encoder", "window": 4097, "pooling": "last"},
    "decoder": {"type": "gemma2"},
    "project_context": False,
    "decoder_start": "cls",
}
OWN_BLOCK = {
    **BLOCK,
    "attention_norm": "pre_self_attn_layernorm",
    "attention_output_norm": "post_self_attn_layernorm",
}
CROSS = {
    f"cross_{ours}": theirs.replace("self_attn", "cross_attn")
    for ours, theirs in OWN_BLOCK.items()
    if ours.startswith("attention")
}
SIDE = [*TABLE, *rows(OWN_BLOCK, "layers/", "layers.{}.")]
BODY = [
    *moved(SIDE, "encoder/", "encoder."),
    *moved([*SIDE, *rows(CROSS, "layers/", "layers.{}.")], "decoder/", "decoder."),
]
KEYS = (*GEMMA2_KEYS, Key("dropout", "dropout_rate", 0.0))


def read_encoder(hf: Mapping[str, Any]) -> dict[str, Any]:
    """As Gemma 2; a token sees those at a distance of the window too, on either side."""
    keys = read_gemma2(hf)
    return {**keys, "architecture": "encoder", "window": keys["window"] and keys["window"] + 1}


def write_encoder(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read_encoder``."""
    return {**write_gemma2(config), "sliding_window": 4096 if config.window is None else config.window - 1}


MODULE = replace(GEMMA2_FORMAT, model_type="t5_gemma_module", keys=KEYS, body=SIDE)
FORMATS = {"encoder": replace(MODULE, read=read_encoder, write=write_encoder), "decoder": MODULE}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both sides; what the model says of dropout holds for both."""
    if not hf.get("is_encoder_decoder", True):
        raise UserError("config.json has is_encoder_decoder: False, expected true; this variant is not supported")
    keys: dict[str, Any] = {}
    said = {key: hf[key] for key in ("dropout_rate", "attention_dropout") if hf.get(key) is not None}
    for side in SIDES:
        part = hf.get(side)
        if not isinstance(part, Mapping):
            raise UserError(f"config.json has {side}: {part!r:.40}, expected the configuration of the {side}")
        keys[side] = FORMATS[side].from_hf({**part, **said}, "gemma2")
    tied = hf.get("tie_word_embeddings", True)
    return {**keys, "tie_embeddings": tied, **token_ids(hf, keys["decoder"])}


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    sides = {"encoder": config.encoder_side, "decoder": config.decoder_side}
    found: dict[str, Any] = {name: FORMATS[name].to_hf(side, "body") for name, side in sides.items()}
    for name in SIDES:
        found[name].pop("architectures")
        found[name]["is_decoder"] = name == "decoder"
    decoder = found["decoder"] | {"cross_attention_hidden_size": sides["encoder"].hidden_size}
    whole = {key: decoder[key] for key in ("dropout_rate", "attention_dropout", "vocab_size", "initializer_range")}
    return {**found, "decoder": decoder, **whole, "tie_word_embeddings": config.tie_embeddings}


# The head and the classifiers stand beside both sides.
LOGITS = [Name("decoder/lm_head/kernel", "lm_head.out_proj.weight", transposed=True)]
CLASSES = rows({"classifier": "score.out_proj"})
FORMAT = Format(
    "t5gemma",
    (),
    BODY,
    {
        "body": Head("T5GemmaModel"),
        "seq2seq_lm": Head("T5GemmaForConditionalGeneration", LOGITS),
        "sequence_classification": Head("T5GemmaForSequenceClassification", CLASSES),
        "token_classification": Head("T5GemmaForTokenClassification", CLASSES),
    },
    prefix="model.",
    read=read,
    write=write,
    ignored=r"rotary_emb\.inv_freq$|^lm_head\.out_proj\.weight$",
)
FAMILY = Family("t5gemma", DEFAULTS, FORMAT, "span_corruption")
