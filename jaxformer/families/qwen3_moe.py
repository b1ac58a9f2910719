"""Qwen3-MoE (Yang et al. 2025): Qwen3 with 128 small feed-forward networks in a block, eight for each token."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxformer.families import llama, mixtral, qwen
from jaxformer.families.format import Family, Key, attention_bias
from jaxformer.families.rotary import read_rotary, write_rotary
from jaxformer.models.config import TransformerConfig

# The shape is that of Qwen3 30B-A3B.
DEFAULTS = {
    **qwen.QWEN3,
    "hidden_size": 2048,
    "num_layers": 48,
    "num_heads": 32,
    "num_kv_heads": 4,
    "intermediate_size": 768,
    "num_experts": 128,
    "experts_per_token": 8,
    "normalize_expert_weights": True,
    "balance_loss": 0.001,
    "tie_embeddings": False,
}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions, the window, and the number of experts, which version 5 calls as Mixtral does."""
    window = hf.get("sliding_window") if hf.get("use_sliding_window") else None
    count = hf.get("num_experts") or hf["num_local_experts"]
    return {**read_rotary(hf), "window": window, "num_experts": count}


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``. ``intermediate_size`` is that of dense blocks, of which there are none."""
    return {
        **write_rotary(config),
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "num_experts": config.num_experts,
        "intermediate_size": config.inner_size,
    }


FORMAT = replace(
    llama.FORMAT,
    model_type="qwen3_moe",
    keys=(
        *(key for key in llama.KEYS if key.ours != "intermediate_size"),
        *attention_bias(False),
        *mixtral.KEYS,
        Key("intermediate_size", "moe_intermediate_size"),
        Key("normalize_expert_weights", "norm_topk_prob", False),
    ),
    body=[*mixtral.EMBEDDINGS, *mixtral.block("mlp.gate", "gate_proj", "up_proj", "down_proj")],
    heads=llama.heads("Qwen3Moe"),
    # Every block has experts.
    constants={"decoder_sparse_step": 1, "mlp_only_layers": []},
    read=read,
    write=write,
)
FAMILY = Family("qwen3_moe", DEFAULTS, FORMAT)
