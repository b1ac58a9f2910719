"""OLMo (Groeneveld et al. 2024), LLaMA with norms without parameters; OLMo 2 (OLMo Team 2025), norms of outputs."""

from dataclasses import replace

from jaxformer.families import llama
from jaxformer.families.format import Family, Key, attention_bias, rows

# The shape is that of OLMo 1B.
OLMO = {
    **llama.DEFAULTS,
    "hidden_size": 2048,
    "num_layers": 16,
    "num_heads": 16,
    "num_kv_heads": 16,
    "head_size": 128,
    "intermediate_size": 8192,
    "max_length": 2048,
    "norm": "layer_norm",
    "norm_scale": False,
    "rope_theta": 10_000.0,
}
# The shape is that of OLMo 2 1B.
OLMO2 = {
    **OLMO,
    "max_length": 4096,
    "norm": "rms_norm",
    "norm_scale": True,
    "norm_epsilon": 1e-6,
    "norm_place": "output",
    "qk_norm": "width",
    "rope_theta": 500_000.0,
    "tie_embeddings": False,
}
WITHOUT = ("head_size", "norm_epsilon")
# transformers has these kinds alone.
KINDS = ("body", "causal_lm", "sequence_classification")
WITHOUT_NORMS = {ours: theirs for ours, theirs in llama.BLOCK.items() if "norm" not in ours}
FORMAT = replace(
    llama.FORMAT,
    model_type="olmo",
    body=[*rows({"embeddings/token": "embed_tokens"}), *rows(WITHOUT_NORMS, "layers/", "layers.{}.")],
    keys=(
        *(key for key in llama.KEYS if key.ours not in WITHOUT),
        *attention_bias(False),
        Key("qkv_clip", "clip_qkv", None),
    ),
    heads={kind: llama.heads("Olmo")[kind] for kind in KINDS},
)
BLOCK = {
    **llama.BLOCK,
    "attention_norm": "post_attention_layernorm",
    "feed_forward_norm": "post_feedforward_layernorm",
}
OLMO2_FORMAT = replace(
    llama.FORMAT,
    model_type="olmo2",
    keys=(*(key for key in llama.KEYS if key.ours != "head_size"), *attention_bias(False)),
    body=[*llama.TABLE, *rows(BLOCK, "layers/", "layers.{}.")],
    heads={kind: llama.heads("Olmo2")[kind] for kind in KINDS},
)
FAMILIES = (Family("olmo", OLMO, FORMAT), Family("olmo2", OLMO2, OLMO2_FORMAT))
