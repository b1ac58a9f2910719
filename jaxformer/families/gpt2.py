"""GPT-2 (Radford et al. 2019): learned positions, pre-norm LayerNorm, GELU by tanh, biases, tied head."""

from jaxformer.families.format import Family, Format, Key, activation, decoder_heads, rows, same

DEFAULTS = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "max_length": 1024}


KEYS = (
    *same("vocab_size", "initializer_range"),
    Key("hidden_size", "n_embd"),
    Key("num_layers", "n_layer"),
    Key("num_heads", "n_head"),
    Key("intermediate_size", "n_inner", None),
    Key("max_length", "n_positions"),
    Key("norm_epsilon", "layer_norm_epsilon"),
    activation("activation_function"),
    Key("tie_embeddings", "tie_word_embeddings", True),
    Key("dropout", "resid_pdrop", 0.0),
    Key("dropout", "embd_pdrop", 0.0),
    Key("attention_dropout", "attn_pdrop", 0.0),
)


BLOCK = {
    "attention_norm": "ln_1",
    "attention/query+key+value": "attn.c_attn",
    "attention/output": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward/up": "mlp.c_fc",
    "feed_forward/down": "mlp.c_proj",
}
CROSS_ATTENTION = {
    "cross_attention_norm": "ln_cross_attn",
    "cross_attention/query": "crossattention.q_attn",
    "cross_attention/key+value": "crossattention.c_attn",
    "cross_attention/output": "crossattention.c_proj",
}
# GPT-2 stores its linear kernels as ``[in, out]`` (Conv1D), so nothing is transposed.
BODY = [
    *rows({"embeddings/token": "wte", "embeddings/position": "wpe", "final_norm": "ln_f"}),
    *rows(BLOCK, "layers/", "h.{}.", transposed=False),
]
HEADS = decoder_heads("GPT2")
HEADS["causal_lm"] = HEADS["causal_lm"]._replace(architecture="GPT2LMHeadModel")


FORMAT = Format(
    "gpt2",
    KEYS,
    BODY,
    HEADS,
    prefix="transformer.",
    constants={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    # The causal mask, a buffer in the oldest files.
    ignored=r"attn\.(masked_)?bias$",
    cross=rows(CROSS_ATTENTION, "layers/", "h.{}.", transposed=False),
)
FAMILY = Family("gpt2", DEFAULTS, FORMAT)
