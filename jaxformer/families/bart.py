"""BART (Lewis et al. 2020), mBART, and the Transformer of 2017 they go back to."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxformer.families.format import Family, Format, Head, Key, Name, activation, rows, same
from jaxformer.functional import sinusoidal_positions
from jaxformer.models.config import TransformerConfig

BART: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "hidden_size": 768,
    "num_layers": 6,
    "num_heads": 12,
    "intermediate_size": 3072,
    "max_length": 1024,
    "norm_place": "post",
    "embedding_norm": True,
    "activation": "gelu",
    "position_offset": 2,
    "decoder_start": "sep",
    "pooler": "tanh",
    "dropout": 0.1,
}
# The base model of Vaswani et al. 2017, table 3: embedding times sqrt(D) plus sinusoids, ReLU, no norm before the
# blocks. The longest length is only a limit for a run: sinusoids have none.
TRANSFORMER: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "hidden_size": 512,
    "num_layers": 6,
    "num_heads": 8,
    "intermediate_size": 2048,
    "max_length": 512,
    "norm_place": "post",
    "norm_epsilon": 1e-6,
    "activation": "relu",
    "positions": "sinusoidal",
    "scale_embedding": True,
    "pooler": "tanh",
    "initializer": "fan_in",
    "dropout": 0.1,
}


# mBART (Liu et al. 2020): pre-norm, and the target begins and ends with the token of its language.
MBART = {
    **BART,
    "hidden_size": 1024,
    "num_layers": 12,
    "num_heads": 16,
    "intermediate_size": 4096,
    "norm_place": "pre",
    "scale_embedding": True,
    "decoder_start": "last",
}
KEYS = (
    *same("vocab_size", "dropout", "attention_dropout"),
    Key("hidden_size", "d_model"),
    Key("num_layers", "encoder_layers"),
    Key("num_decoder_layers", "decoder_layers"),
    Key("num_heads", "encoder_attention_heads"),
    Key("num_decoder_heads", "decoder_attention_heads"),
    Key("intermediate_size", "encoder_ffn_dim"),
    Key("decoder_intermediate_size", "decoder_ffn_dim"),
    Key("max_length", "max_position_embeddings"),
    Key("scale_embedding", "scale_embedding", False),
    activation("activation_function"),
    Key("tie_embeddings", "tie_word_embeddings", True),
    Key("initializer_range", "init_std"),
)
SIDE = {
    "embeddings/position": "embed_positions",
    "embeddings/norm": "layernorm_embedding",
    "final_norm": "layer_norm",
}
# OPT's blocks have these names too.
BLOCK = {
    "attention_norm": "self_attn_layer_norm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.out_proj",
    "feed_forward_norm": "final_layer_norm",
    "feed_forward/up": "fc1",
    "feed_forward/down": "fc2",
}
CROSS_ATTENTION = {
    f"cross_{ours}": theirs.replace("self_attn", "encoder_attn")
    for ours, theirs in BLOCK.items()
    if ours.startswith("attention")
}
# All relatives have these rows.
BODY = [
    Name("shared/embedding", "shared.weight", otherwise="encoder.embed_tokens.weight"),
    *rows(SIDE, "encoder/", "encoder."),
    *rows(BLOCK, "encoder/layers/", "encoder.layers.{}."),
    *rows(SIDE, "decoder/", "decoder."),
    *rows(BLOCK | CROSS_ATTENTION, "decoder/layers/", "decoder.layers.{}."),
]
# The decoder alone, without attention to a source.
DECODER = [
    *rows({"embeddings/token": "embed_tokens", **SIDE}, "", "decoder."),
    *rows(BLOCK, "layers/", "decoder.layers.{}."),
]


def names(config: TransformerConfig) -> list[Name]:
    """The rows of both sides, or of the decoder alone."""
    return DECODER if config.architecture == "decoder" else BODY


# What a decoder alone has only one of, in the format as the decoder's.
DECODER_SIZES = ("num_layers", "num_heads", "intermediate_size")


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the decoder, if it stands alone."""
    if not hf.get("is_decoder") or hf.get("is_encoder_decoder"):
        return {}
    theirs = {key.ours: key.theirs for key in KEYS}
    none = dict.fromkeys(("num_decoder_layers", "num_decoder_heads", "decoder_intermediate_size"))
    sizes = list(zip(DECODER_SIZES, none, strict=True))
    none["logits_bias"] = False
    return {"architecture": "decoder", **none, **{name: hf[theirs[of_decoder]] for name, of_decoder in sizes}}


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    alone = config.architecture == "decoder"
    return {"is_decoder": alone, "is_encoder_decoder": not alone, "add_cross_attention": False}


