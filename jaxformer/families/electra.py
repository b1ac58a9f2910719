"""ELECTRA (Clark et al. 2020) and ALBERT (Lan et al. 2020): BERT with an embedding narrower than its layers."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.bert import (
    BERT,
    BODY,
    CLASSES,
    CONSTANTS,
    CROSS,
    DECODES,
    EMBEDDINGS,
    KEYS,
    SPANS,
    mlm_head,
    pooled,
)
from jaxformer.families.format import Family, Format, Head, Key, rows
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

# ELECTRA-base: the embedding is as wide as the layers; ELECTRA-small's has 128 of 256.
ELECTRA = {**BERT, "pooler": "gelu"}
# ALBERT-base v2. Version 1 had dropout and the exact GELU.
ALBERT = {
    **BERT,
    "embedding_size": 128,
    "share_layers": True,
    "activation": "gelu_tanh",
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def read_electra(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The width of the embedding; a projection follows it only if it differs from the model's."""
    narrow = hf["embedding_size"] != hf["hidden_size"]
    return {"embedding_size": hf["embedding_size"] if narrow else None}


def write_electra(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read_electra``."""
    if config.embedding_size == config.hidden_size:
        raise UserError(
            f"model.embedding_size is {config.embedding_size} as hidden_size, for which the Hugging Face format of "
            "electra has no projection; expected it left out, or another width"
        )
    return {"embedding_size": config.token_size}


def write_albert(config: TransformerConfig) -> dict[str, Any]:
    """Checks that there is a projection, which the format always has."""
    if config.embedding_size is None:
        raise UserError(
            "model.embedding_size is not set, expected a number: the Hugging Face format of albert always has the "
            "projection after the embedding"
        )
    return {}


# One block that all layers share.
ALBERT_BLOCK = {
    "attention/query": "attention.query",
    "attention/key": "attention.key",
    "attention/value": "attention.value",
    "attention/output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "feed_forward/up": "ffn",
    "feed_forward/down": "ffn_output",
    "feed_forward_norm": "full_layer_layer_norm",
}
ALBERT_BODY = [
    *rows({**EMBEDDINGS, "embeddings/projection": "encoder.embedding_hidden_mapping_in"}),
    *rows(ALBERT_BLOCK, "layers/", "encoder.albert_layer_groups.0.albert_layers.0."),
]


ELECTRA_MLM = mlm_head(
    "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", "generator_lm_head.bias"
)
ELECTRA_FORMAT = Format(
    "electra",
    (*KEYS, DECODES),
    # The projection follows a narrow embedding.
    [*BODY, *rows({"embeddings/projection": "embeddings_project"})],
    {
        "body": Head("ElectraModel"),
        # The generator, and the discriminator.
        "masked_lm": Head("ElectraForMaskedLM", ELECTRA_MLM),
        "causal_lm": Head("ElectraForCausalLM", ELECTRA_MLM),
        "pre_training": Head(
            "ElectraForPreTraining",
            rows({"dense": "dense", "output": "dense_prediction"}, "rtd_head/", "discriminator_predictions."),
        ),
        "sequence_classification": Head(
            "ElectraForSequenceClassification", pooled("classifier.dense", "classifier.out_proj")
        ),
        "token_classification": Head("ElectraForTokenClassification", CLASSES),
        "question_answering": Head("ElectraForQuestionAnswering", SPANS),
        "multiple_choice": Head("ElectraForMultipleChoice", pooled("sequence_summary.summary")),
    },
    prefix="electra.",
    constants=CONSTANTS,
    read=read_electra,
    write=write_electra,
    ignored=r"position_ids$|generator_lm_head\.weight$",
    cross=CROSS,
)
ALBERT_MLM = mlm_head("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias")
ALBERT_FORMAT = Format(
    "albert",
    (*KEYS, Key("embedding_size", "embedding_size")),
    ALBERT_BODY,
    {
        "body": Head("AlbertModel", rows({"pooler/dense": "pooler"})),
        "masked_lm": Head("AlbertForMaskedLM", ALBERT_MLM),
        "pre_training": Head(
            "AlbertForPreTraining",
            [*ALBERT_MLM, *rows({"pooler/dense": "albert.pooler", "pair_classifier": "sop_classifier.classifier"})],
        ),
        "sequence_classification": Head("AlbertForSequenceClassification", pooled("albert.pooler")),
        "token_classification": Head("AlbertForTokenClassification", CLASSES),
        "question_answering": Head("AlbertForQuestionAnswering", SPANS),
        "multiple_choice": Head("AlbertForMultipleChoice", pooled("albert.pooler")),
    },
    prefix="albert.",
    constants={**CONSTANTS, "is_decoder": False, "num_hidden_groups": 1, "inner_group_num": 1},
    write=write_albert,
    ignored=r"position_ids$|predictions\.decoder\.(weight|bias)$",
)

FAMILIES = (
    Family("electra", ELECTRA, ELECTRA_FORMAT, "replaced_token_detection"),
    Family("albert", ALBERT, ALBERT_FORMAT, "masked_lm"),
)
