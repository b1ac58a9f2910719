"""GPT-NeoX (Black et al. 2022) and Pythia: attention beside the feed-forward, rotary on a quarter of each head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import (
    SIZES,
    Family,
    Format,
    Head,
    Key,
    Name,
    activation,
    fused,
    linear,
    linears,
    lm_head,
    norm,
    read_rotary,
    write_rotary,
)
from jaxformer.models.config import TransformerConfig

# The shape is that of Pythia 160M.
DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "max_length": 2048,
    "parallel_residual": True,
    "activation": "gelu",
    "positions": "rotary",
    "rotary_fraction": 0.25,
    "rope_theta": 10_000.0,
    "tie_embeddings": False,
}


KEYS = (
    *SIZES,
    Key("norm_epsilon", "layer_norm_eps"),
    Key("parallel_residual", "use_parallel_residual", True),
    activation("hidden_act"),
    Key("tie_embeddings", "tie_word_embeddings", False),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions, whose keys differ between versions 4 and 5 of transformers."""
    rope = hf.get("rope_parameters") or {}
    share = hf.get("rotary_pct", rope.get("partial_rotary_factor", 0.25))
    return {"rotary_fraction": share, **read_rotary({"rope_theta": hf.get("rotary_emb_base"), **hf})}


def write(config: TransformerConfig) -> dict[str, Any]:
    """The way back."""
    rotary = write_rotary(config)
    return {"rotary_pct": config.rotary_fraction, "rotary_emb_base": rotary["rope_theta"], **rotary}


def names(config: TransformerConfig) -> list[Name]:
    """Query, key and value of a head are together in one matrix, ``[N, 3, H]``."""
    table = [Name("embeddings/token/embedding", "embed_in.weight"), *norm("final_norm", "final_layer_norm")]
    block = "layers.{}."
    table += norm("layers/attention_norm", f"{block}input_layernorm")
    table += norm("layers/feed_forward_norm", f"{block}post_attention_layernorm")
    table += fused("layers/attention/", f"{block}attention.query_key_value", groups=config.num_heads)
    table += linear("layers/attention/output", f"{block}attention.dense")
    feed_forward = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}
    return table + linears("layers/feed_forward/", f"{block}mlp.", feed_forward)


FORMAT = Format(
    "gpt_neox",
    KEYS,
    names,
    {
        "body": Head("GPTNeoXModel"),
        "causal_lm": Head("GPTNeoXForCausalLM", lm_head("embed_out")),
        "sequence_classification": Head("GPTNeoXForSequenceClassification", linear("classifier", "score", bias=False)),
        "token_classification": Head("GPTNeoXForTokenClassification", linear("classifier", "classifier")),
        "question_answering": Head("GPTNeoXForQuestionAnswering", linear("span_classifier", "qa_outputs")),
    },
    prefix="gpt_neox.",
    constants={"attention_bias": True},
    read=read,
    write=write,
    ignored=r"attention\.(masked_)?bias$|rotary_emb\.inv_freq$",
)
FAMILY = Family("gpt_neox", DEFAULTS, FORMAT)
