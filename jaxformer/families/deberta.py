"""DeBERTa v2 and v3 (He et al. 2021; He et al. 2023): BERT whose scores have terms for the distance of two tokens."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.bert import BERT, BLOCK, CLASSES, EMBEDDINGS, KEYS, SPANS, pooled
from jaxformer.families.format import (
    Family,
    Format,
    Head,
    Key,
    Name,
    read_activation,
    require,
    rows,
    write_activation,
)
from jaxformer.models.config import TransformerConfig

# The shape is that of DeBERTa v3 base.
DEFAULTS: dict[str, Any] = {
    **BERT,
    "norm_epsilon": 1e-7,
    "positions": "disentangled",
    "relative_buckets": 256,
    "relative_max_distance": 512,
    "token_types": 0,
    "pooler": "gelu",
}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The longest distance, by default that of a text, and what all published models of these versions share."""
    kinds = hf.get("pos_att_type") or []
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    require({"pos_att_type": sorted(kind.strip() for kind in kinds)}, pos_att_type=["c2p", "p2c"])
    require({"position_biased_input": True, **hf}, position_biased_input=False)
    require({"share_att_key": False, "norm_rel_ebd": "none", **hf}, share_att_key=True, norm_rel_ebd="layer_norm")
    require(hf, embedding_size=hf["hidden_size"], pooler_hidden_act=hf["hidden_act"])
    longest = hf.get("max_relative_positions", -1)
    found = {"relative_max_distance": hf["max_position_embeddings"] if longest < 1 else longest}
    if hf.get("conv_kernel_size"):
        require({"conv_groups": 1, **hf}, conv_groups=1)
        activation = read_activation(hf.get("conv_act", "tanh"))
        found |= {"embedding_conv_size": hf["conv_kernel_size"], "embedding_conv_activation": activation}
    return found


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    size, activation = config.embedding_conv_size, config.embedding_conv_activation
    conv = {"conv_kernel_size": size, "conv_act": write_activation(activation)} if size else {}
    return {
        **conv,
        "max_relative_positions": config.relative_max_distance,
        "pos_att_type": ["p2c", "c2p"],
        "relative_attention": True,
        "position_biased_input": False,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "pooler_hidden_size": config.hidden_size,
        "legacy": True,
    }


TABLE = {
    **{ours: theirs for ours, theirs in EMBEDDINGS.items() if ours != "embeddings/position"},
    "distances": "encoder.rel_embeddings",
    "distance_norm": "encoder.LayerNorm",
}
PROJECTIONS = {f"attention/{name}": f"attention.self.{name}_proj" for name in ("query", "key", "value")}
# The head by its names in transformers, and by those of the published files of version 3.
MLM = [
    name._replace(otherwise=otherwise.theirs)
    for name, otherwise in zip(
        rows({"dense": "transform.dense", "norm": "transform.LayerNorm"}, "mlm_head/", "cls.predictions."),
        rows({"dense": "dense", "norm": "LayerNorm"}, "mlm_head/", "lm_predictions.lm_head."),
        strict=True,
    )
]
MLM += [
    Name("lm_head/kernel", "cls.predictions.decoder.weight", transposed=True),
    Name("mlm_head/bias", "cls.predictions.bias", otherwise="lm_predictions.lm_head.bias"),
]


def names(config: TransformerConfig) -> list[Name]:
    """The backbone, with the convolution where there is one."""
    table = [*rows(TABLE), *rows({**BLOCK, **PROJECTIONS}, "layers/", "encoder.layer.{}.")]
    if config.embedding_conv_size is not None:
        table += rows({"embedding_conv/norm": "encoder.conv.LayerNorm"})
        table += [
            Name("embedding_conv/taps", "encoder.conv.conv.weight", transposed=True),
            Name("embedding_conv/bias", "encoder.conv.conv.bias"),
        ]
    return table


FORMAT = Format(
    "deberta-v2",
    (*KEYS, Key("relative_buckets", "position_buckets")),
    names,
    {
        "body": Head("DebertaV2Model"),
        "masked_lm": Head("DebertaV2ForMaskedLM", MLM),
        "sequence_classification": Head("DebertaV2ForSequenceClassification", pooled("pooler.dense")),
        "token_classification": Head("DebertaV2ForTokenClassification", CLASSES),
        "question_answering": Head("DebertaV2ForQuestionAnswering", SPANS),
        "multiple_choice": Head("DebertaV2ForMultipleChoice", pooled("pooler.dense")),
    },
    prefix="deberta.",
    constants={"relative_attention": True},
    read=read,
    write=write,
    # Buffers, copies of a tied output layer, and the head of replaced tokens in published files.
    ignored=r"position_ids$|predictions\.decoder\.(weight|bias)$|^mask_predictions\.|^lm_predictions\.",
)
FAMILY = Family("deberta_v3", DEFAULTS, FORMAT, "masked_lm")
