"""BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and DistilBERT (Sanh et al. 2019): post-norm encoders."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.base import Family, Name, activation, linear, norm, require
from jaxformer.models.config import TransformerConfig

BERT: dict[str, Any] = {
    "architecture": "encoder",
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "max_length": 512,
    "norm": "layer_norm",
    "norm_place": "post",
    "norm_epsilon": 1e-12,
    "embedding_norm": True,
    "activation": "gelu",
    "gated": False,
    "use_bias": True,
    "positions": "learned",
    "token_types": 2,
    "tie_embeddings": True,
    "pooler": "tanh",
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
# RoBERTa counts positions from 2 on, behind the row of its padding token; XLM-RoBERTa has the same parameters.
ROBERTA = {**BERT, "norm_epsilon": 1e-5, "token_types": 1, "position_offset": 2}
DISTILBERT = {**BERT, "num_layers": 6, "token_types": 0, "pooler": "relu"}


def common_from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the ``config.json`` of BERT and of its relatives have under one name.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    require(hf, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    return {
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "intermediate_size": hf["intermediate_size"],
        "max_length": hf["max_position_embeddings"],
        "token_types": hf["type_vocab_size"],
        "norm_epsilon": hf["layer_norm_eps"],
        "activation": activation(hf, "hidden_act"),
        "dropout": hf["hidden_dropout_prob"],
        "attention_dropout": hf["attention_probs_dropout_prob"],
        "initializer_range": hf["initializer_range"],
    }


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a BERT, RoBERTa or XLM-RoBERTa ``config.json``.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    keys = common_from_hf(hf)
    if "roberta" not in hf["model_type"]:
        return {**keys, "type": "bert"}
    return {**keys, "type": "roberta", "max_length": keys["max_length"] - 2, "position_offset": 2}


def distilbert_from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a DistilBERT ``config.json``.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    require(hf, sinusoidal_pos_embds=False)
    return {
        "type": "distilbert",
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["dim"],
        "num_layers": hf["n_layers"],
        "num_heads": hf["n_heads"],
        "intermediate_size": hf["hidden_dim"],
        "max_length": hf["max_position_embeddings"],
        "activation": activation(hf, "activation"),
        "dropout": hf["dropout"],
        "attention_dropout": hf["attention_dropout"],
        "initializer_range": hf["initializer_range"],
    }


def encoder_names(body: str) -> list[Name]:
    """The rows of a BERT-style body whose Hugging Face name is ``body``; ELECTRA's is the same."""
    table = [
        Name("embeddings/token/embedding", f"{body}.embeddings.word_embeddings.weight"),
        Name("embeddings/position/embedding", f"{body}.embeddings.position_embeddings.weight"),
        Name("embeddings/token_type/embedding", f"{body}.embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", f"{body}.embeddings.LayerNorm"),
    ]
    block = f"{body}.encoder.layer.{{}}."
    for part in ("query", "key", "value"):
        table += linear(f"layers/attention/{part}", f"{block}attention.self.{part}")
    return [
        *table,
        *linear("layers/attention/output", f"{block}attention.output.dense"),
        *norm("layers/attention_norm", f"{block}attention.output.LayerNorm"),
        *linear("layers/feed_forward/up", f"{block}intermediate.dense"),
        *linear("layers/feed_forward/down", f"{block}output.dense"),
        *norm("layers/feed_forward_norm", f"{block}output.LayerNorm"),
    ]


def bert_names(config: TransformerConfig) -> list[Name]:
    """``BertForPreTraining``: body, pooler and both heads."""
    return [
        *encoder_names("bert"),
        *linear("pooler/dense", "bert.pooler.dense"),
        *linear("mlm_head/dense", "cls.predictions.transform.dense"),
        *norm("mlm_head/norm", "cls.predictions.transform.LayerNorm"),
        Name("mlm_head/bias", "cls.predictions.bias"),
        *linear("pair_classifier", "cls.seq_relationship"),
    ]


def roberta_names(config: TransformerConfig) -> list[Name]:
    """``RobertaForMaskedLM``."""
    return [
        *encoder_names("roberta"),
        *linear("mlm_head/dense", "lm_head.dense"),
        *norm("mlm_head/norm", "lm_head.layer_norm"),
        Name("mlm_head/bias", "lm_head.bias"),
    ]


def distilbert_names(config: TransformerConfig) -> list[Name]:
    """``DistilBertForMaskedLM``, which renames everything."""
    table = [
        Name("embeddings/token/embedding", "distilbert.embeddings.word_embeddings.weight"),
        Name("embeddings/position/embedding", "distilbert.embeddings.position_embeddings.weight"),
        *norm("embeddings/norm", "distilbert.embeddings.LayerNorm"),
    ]
    block = "distilbert.transformer.layer.{}."
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out")):
        table += linear(f"layers/attention/{ours}", f"{block}attention.{theirs}_lin")
    return [
        *table,
        *norm("layers/attention_norm", f"{block}sa_layer_norm"),
        *linear("layers/feed_forward/up", f"{block}ffn.lin1"),
        *linear("layers/feed_forward/down", f"{block}ffn.lin2"),
        *norm("layers/feed_forward_norm", f"{block}output_layer_norm"),
        *linear("mlm_head/dense", "vocab_transform"),
        *norm("mlm_head/norm", "vocab_layer_norm"),
        Name("mlm_head/bias", "vocab_projector.bias"),
    ]


FAMILIES = (
    Family("bert", BERT, from_hf, bert_names, "masked_lm"),
    Family("roberta", ROBERTA, from_hf, roberta_names, "masked_lm"),
    Family("distilbert", DISTILBERT, distilbert_from_hf, distilbert_names, "masked_lm"),
)
