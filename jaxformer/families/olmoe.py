"""OLMoE (Muennighoff et al. 2024): LLaMA with norms of queries and keys, and 64 feed-forward networks in a block."""

from dataclasses import replace

from jaxformer.families import llama, mixtral
from jaxformer.families.format import Family, Key, attention_bias

# The shape is that of OLMoE 1B-7B 0924.
DEFAULTS = {
    **llama.DEFAULTS,
    "num_heads": 16,
    "num_kv_heads": None,
    "head_size": None,
    "intermediate_size": 1024,
    "max_length": 4096,
    "qk_norm": "width",
    "rope_theta": 10_000.0,
    "num_experts": 64,
    "experts_per_token": 8,
    "balance_loss": 0.01,
    "tie_embeddings": False,
}


FORMAT = replace(
    llama.FORMAT,
    model_type="olmoe",
    keys=(
        # Its class has no head size of its own.
        *(key for key in llama.KEYS if key.theirs != "head_dim"),
        *attention_bias(False),
        *mixtral.KEYS,
        Key("num_experts", "num_experts"),
        Key("normalize_expert_weights", "norm_topk_prob", False),
        Key("qkv_clip", "clip_qkv", None),
    ),
    body=[*mixtral.EMBEDDINGS, *mixtral.block("mlp.gate", "gate_proj", "up_proj", "down_proj")],
    heads={kind: llama.heads("Olmoe")[kind] for kind in ("body", "causal_lm")},
    constants={},
)
FAMILY = Family("olmoe", DEFAULTS, FORMAT)
