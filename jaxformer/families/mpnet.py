"""MPNet (Song et al. 2020): RoBERTa with T5's bias by distance beside its learned positions."""

from jaxformer.families import roberta
from jaxformer.families.bert import CLASSES, EMBEDDINGS, SPANS, pooled
from jaxformer.families.format import Family, Format, Head, Key, rows

DEFAULTS = {
    **roberta.ROBERTA,
    "token_types": 0,
    "positions": "learned_relative",
    "head_transform": False,
}
KEYS = (
    *(key for key in roberta.KEYS if key.ours not in ("token_types", "architecture")),
    Key("relative_buckets", "relative_attention_num_buckets"),
)
BLOCK = {
    "attention/query": "attention.attn.q",
    "attention/key": "attention.attn.k",
    "attention/value": "attention.attn.v",
    "attention/output": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
FORMAT = Format(
    "mpnet",
    KEYS,
    [
        *rows({**EMBEDDINGS, "relative_bias": "encoder.relative_attention_bias"}),
        *rows(BLOCK, "layers/", "encoder.layer.{}."),
    ],
    {
        "body": Head("MPNetModel", rows({"pooler/dense": "pooler.dense"})),
        "masked_lm": Head("MPNetForMaskedLM", roberta.MLM),
        "sequence_classification": Head(
            "MPNetForSequenceClassification", pooled("classifier.dense", "classifier.out_proj")
        ),
        "token_classification": Head("MPNetForTokenClassification", CLASSES),
        "question_answering": Head("MPNetForQuestionAnswering", SPANS),
        "multiple_choice": Head("MPNetForMultipleChoice", pooled("mpnet.pooler.dense")),
    },
    prefix="mpnet.",
    read=roberta.read_positions,
    write=roberta.write_positions,
    ignored=r"position_ids$|lm_head\.decoder\.(weight|bias)$",
)
FAMILY = Family("mpnet", DEFAULTS, FORMAT, "masked_lm")
