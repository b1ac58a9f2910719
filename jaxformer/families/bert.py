"""BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and DistilBERT (Sanh et al. 2019): post-norm encoders."""

from typing import Any

from jaxformer.families.format import (
    QKV,
    SIZES,
    Family,
    Format,
    Head,
    Key,
    Name,
    activation,
    linear,
    linears,
    norm,
    same,
)
from jaxformer.models.config import TransformerConfig

BERT: dict[str, Any] = {
    "architecture": "encoder",
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "max_length": 512,
    "norm_place": "post",
    "norm_epsilon": 1e-12,
    "embedding_norm": True,
    "activation": "gelu",
    "token_types": 2,
    "pooler": "tanh",
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
# RoBERTa counts positions from 2 on, after the row of its padding token; so does XLM-RoBERTa (Conneau et al. 2020).
ROBERTA = {**BERT, "norm_epsilon": 1e-5, "token_types": 1, "position_offset": 2}
DISTILBERT = {**BERT, "num_layers": 6, "token_types": 0, "pooler": "relu"}


# Keys that BERT and its relatives share.
KEYS = (
    *SIZES,
    Key("token_types", "type_vocab_size"),
    Key("norm_epsilon", "layer_norm_eps", 1e-12),
    activation("hidden_act"),
    Key("dropout", "hidden_dropout_prob"),
    Key("attention_dropout", "attention_probs_dropout_prob"),
    Key("tie_embeddings", "tie_word_embeddings", True),
)
CONSTANTS = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
ROBERTA_KEYS = (
    *(key for key in KEYS if key.ours != "max_length"),
    Key("max_length", "max_position_embeddings", read=lambda rows: rows - 2, write=lambda length: length + 2),
)
DISTILBERT_KEYS = (
    Key("hidden_size", "dim"),
    Key("num_layers", "n_layers"),
    Key("num_heads", "n_heads"),
    Key("intermediate_size", "hidden_dim"),
    Key("max_length", "max_position_embeddings"),
    activation("activation"),
    *same("vocab_size", "dropout", "attention_dropout", "initializer_range"),
    Key("tie_embeddings", "tie_word_embeddings", True),
)


def encoder_names(config: TransformerConfig) -> list[Name]:
    """The rows of a BERT-style body; RoBERTa's and ELECTRA's are the same."""
    table = [
        Name("embeddings/token/embedding", "embeddings.word_embeddings.weight"),
        Name("embeddings/position/embedding", "embeddings.position_embeddings.weight"),
        Name("embeddings/token_type/embedding", "embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", "embeddings.LayerNorm"),
    ]
    block = "encoder.layer.{}."
    return [
        *table,
        *linears("layers/attention/", f"{block}attention.self.", {part: part for part in QKV}),
        *linear("layers/attention/output", f"{block}attention.output.dense"),
        *norm("layers/attention_norm", f"{block}attention.output.LayerNorm"),
        *linear("layers/feed_forward/up", f"{block}intermediate.dense"),
        *linear("layers/feed_forward/down", f"{block}output.dense"),
        *norm("layers/feed_forward_norm", f"{block}output.LayerNorm"),
    ]


def distilbert_names(config: TransformerConfig) -> list[Name]:
    """DistilBERT renames everything."""
    table = [
        Name("embeddings/token/embedding", "embeddings.word_embeddings.weight"),
        Name("embeddings/position/embedding", "embeddings.position_embeddings.weight"),
        *norm("embeddings/norm", "embeddings.LayerNorm"),
    ]
    block = "transformer.layer.{}."
    attention = {"query": "q_lin", "key": "k_lin", "value": "v_lin", "output": "out_lin"}
    return [
        *table,
        *linears("layers/attention/", f"{block}attention.", attention),
        *norm("layers/attention_norm", f"{block}sa_layer_norm"),
        *linears("layers/feed_forward/", f"{block}ffn.", {"up": "lin1", "down": "lin2"}),
        *norm("layers/feed_forward_norm", f"{block}output_layer_norm"),
    ]


def mlm_head(dense: str, norm_name: str, bias: str) -> list[Name]:
    """The rows of a masked language model's head, whose output layer is the embedding."""
    return [
        *linear("mlm_head/dense", dense),
        *norm("mlm_head/norm", norm_name),
        # In some files the bias has the name of the output layer.
        Name("mlm_head/bias", bias, otherwise=bias.removesuffix("bias") + "decoder.bias"),
    ]


POOLER, SPANS, CLASSES = "pooler/dense", linear("span_classifier", "qa_outputs"), linear("classifier", "classifier")
BERT_MLM = mlm_head("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
BERT_FORMAT = Format(
    "bert",
    KEYS,
    encoder_names,
    {
        "body": Head("BertModel", linear(POOLER, "pooler.dense")),
        "masked_lm": Head("BertForMaskedLM", BERT_MLM),
        "pre_training": Head(
            "BertForPreTraining",
            [*linear(POOLER, "bert.pooler.dense"), *BERT_MLM, *linear("pair_classifier", "cls.seq_relationship")],
        ),
        "sequence_classification": Head(
            "BertForSequenceClassification", [*linear(POOLER, "bert.pooler.dense"), *CLASSES]
        ),
        "token_classification": Head("BertForTokenClassification", CLASSES),
        "question_answering": Head("BertForQuestionAnswering", SPANS),
        "multiple_choice": Head("BertForMultipleChoice", [*linear(POOLER, "bert.pooler.dense"), *CLASSES]),
    },
    prefix="bert.",
    constants=CONSTANTS,
    # Buffers, and the copies of a tied output layer.
    ignored=r"position_ids$|predictions\.decoder\.(weight|bias)$",
)


def roberta_format(model_type: str, name: str) -> Format:
    """The format of RoBERTa, whose classes begin with ``name``."""
    pooler = linear(POOLER, "roberta.pooler.dense")
    return Format(
        model_type,
        ROBERTA_KEYS,
        encoder_names,
        {
            "body": Head(f"{name}Model", linear(POOLER, "pooler.dense")),
            "masked_lm": Head(f"{name}ForMaskedLM", mlm_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")),
            "sequence_classification": Head(
                f"{name}ForSequenceClassification",
                [*linear(POOLER, "classifier.dense"), *linear("classifier", "classifier.out_proj")],
            ),
            "token_classification": Head(f"{name}ForTokenClassification", CLASSES),
            "question_answering": Head(f"{name}ForQuestionAnswering", SPANS),
            "multiple_choice": Head(f"{name}ForMultipleChoice", [*pooler, *CLASSES]),
        },
        prefix="roberta.",
        constants=CONSTANTS,
        read=lambda hf: {"position_offset": 2},
        ignored=r"position_ids$|lm_head\.decoder\.(weight|bias)$",
    )


BEFORE_CLASSES = [*linear(POOLER, "pre_classifier"), *CLASSES]
DISTILBERT_FORMAT = Format(
    "distilbert",
    DISTILBERT_KEYS,
    distilbert_names,
    {
        "body": Head("DistilBertModel"),
        "masked_lm": Head(
            "DistilBertForMaskedLM", mlm_head("vocab_transform", "vocab_layer_norm", "vocab_projector.bias")
        ),
        "sequence_classification": Head("DistilBertForSequenceClassification", BEFORE_CLASSES),
        "token_classification": Head("DistilBertForTokenClassification", CLASSES),
        "question_answering": Head("DistilBertForQuestionAnswering", SPANS),
        "multiple_choice": Head("DistilBertForMultipleChoice", BEFORE_CLASSES),
    },
    prefix="distilbert.",
    constants={"sinusoidal_pos_embds": False},
    ignored=r"position_ids$|vocab_projector\.weight$",
)

FAMILIES = (
    Family("bert", BERT, BERT_FORMAT, "masked_lm"),
    Family("roberta", ROBERTA, roberta_format("roberta", "Roberta"), "masked_lm"),
    Family("xlm_roberta", ROBERTA, roberta_format("xlm-roberta", "XLMRoberta"), "masked_lm"),
    Family("distilbert", DISTILBERT, DISTILBERT_FORMAT, "masked_lm"),
)
