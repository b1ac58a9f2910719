"""BERT (Devlin et al. 2019) and DistilBERT (Sanh et al. 2019): post-norm encoders."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import SIZES, Family, Format, Head, Key, Name, activation, rows, same

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
    "pooling": "first",
    "pooler": "tanh",
    "head_transform": True,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
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
# As a causal language model it is a decoder.
DECODES = Key("architecture", "is_decoder", False, ("encoder", "decoder").__getitem__, "decoder".__eq__)
CONSTANTS = {"position_embedding_type": "absolute", "add_cross_attention": False}
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


def cross_attention(block: Mapping[str, str]) -> list[Name]:
    """The rows of attention to an encoder's states in a block with these names, which those of attention begin."""
    own = {f"cross_{ours}": f"cross{theirs}" for ours, theirs in block.items() if ours.startswith("attention")}
    return rows(own, "layers/", "encoder.layer.{}.")


CROSS = cross_attention(BLOCK)
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
PAIRS = rows({"pooler/dense": "bert.pooler.dense", "pair_classifier": "cls.seq_relationship"})
NEXT_SENTENCE = rows({"pooler/dense": "bert.pooler.dense", "classifier": "cls.seq_relationship"})
BERT_FORMAT = Format(
    "bert",
    (*KEYS, DECODES),
    BODY,
    {
        "body": Head("BertModel", rows({"pooler/dense": "pooler.dense"})),
        "masked_lm": Head("BertForMaskedLM", BERT_MLM),
        "causal_lm": Head("BertLMHeadModel", BERT_MLM),
        "pre_training": Head("BertForPreTraining", [*BERT_MLM, *PAIRS]),
        "next_sentence_prediction": Head("BertForNextSentencePrediction", NEXT_SENTENCE),
        "sequence_classification": Head("BertForSequenceClassification", pooled("bert.pooler.dense")),
        "token_classification": Head("BertForTokenClassification", CLASSES),
        "question_answering": Head("BertForQuestionAnswering", SPANS),
        "multiple_choice": Head("BertForMultipleChoice", pooled("bert.pooler.dense")),
    },
    prefix="bert.",
    constants=CONSTANTS,
    # Buffers, and the copies of a tied output layer.
    ignored=r"position_ids$|predictions\.decoder\.(weight|bias)$",
    cross=CROSS,
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
    Family("distilbert", DISTILBERT, DISTILBERT_FORMAT, "masked_lm"),
)
