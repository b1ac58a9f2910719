"""RoBERTa (Liu et al. 2019), XLM-RoBERTa (Conneau et al. 2020) and a pre-norm RoBERTa (Ott et al. 2019, fairseq)."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxformer.families import bert
from jaxformer.families.bert import (
    BERT,
    BODY,
    CLASSES,
    CONSTANTS,
    DECODES,
    EMBEDDINGS,
    SPANS,
    cross_attention,
    mlm_head,
    pooled,
)
from jaxformer.families.format import Family, Format, Head, Name, rows
from jaxformer.models.config import TransformerConfig

# The positions begin after the row of the padding token.
ROBERTA = {**BERT, "norm_epsilon": 1e-5, "token_types": 1, "position_offset": "after_pad"}
PRELAYERNORM = {**ROBERTA, "norm_place": "pre"}
KEYS = (*(key for key in bert.KEYS if key.ours != "max_length"), DECODES)
MLM = mlm_head("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")
PRELAYERNORM_BLOCK = {
    **bert.BLOCK,
    "attention_norm": "attention.LayerNorm",
    "feed_forward_norm": "intermediate.LayerNorm",
}
PRELAYERNORM_BODY = [
    *rows({**EMBEDDINGS, "final_norm": "LayerNorm"}),
    *rows(PRELAYERNORM_BLOCK, "layers/", "encoder.layer.{}."),
]


def read_positions(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The longest text: the table also has the rows up to that of the padding token, by default 1."""
    pad = hf.get("pad_token_id")
    before = 2 if pad is None else pad + 1
    return {"position_offset": "after_pad", "max_length": hf["max_position_embeddings"] - before}


def write_positions(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read_positions``."""
    return {"max_position_embeddings": config.max_length + config.first_position}


def format_of(model_type: str, name: str, body: Sequence[Name] = BODY, prefix: str = "roberta.") -> Format:
    """The format of RoBERTa or a relative, whose classes begin with ``name``."""
    return Format(
        model_type,
        KEYS,
        body,
        {
            "body": Head(f"{name}Model", rows({"pooler/dense": "pooler.dense"})),
            "masked_lm": Head(f"{name}ForMaskedLM", MLM),
            "causal_lm": Head(f"{name}ForCausalLM", MLM),
            "sequence_classification": Head(
                f"{name}ForSequenceClassification", pooled("classifier.dense", "classifier.out_proj")
            ),
            "token_classification": Head(f"{name}ForTokenClassification", CLASSES),
            "question_answering": Head(f"{name}ForQuestionAnswering", SPANS),
            "multiple_choice": Head(f"{name}ForMultipleChoice", pooled(f"{prefix}pooler.dense")),
        },
        prefix=prefix,
        constants=CONSTANTS,
        read=read_positions,
        write=write_positions,
        ignored=r"position_ids$|lm_head\.decoder\.(weight|bias)$",
        cross=cross_attention(PRELAYERNORM_BLOCK if body is PRELAYERNORM_BODY else bert.BLOCK),
    )


PRELAYERNORM_FORMAT = format_of(
    "roberta-prelayernorm", "RobertaPreLayerNorm", PRELAYERNORM_BODY, "roberta_prelayernorm."
)
FAMILIES = (
    Family("roberta", ROBERTA, format_of("roberta", "Roberta"), "masked_lm"),
    Family("xlm_roberta", ROBERTA, format_of("xlm-roberta", "XLMRoberta"), "masked_lm"),
    Family("roberta_prelayernorm", PRELAYERNORM, PRELAYERNORM_FORMAT, "masked_lm"),
)
