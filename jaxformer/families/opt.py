"""OPT (Zhang et al. 2022): learned positions from row 2 of their table on, pre-norm LayerNorm, ReLU, tied head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import (
    Family,
    Format,
    Head,
    Key,
    Name,
    activation,
    linear,
    linears,
    lm_head,
    norm,
    require,
)
from jaxformer.models.config import TransformerConfig

# The shape is that of OPT 125M.
DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "max_length": 2048,
    "activation": "relu",
    "position_offset": 2,
}


KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "hidden_size"),
    Key("num_layers", "num_hidden_layers"),
    Key("num_heads", "num_attention_heads"),
    Key("intermediate_size", "ffn_dim"),
    Key("max_length", "max_position_embeddings"),
    activation("activation_function"),
    Key("tie_embeddings", "tie_word_embeddings", True),
    Key("initializer_range", "init_std"),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses OPT 350M, which is post-norm with an embedding narrower than the model."""
    require(hf, word_embed_proj_dim=hf["hidden_size"])
    return {}


def write(config: TransformerConfig) -> dict[str, Any]:
    """The width of the embedding, which is the model's."""
    return {"word_embed_proj_dim": config.hidden_size}


def names(config: TransformerConfig) -> list[Name]:
    """Every kernel is a ``torch.nn.Linear`` weight, ``[out, in]``."""
    table = [
        Name("embeddings/token/embedding", "decoder.embed_tokens.weight"),
        Name("embeddings/position/embedding", "decoder.embed_positions.weight"),
        *norm("final_norm", "decoder.final_layer_norm"),
    ]
    block = "decoder.layers.{}."
    table += norm("layers/attention_norm", f"{block}self_attn_layer_norm")
    table += norm("layers/feed_forward_norm", f"{block}final_layer_norm")
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    table += linears("layers/attention/", f"{block}self_attn.", attention)
    return table + linears("layers/feed_forward/", block, {"up": "fc1", "down": "fc2"})


FORMAT = Format(
    "opt",
    KEYS,
    names,
    {
        "body": Head("OPTModel"),
        "causal_lm": Head("OPTForCausalLM", lm_head("lm_head")),
        "sequence_classification": Head("OPTForSequenceClassification", linear("classifier", "score", bias=False)),
        "question_answering": Head("OPTForQuestionAnswering", linear("span_classifier", "qa_outputs")),
    },
    prefix="model.",
    constants={
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
    read=read,
    write=write,
)
FAMILY = Family("opt", DEFAULTS, FORMAT)