# The bias of the output layer is a parameter if the family trains it, else zeros that are not read.
GENERATION = [*rows({"lm_head": "lm_head"}), Name("logits_bias/bias", "final_logits_bias", leading_one=True)]


def sinusoids(config: TransformerConfig) -> dict[str, Any]:
    """The table of positions of each side, ``[max_length, D]``."""
    table = sinusoidal_positions(jnp.arange(config.max_length), config.token_size, halves=config.sinusoidal_halves)
    sides = ("decoder",) if config.architecture == "decoder" else ("encoder", "decoder")
    return {f"{side}.embed_positions.weight": table for side in sides}


def unused(config: TransformerConfig) -> dict[str, Any]:
    """The attention to a source that transformers' decoder has even alone, and does not use then: zeros."""
    if config.architecture != "decoder":
        return {}
    D, found = config.hidden_size, {}
    for layer in range(config.num_layers):
        for theirs in CROSS_ATTENTION.values():
            shape = (D,) if theirs.endswith("norm") else (D, D)
            found[f"decoder.layers.{layer}.{theirs}.weight"] = jnp.zeros(shape)
            found[f"decoder.layers.{layer}.{theirs}.bias"] = jnp.zeros(D)
    return found


def format_of(model_type: str, name: str, **constants: Any) -> Format:
    """The format of BART or a relative, whose classes begin with ``name``."""
    classes = rows({"pooler/dense": "classification_head.dense", "classifier": "classification_head.out_proj"})
    heads = {
        "body": Head(f"{name}Model"),
        "causal_lm": Head(f"{name}ForCausalLM", rows({"lm_head": "lm_head"})),
        "seq2seq_lm": Head("MarianMTModel" if name == "Marian" else f"{name}ForConditionalGeneration", GENERATION),
        "sequence_classification": Head(f"{name}ForSequenceClassification", classes),
        "question_answering": Head(f"{name}ForQuestionAnswering", rows({"span_classifier": "qa_outputs"})),
    }
    static = constants.get("static_position_embeddings", False)
    kinds = ("body", "causal_lm", "seq2seq_lm") if static else tuple(heads)
    # Copies of the shared embedding; the bias of an output layer that has none; sinusoids.
    # What a decoder alone does not use.
    ignored = (
        r"(encoder|decoder)\.(embed_tokens|version)(\.weight)?$|^lm_head\.weight$|^final_logits_bias$|\.encoder_attn"
    )
    return Format(
        model_type,
        KEYS,
        names,
        {kind: heads[kind] for kind in kinds},
        prefix="model.",
        constants=constants,
        read=read,
        write=write,
        derived=lambda config: (sinusoids(config) if static else {}) | unused(config),
        copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        writes_copies=True,
        zeros=() if name == "Marian" else ("final_logits_bias",),
        ignored=ignored + (r"|embed_positions\.weight$" if static else ""),
    )


BART_FORMAT = format_of("bart", "Bart")
MBART_FORMAT = format_of("mbart", "MBart")
FAMILIES = (
    Family("bart", BART, BART_FORMAT, "denoising"),
    Family("mbart", MBART, MBART_FORMAT, "denoising"),
    Family("transformer", TRANSFORMER, objective="span_corruption"),
)
