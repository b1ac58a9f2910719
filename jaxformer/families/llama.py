"""LLaMA (Touvron et al. 2023): rotary positions, pre-norm RMSNorm, gated SiLU, grouped key/value heads, no biases."""

from jaxformer.families.format import (
    SIZES,
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
    read_rotary,
    write_rotary,
)
from jaxformer.models.config import TransformerConfig

# The shape is that of Llama 3.2 1B, so that the bare defaults are a model people know.
DEFAULTS = {
    "hidden_size": 2048,
    "num_layers": 16,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_size": 64,
    "intermediate_size": 8192,
    "max_length": 8192,
    "norm": "rms_norm",
    "norm_epsilon": 1e-5,
    "activation": "silu",
    "gated": True,
    "use_bias": False,
    "positions": "rotary",
    "rope_theta": 500_000.0,
    "tie_embeddings": True,
}


KEYS = (
    *SIZES,
    Key("num_kv_heads", "num_key_value_heads", None),
    Key("head_size", "head_dim", None),
    Key("norm_epsilon", "rms_norm_eps"),
    activation("hidden_act"),
    Key("tie_embeddings", "tie_word_embeddings", False),
    Key("attention_dropout", "attention_dropout", 0.0),
)


def names(config: TransformerConfig) -> list[Name]:
    """Every kernel is a ``torch.nn.Linear`` weight, ``[out, in]``."""
    table = [Name("embeddings/token/embedding", "embed_tokens.weight"), *norm("final_norm", "norm", bias=False)]
    block = "layers.{}."
    table += norm("layers/attention_norm", f"{block}input_layernorm", bias=False)
    table += norm("layers/feed_forward_norm", f"{block}post_attention_layernorm", bias=False)
    heads = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    table += linears("layers/attention/", f"{block}self_attn.", heads, bias=config.has_qkv_bias)
    table += linear("layers/attention/output", f"{block}self_attn.o_proj", bias=False)
    feed_forward = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    return table + linears("layers/feed_forward/", f"{block}mlp.", feed_forward, bias=False)


def heads(name: str, qa_prefix: str = "transformer.") -> dict[str, Head]:
    """The classes of LLaMA and its relatives, whose names begin with ``name``."""
    return {
        "body": Head(f"{name}Model"),
        "causal_lm": Head(f"{name}ForCausalLM", lm_head("lm_head")),
        "sequence_classification": Head(f"{name}ForSequenceClassification", linear("classifier", "score", bias=False)),
        "token_classification": Head(f"{name}ForTokenClassification", linear("classifier", "score")),
        "question_answering": Head(
            f"{name}ForQuestionAnswering", linear("span_classifier", "qa_outputs"), prefix=qa_prefix
        ),
    }


FORMAT = Format(
    "llama",
    KEYS,
    names,
    heads("Llama"),
    prefix="model.",
    constants={"attention_bias": False, "mlp_bias": False},
    read=read_rotary,
    write=write_rotary,
    ignored=r"rotary_emb\.inv_freq$",
)
FAMILY = Family("llama", DEFAULTS, FORMAT)
