"""ModernBERT (Warner et al. 2024): pre-norm encoder, rotary positions, gated GELU, two local layers for each global."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import (
    MLP_BIAS,
    SIZES,
    Family,
    Format,
    Head,
    Key,
    Name,
    activation,
    attention_bias,
    read_activation,
    require,
    rows,
    write_activation,
)
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

DEFAULTS: dict[str, Any] = {
    "architecture": "encoder",
    "hidden_size": 768,
    "num_layers": 22,
    "num_heads": 12,
    "intermediate_size": 1152,
    "max_length": 8192,
    "embedding_norm": True,
    "first_norm": False,
    "activation": "gelu",
    "gated": True,
    "use_bias": False,
    "positions": "rotary",
    "rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    # 64 tokens on either side and the token itself; the published number, 128, is of both sides.
    "window": 65,
    "global_every": 3,
    "pooling": "mean",
    "pooler": "gelu",
    "pooler_norm": True,
    "token_pooler": True,
}


POOLINGS = {"cls": "first", "mean": "mean"}


def _read_pooling(name: str) -> str:
    if name not in POOLINGS:
        raise UserError(f"config.json has classifier_pooling: {name!r}, expected one of {', '.join(POOLINGS)}")
    return POOLINGS[name]


def _write_pooling(ours: str | None) -> str:
    return "mean" if ours == "mean" else "cls"


KEYS = (
    *SIZES,
    Key("norm_epsilon", "norm_eps"),
    activation("hidden_activation"),
    Key("window", "local_attention", read=lambda both: both // 2 + 1, write=lambda side: (side - 1) * 2),
    Key("tie_embeddings", "tie_word_embeddings", True),
    *attention_bias(False),
    MLP_BIAS,
    Key("pooling", "classifier_pooling", "cls", _read_pooling, _write_pooling),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The pooler's activation, rotary bases and the order of local and global blocks, whose keys differ by version."""
    rope = hf.get("rope_parameters") or {}
    full, local = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    every = hf.get("global_attn_every_n_layers")
    kinds = hf.get("layer_types") or []
    if every is None:
        every = next((i for i, kind in enumerate(kinds) if i and kind == "full_attention"), len(kinds))
    require({"layer_types": kinds}, layer_types=_layer_types(len(kinds), every))
    require(hf, classifier_activation=hf["hidden_activation"])
    return {
        "pooler": read_activation(hf["hidden_activation"]),
        "rope_theta": full.get("rope_theta") or hf["global_rope_theta"],
        "local_rope_theta": local.get("rope_theta") or hf["local_rope_theta"],
        "global_every": every,
    }


def _layer_types(layers: int, every: int) -> list[str]:
    return ["sliding_attention" if i % every else "full_attention" for i in range(layers)]


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``, in the form of version 4, which both read."""
    return {
        "classifier_activation": write_activation(config.activation),
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": config.local_rope_theta,
        "global_attn_every_n_layers": config.global_every,
    }


TABLE = {
    "embeddings/token": "embeddings.tok_embeddings",
    "embeddings/norm": "embeddings.norm",
    "final_norm": "final_norm",
}
BLOCK = {
    "attention/query+key+value": "attn.Wqkv",
    "attention/output": "attn.Wo",
    "feed_forward_norm": "mlp_norm",
    "feed_forward/gate+up": "mlp.Wi",
    "feed_forward/down": "mlp.Wo",
}
FIRST_NORM = Name("layers/attention_norm/scale", "layers.{}.attn_norm.weight", not_first=True)
# The layer before the output layer, which has the same name in all heads.
POOLER = rows({"pooler/dense": "head.dense", "pooler/norm": "head.norm"})
MLM = [
    *rows({"mlm_head/dense": "head.dense", "mlm_head/norm": "head.norm"}),
    Name("lm_head/kernel", "decoder.weight", transposed=True),
    Name("mlm_head/bias", "decoder.bias"),
]
CLASSES = [*POOLER, *rows({"classifier": "classifier"})]
FORMAT = Format(
    "modernbert",
    KEYS,
    [*rows(TABLE), FIRST_NORM, *rows(BLOCK, "layers/", "layers.{}.")],
    {
        "body": Head("ModernBertModel"),
        "masked_lm": Head("ModernBertForMaskedLM", MLM),
        "sequence_classification": Head("ModernBertForSequenceClassification", CLASSES),
        "token_classification": Head("ModernBertForTokenClassification", CLASSES),
        "question_answering": Head(
            "ModernBertForQuestionAnswering", [*POOLER, *rows({"span_classifier": "classifier"})]
        ),
        "multiple_choice": Head("ModernBertForMultipleChoice", CLASSES),
    },
    prefix="model.",
    constants={
        "norm_bias": False,
        "decoder_bias": True,
        "classifier_bias": False,
    },
    read=read,
    write=write,
    ignored=r"inv_freq$|^decoder\.weight$",
)
FAMILY = Family("modernbert", DEFAULTS, FORMAT, "masked_lm")
