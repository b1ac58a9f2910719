"""LLaMA (Touvron et al. 2023): rotary positions, pre-norm RMSNorm, gated SiLU, grouped key/value heads, no biases."""

from jaxformer.families.format import (
    MLP_BIAS,
    SIZES,
    Family,
    Format,
    Head,
    Key,
    activation,
    attention_bias,
    decoder_heads,
    rows,
)
from jaxformer.families.rotary import read_rotary, write_rotary

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
BIASES = (*attention_bias(False), MLP_BIAS)


BLOCK = {
    "attention_norm": "input_layernorm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
    "attention/output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward/gate": "mlp.gate_proj",
    "feed_forward/up": "mlp.up_proj",
    "feed_forward/down": "mlp.down_proj",
}


def heads(name: str, qa_prefix: str = "transformer.") -> dict[str, Head]:
    """The classes of LLaMA and its relatives, whose names begin with ``name``."""
    return decoder_heads(name, tokens="score", qa_prefix=qa_prefix)


TABLE = rows({"embeddings/token": "embed_tokens", "final_norm": "norm"})
FORMAT = Format(
    "llama",
    (*KEYS, *BIASES),
    [*TABLE, *rows(BLOCK, "layers/", "layers.{}.")],
    heads("Llama"),
    prefix="model.",
    read=read_rotary,
    write=write_rotary,
    ignored=r"rotary_emb\.inv_freq$",
)
FAMILY = Family("llama", DEFAULTS, FORMAT)
