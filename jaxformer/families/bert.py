"""BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and DistilBERT (Sanh et al. 2019): post-norm encoders."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import SIZES, Family, Format, Head, Key, Name, activation, rows, same
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
# RoBERTa's positions begin after the row of its padding token; so do XLM-RoBERTa's (Conneau et al. 2020).
ROBERTA = {**BERT, "norm_epsilon": 1e-5, "token_types": 1, "position_offset": "after_pad"}
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
ROBERTA_KEYS = tuple(key for key in KEYS if key.ours != "max_length")
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


# The backbone; RoBERTa's and ELECTRA's have the same names.
EMBEDDINGS = {
    "embeddings/token": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
}
BLOCK = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
BODY = [*rows(EMBEDDINGS), *rows(BLOCK, "layers/", "encoder.layer.{}.")]
DISTILBERT_BLOCK = {
    "attention/query": "attention.q_lin",
    "attention/key": "attention.k_lin",
    "attention/value": "attention.v_lin",
    "attention/output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_forward/up": "ffn.lin1",
    "feed_forward/down": "ffn.lin2",
    "feed_forward_norm": "output_layer_norm",
}


def mlm_head(dense: str, norm: str, output: str, bias: str) -> list[Name]:
    """The rows of a masked language model's head; the bias of its output layer may have a name of its own."""
    kernel = Name("lm_head/kernel", f"{output}.weight", transposed=True)
    return [
        *rows({"mlm_head/dense": dense, "mlm_head/norm": norm}),
        kernel,
        Name("mlm_head/bias", bias, otherwise=f"{output}.bias"),
    ]


def pooled(pooler: str, classifier: str = "classifier") -> list[Name]:
    """The rows of a classifier behind a pooler."""
    return rows({"pooler/dense": pooler, "classifier": classifier})


SPANS, CLASSES = rows({"span_classifier": "qa_outputs"}), rows({"classifier": "classifier"})
BERT_MLM = mlm_head(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder",
    "cls.predictions.bias",
)
BERT_FORMAT = Format(
    "bert",
    KEYS,
    BODY,
    {
        "body": Head("BertModel", rows({"pooler/dense": "pooler.dense"})),
        "masked_lm": Head("BertForMaskedLM", BERT_MLM),
        "pre_training": Head(
            "BertForPreTraining",
            [*BERT_MLM, *rows({"pooler/dense": "bert.pooler.dense", "pair_classifier": "cls.seq_relationship"})],
        ),
        "sequence_classification": Head("BertForSequenceClassification", pooled("bert.pooler.dense")),
        "token_classification": Head("BertForTokenClassification", CLASSES),
        "question_answering": Head("BertForQuestionAnswering", SPANS),
        "multiple_choice": Head("BertForMultipleChoice", pooled("bert.pooler.dense")),
    },
    prefix="bert.",
    constants=CONSTANTS,
    # Buffers, and the copies of a tied output layer.
    ignored=r"position_ids$|predictions\.decoder\.(weight|bias)$",
)


def read_positions(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The longest text: the table also has the rows up to that of the padding token, by default 1."""
    pad = hf.get("pad_token_id")
    before = 2 if pad is None else pad + 1
    return {"position_offset": "after_pad", "max_length": hf["max_position_embeddings"] - before}


def write_positions(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read_positions``."""
    return {"max_position_embeddings": config.max_length + config.first_position}


def roberta_format(model_type: str, name: str) -> Format:
    """The format of RoBERTa, whose classes begin with ``name``."""
    return Format(
        model_type,
        ROBERTA_KEYS,
        BODY,
        {
            "body": Head(f"{name}Model", rows({"pooler/dense": "pooler.dense"})),
            "masked_lm": Head(
                f"{name}ForMaskedLM", mlm_head("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")
            ),
            "sequence_classification": Head(
                f"{name}ForSequenceClassification", pooled("classifier.dense", "classifier.out_proj")
            ),
            "token_classification": Head(f"{name}ForTokenClassification", CLASSES),
            "question_answering": Head(f"{name}ForQuestionAnswering", SPANS),
            "multiple_choice": Head(f"{name}ForMultipleChoice", pooled("roberta.pooler.dense")),
        },
        prefix="roberta.",
        constants=CONSTANTS,
        read=read_positions,
        write=write_positions,
        ignored=r"position_ids$|lm_head\.decoder\.(weight|bias)$",
    )


DISTILBERT_FORMAT = Format(
    "distilbert",
    DISTILBERT_KEYS,
    [*rows(EMBEDDINGS), *rows(DISTILBERT_BLOCK, "layers/", "transformer.layer.{}.")],
    {
        "body": Head("DistilBertModel"),
        "masked_lm": Head(
            "DistilBertForMaskedLM",
            mlm_head("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"),
        ),
        "sequence_classification": Head("DistilBertForSequenceClassification", pooled("pre_classifier")),
        "token_classification": Head("DistilBertForTokenClassification", CLASSES),
        "question_answering": Head("DistilBertForQuestionAnswering", SPANS),
        "multiple_choice": Head("DistilBertForMultipleChoice", pooled("pre_classifier")),
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
