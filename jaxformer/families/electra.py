"""ELECTRA (Clark et al. 2020) and ALBERT (Lan et al. 2020): BERT with an embedding narrower than its layers."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.bert import BERT, CLASSES, CONSTANTS, KEYS, POOLER, SPANS, encoder_names, mlm_head
from jaxformer.families.format import QKV, Family, Format, Head, Key, Name, linear, linears, norm
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


def electra_names(config: TransformerConfig) -> list[Name]:
    """BERT's rows and the projection after a narrow embedding."""
    return [*encoder_names(config), *linear("embeddings/projection", "embeddings_project")]


def albert_names(config: TransformerConfig) -> list[Name]:
    """One block that all layers share."""
    block = "encoder.albert_layer_groups.0.albert_layers.0."
    table = [
        Name("embeddings/token/embedding", "embeddings.word_embeddings.weight"),
        Name("embeddings/position/embedding", "embeddings.position_embeddings.weight"),
        Name("embeddings/token_type/embedding", "embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", "embeddings.LayerNorm"),
        *linear("embeddings/projection", "encoder.embedding_hidden_mapping_in"),
    ]
    attention = {**{part: part for part in QKV}, "output": "dense"}
    return [
        *table,
        *linears("layers/attention/", f"{block}attention.", attention),
        *norm("layers/attention_norm", f"{block}attention.LayerNorm"),
        *linear("layers/feed_forward/up", f"{block}ffn"),
        *linear("layers/feed_forward/down", f"{block}ffn_output"),
        *norm("layers/feed_forward_norm", f"{block}full_layer_layer_norm"),
    ]


ELECTRA_FORMAT = Format(
    "electra",
    KEYS,
    electra_names,
    {
        "body": Head("ElectraModel"),
        # The generator, and the discriminator.
        "masked_lm": Head(
            "ElectraForMaskedLM",
            mlm_head("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
        ),
        "pre_training": Head(
            "ElectraForPreTraining",
            linears("rtd_head/", "discriminator_predictions.", {"dense": "dense", "output": "dense_prediction"}),
        ),
        "sequence_classification": Head(
            "ElectraForSequenceClassification",
            [*linear(POOLER, "classifier.dense"), *linear("classifier", "classifier.out_proj")],
        ),
        "token_classification": Head("ElectraForTokenClassification", CLASSES),
        "question_answering": Head("ElectraForQuestionAnswering", SPANS),
        "multiple_choice": Head("ElectraForMultipleChoice", [*linear(POOLER, "sequence_summary.summary"), *CLASSES]),
    },
    prefix="electra.",
    constants=CONSTANTS,
    read=read_electra,
    write=write_electra,
    ignored=r"position_ids$|generator_lm_head\.weight$",
)
ALBERT_MLM = mlm_head("predictions.dense", "predictions.LayerNorm", "predictions.bias")
ALBERT_FORMAT = Format(
    "albert",
    (*KEYS, Key("embedding_size", "embedding_size")),
    albert_names,
    {
        "body": Head("AlbertModel", linear(POOLER, "pooler")),
        "masked_lm": Head("AlbertForMaskedLM", ALBERT_MLM),
        "pre_training": Head(
            "AlbertForPreTraining",
            [*linear(POOLER, "albert.pooler"), *ALBERT_MLM, *linear("pair_classifier", "sop_classifier.classifier")],
        ),
        "sequence_classification": Head(
            "AlbertForSequenceClassification", [*linear(POOLER, "albert.pooler"), *CLASSES]
        ),
        "token_classification": Head("AlbertForTokenClassification", CLASSES),
        "question_answering": Head("AlbertForQuestionAnswering", SPANS),
        "multiple_choice": Head("AlbertForMultipleChoice", [*linear(POOLER, "albert.pooler"), *CLASSES]),
    },
    prefix="albert.",
    constants={**CONSTANTS, "num_hidden_groups": 1, "inner_group_num": 1},
    write=write_albert,
    ignored=r"position_ids$|predictions\.decoder\.(weight|bias)$",
)

FAMILIES = (
    Family("electra", ELECTRA, ELECTRA_FORMAT, "replaced_token_detection"),
    Family("albert", ALBERT, ALBERT_FORMAT, "masked_lm"),
)
