"""ELECTRA (Clark et al. 2020) and ALBERT (Lan et al. 2020): BERT with an embedding narrower than its layers."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.base import Family, Name, linear, norm, require
from jaxformer.families.bert import BERT, common_from_hf, encoder_names
from jaxformer.models.config import TransformerConfig

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


def electra_from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from an ELECTRA ``config.json``.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    narrow = hf["embedding_size"] != hf["hidden_size"]
    return {**common_from_hf(hf), "type": "electra", "embedding_size": hf["embedding_size"] if narrow else None}


def albert_from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from an ALBERT ``config.json``.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    require(hf, num_hidden_groups=1, inner_group_num=1)
    return {**common_from_hf(hf), "type": "albert", "embedding_size": hf["embedding_size"]}


def electra_names(config: TransformerConfig) -> list[Name]:
    """``ElectraForMaskedLM`` (the generator) and ``ElectraForPreTraining`` (the discriminator)."""
    return [
        *encoder_names("electra"),
        *linear("embeddings/projection", "electra.embeddings_project"),
        *linear("mlm_head/dense", "generator_predictions.dense"),
        *norm("mlm_head/norm", "generator_predictions.LayerNorm"),
        Name("mlm_head/bias", "generator_lm_head.bias"),
        *linear("rtd_head/dense", "discriminator_predictions.dense"),
        *linear("rtd_head/output", "discriminator_predictions.dense_prediction"),
    ]


def albert_names(config: TransformerConfig) -> list[Name]:
    """``AlbertForPreTraining``: one block that all layers share."""
    block = "albert.encoder.albert_layer_groups.0.albert_layers.0."
    table = [
        Name("embeddings/token/embedding", "albert.embeddings.word_embeddings.weight"),
        Name("embeddings/position/embedding", "albert.embeddings.position_embeddings.weight"),
        Name("embeddings/token_type/embedding", "albert.embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", "albert.embeddings.LayerNorm"),
        *linear("embeddings/projection", "albert.encoder.embedding_hidden_mapping_in"),
    ]
    for part in ("query", "key", "value"):
        table += linear(f"layers/attention/{part}", f"{block}attention.{part}")
    return [
        *table,
        *linear("layers/attention/output", f"{block}attention.dense"),
        *norm("layers/attention_norm", f"{block}attention.LayerNorm"),
        *linear("layers/feed_forward/up", f"{block}ffn"),
        *linear("layers/feed_forward/down", f"{block}ffn_output"),
        *norm("layers/feed_forward_norm", f"{block}full_layer_layer_norm"),
        *linear("pooler/dense", "albert.pooler"),
        *linear("mlm_head/dense", "predictions.dense"),
        *norm("mlm_head/norm", "predictions.LayerNorm"),
        Name("mlm_head/bias", "predictions.bias"),
        *linear("pair_classifier", "sop_classifier.classifier"),
    ]


FAMILIES = (
    Family("electra", ELECTRA, electra_from_hf, electra_names, "replaced_token_detection"),
    Family("albert", ALBERT, albert_from_hf, albert_names, "masked_lm"),
)
