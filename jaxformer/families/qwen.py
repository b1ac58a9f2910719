"""Qwen2 (Yang et al. 2024), LLaMA with biases of queries, keys and values; Qwen3 (Yang et al. 2025), with norms."""

from dataclasses import replace

from jaxformer.families import llama
from jaxformer.families.format import Family

# The shape is that of Qwen2 0.5B.
QWEN2 = {
    **llama.DEFAULTS,
    "hidden_size": 896,
    "num_layers": 24,
    "num_heads": 14,
    "num_kv_heads": 2,
    "head_size": None,
    "intermediate_size": 4864,
    "max_length": 131072,
    "norm_epsilon": 1e-6,
    "qkv_bias": True,
    "rope_theta": 1_000_000.0,
}
# The shape is that of Qwen3 0.6B.
QWEN3 = {
    **llama.DEFAULTS,
    "hidden_size": 1024,
    "num_layers": 28,
    "num_heads": 16,
    "head_size": 128,
    "intermediate_size": 3072,
    "max_length": 40960,
    "norm_epsilon": 1e-6,
    "qk_norm": True,
    "rope_theta": 1_000_000.0,
}


# A window in the upper layers only has no switch here.
QWEN2_FORMAT = replace(
    llama.FORMAT,
    model_type="qwen2",
    # Its class has no head size of its own.
    keys=tuple(key for key in llama.KEYS if key.theirs != "head_dim"),
    heads=llama.heads("Qwen2"),
    constants={"use_sliding_window": False},
)
QWEN3_FORMAT = replace(
    llama.FORMAT,
    model_type="qwen3",
    heads=llama.heads("Qwen3"),
    constants={"use_sliding_window": False, "attention_bias": False},
)
FAMILIES = (Family("qwen2", QWEN2, QWEN2_FORMAT), Family("qwen3", QWEN3, QWEN3_FORMAT))
