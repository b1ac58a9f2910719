"""RoFormer (Su et al. 2021): BERT with rotary positions of neighbouring entries."""

from typing import Any

import jax.numpy as jnp

from jaxformer.families.bert import BERT, BERT_MLM, BODY, CLASSES, CONSTANTS, DECODES, KEYS, SPANS, pooled
from jaxformer.families.electra import read_electra, write_electra
from jaxformer.families.format import Family, Format, Head, rows
from jaxformer.functional import sinusoidal_positions
from jaxformer.models.config import TransformerConfig

DEFAULTS = {
    **BERT,
    "max_length": 1536,
    "positions": "rotary",
    "rotary_adjacent": True,
    "pooler": "gelu",
    "choice_pooler": False,
}


def angles(config: TransformerConfig) -> dict[str, Any]:
    """Sines and cosines of the angles of a head, a table in the file, ``[max_length, H]``."""
    table = sinusoidal_positions(jnp.arange(config.max_length), config.head_width, halves=True)
    return {"encoder.embed_positions.weight": table}


def read(hf: Any) -> dict[str, Any]:
    """The width of the embedding, that of the model if it is left out."""
    return read_electra({**hf, "embedding_size": hf.get("embedding_size") or hf["hidden_size"]})


FORMAT = Format(
    "roformer",
    (*KEYS, DECODES),
    [*BODY, *rows({"embeddings/projection": "embeddings_project"})],
    {
        "body": Head("RoFormerModel"),
        "masked_lm": Head("RoFormerForMaskedLM", BERT_MLM),
        "causal_lm": Head("RoFormerForCausalLM", BERT_MLM),
        "sequence_classification": Head(
            "RoFormerForSequenceClassification", pooled("classifier.dense", "classifier.out_proj")
        ),
        "token_classification": Head("RoFormerForTokenClassification", CLASSES),
        "question_answering": Head("RoFormerForQuestionAnswering", SPANS),
        "multiple_choice": Head("RoFormerForMultipleChoice", CLASSES),
    },
    prefix="roformer.",
    constants={**CONSTANTS, "rotary_value": False},
    read=read,
    write=write_electra,
    derived=angles,
    ignored=r"embed_positions\.weight$|predictions\.decoder\.(weight|bias)$",
)
FAMILY = Family("roformer", DEFAULTS, FORMAT, "masked_lm")
