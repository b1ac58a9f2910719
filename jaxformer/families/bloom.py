"""BLOOM (BigScience 2022): ALiBi instead of position embeddings, a norm after the embedding, tied head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import Family, Format, Head, Key, Name, fused, linear, linears, lm_head, norm, same
from jaxformer.models.config import TransformerConfig

# The shape is that of BLOOM 560M.
DEFAULTS = {
    "hidden_size": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "max_length": 2048,
    "embedding_norm": True,
    "positions": "alibi",
}


KEYS = (
    *same("vocab_size", "initializer_range"),
    # ALiBi has no longest length; the model was trained with this one.
    Key("max_length", "seq_length", 2048),
    Key("norm_epsilon", "layer_norm_epsilon"),
    Key("tie_embeddings", "tie_word_embeddings", True),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes, which have other names in older files."""
    return {
        "hidden_size": hf["n_embed"] if "n_embed" in hf else hf["hidden_size"],
        "num_layers": hf["n_layer"] if "n_layer" in hf else hf["num_hidden_layers"],
        "num_heads": hf["n_head"] if "n_head" in hf else hf["num_attention_heads"],
    }


def write(config: TransformerConfig) -> dict[str, Any]:
    """The sizes under the names of today."""
    return {"hidden_size": config.hidden_size, "n_layer": config.num_layers, "n_head": config.num_heads}


def names(config: TransformerConfig) -> list[Name]:
    """Query, key and value of a head are together in one matrix, ``[N, 3, H]``."""
    table = [Name("embeddings/token/embedding", "word_embeddings.weight")]
    table += norm("embeddings/norm", "word_embeddings_layernorm") + norm("final_norm", "ln_f")
    block = "h.{}."
    table += norm("layers/attention_norm", f"{block}input_layernorm")
    table += norm("layers/feed_forward_norm", f"{block}post_attention_layernorm")
    table += fused("layers/attention/", f"{block}self_attention.query_key_value", groups=config.num_heads)
    table += linear("layers/attention/output", f"{block}self_attention.dense")
    feed_forward = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}
    return table + linears("layers/feed_forward/", f"{block}mlp.", feed_forward)


FORMAT = Format(
    "bloom",
    KEYS,
    names,
    {
        "body": Head("BloomModel"),
        "causal_lm": Head("BloomForCausalLM", lm_head("lm_head")),
        "sequence_classification": Head("BloomForSequenceClassification", linear("classifier", "score", bias=False)),
        "token_classification": Head("BloomForTokenClassification", linear("classifier", "classifier")),
        "question_answering": Head("BloomForQuestionAnswering", linear("span_classifier", "qa_outputs")),
    },
    prefix="transformer.",
    constants={"apply_residual_connection_post_layernorm": False},
    read=read,
    write=write,
)
FAMILY = Family("bloom", DEFAULTS, FORMAT)
