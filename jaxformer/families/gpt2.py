"""GPT-2 (Radford et al. 2019): learned positions, pre-norm LayerNorm, GELU by tanh, biases, tied head."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.base import Family, Name, activation, linear, norm, require
from jaxformer.models.config import TransformerConfig

DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "max_length": 1024,
    "norm": "layer_norm",
    "norm_epsilon": 1e-5,
    "activation": "gelu_tanh",
    "gated": False,
    "use_bias": True,
    "positions": "learned",
    "tie_embeddings": True,
}


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a GPT-2 ``config.json``.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    require(hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return {
        "type": "gpt2",
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["n_embd"],
        "num_layers": hf["n_layer"],
        "num_heads": hf["n_head"],
        "intermediate_size": hf.get("n_inner"),
        "max_length": hf["n_positions"],
        "norm_epsilon": hf["layer_norm_epsilon"],
        "activation": activation(hf, "activation_function"),
        "tie_embeddings": hf.get("tie_word_embeddings", True),
        "initializer_range": hf["initializer_range"],
    }


def names(config: TransformerConfig) -> list[Name]:
    """GPT-2 stores its linear kernels as ``[in, out]`` (Conv1D), so nothing is transposed but an untied head."""
    table = [
        Name("embeddings/token/embedding", "transformer.wte.weight"),
        Name("embeddings/position/embedding", "transformer.wpe.weight"),
        *norm("final_norm", "transformer.ln_f"),
    ]
    if not config.tie_embeddings:
        table += linear("lm_head", "lm_head", bias=False)
    block = "transformer.h.{}."
    table += norm("layers/attention_norm", f"{block}ln_1") + norm("layers/feed_forward_norm", f"{block}ln_2")
    for index, ours in enumerate(("query", "key", "value")):
        table += linear(f"layers/attention/{ours}", f"{block}attn.c_attn", transposed=False, part=(index, 3))
    linears = {"attention/output": "attn.c_proj", "feed_forward/up": "mlp.c_fc", "feed_forward/down": "mlp.c_proj"}
    for ours, theirs in linears.items():
        table += linear(f"layers/{ours}", f"{block}{theirs}", transposed=False)
    return table


FAMILY = Family("gpt2", DEFAULTS, from_hf, names)
