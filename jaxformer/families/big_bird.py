"""BigBird (Zaheer et al. 2020): BERT with block-sparse attention for long texts."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families import bert
from jaxformer.families.format import Family, Format, Head, Key, read_activation, rows
from jaxformer.models.config import TransformerConfig

# BigBird-RoBERTa-base.
DEFAULTS = {
    **bert.BERT,
    "max_length": 4096,
    "activation": "gelu_tanh",
    "classifier_pooler": "gelu_tanh",
    "span_feed_forward": True,
    "qkv_bias": True,
    "sparse_block_size": 64,
    "num_random_blocks": 3,
}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks, if attention is sparse, and the activation of classifiers."""
    sparse = hf.get("attention_type", "block_sparse") == "block_sparse"
    activation = read_activation(hf.get("hidden_act", "gelu_new"))
    return {"sparse_block_size": hf.get("block_size", 64) if sparse else None, "classifier_pooler": activation}


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    size = config.sparse_block_size
    return (
        {"attention_type": "original_full"} if size is None else {"attention_type": "block_sparse", "block_size": size}
    )


FORMAT = Format(
    "big_bird",
    (
        *bert.KEYS,
        bert.DECODES,
        Key("num_random_blocks", "num_random_blocks", 3),
        Key("qkv_bias", "use_bias", True),
        Key("scale_embedding", "rescale_embeddings", False),
    ),
    bert.BODY,
    {
        "body": Head("BigBirdModel", rows({"pooler/dense": "pooler"})),
        "masked_lm": Head("BigBirdForMaskedLM", bert.BERT_MLM),
        "causal_lm": Head("BigBirdForCausalLM", bert.BERT_MLM),
        "pre_training": Head(
            "BigBirdForPreTraining",
            [*bert.BERT_MLM, *rows({"pooler/dense": "bert.pooler", "pair_classifier": "cls.seq_relationship"})],
        ),
        "sequence_classification": Head(
            "BigBirdForSequenceClassification", bert.pooled("classifier.dense", "classifier.out_proj")
        ),
        "token_classification": Head("BigBirdForTokenClassification", bert.CLASSES),
        "question_answering": Head(
            "BigBirdForQuestionAnswering",
            rows(
                {
                    "span_feed_forward/up": "qa_classifier.intermediate.dense",
                    "span_feed_forward/down": "qa_classifier.output.dense",
                    "span_norm": "qa_classifier.output.LayerNorm",
                    "span_classifier": "qa_classifier.qa_outputs",
                }
            ),
        ),
        "multiple_choice": Head("BigBirdForMultipleChoice", bert.pooled("bert.pooler")),
    },
    prefix="bert.",
    constants={"add_cross_attention": False},
    read=read,
    write=write,
    # Buffers, the copies of a tied output layer, and a pooler where nothing reads it.
    ignored=r"position_ids$|^bert\.pooler\.|predictions\.decoder\.(weight|bias)$",
)
FAMILY = Family("big_bird", DEFAULTS, FORMAT, "masked_lm")
