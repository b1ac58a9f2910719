"""Mixtral (Jiang et al. 2024): Mistral with eight feed-forward networks in a block, two for each token."""

from dataclasses import replace

from jaxformer.families import llama, mistral
from jaxformer.families.format import Family, Key, Name, rows

# The shape is that of Mixtral 8x7B v0.1.
DEFAULTS = {
    **mistral.DEFAULTS,
    "num_experts": 8,
    "experts_per_token": 2,
    "normalize_expert_weights": True,
    "balance_loss": 0.02,
    "rope_theta": 1_000_000.0,
    "window": None,
}


KEYS = (Key("experts_per_token", "num_experts_per_tok"), Key("balance_loss", "router_aux_loss_coef"))


def block(router: str, gate: str, up: str, down: str) -> list[Name]:
    """The rows of a block by their names of the router and of an expert's layers.

    In the fused tensors of transformers 5 the names are those of Qwen3-MoE, whatever the family.
    """
    attention = {ours: theirs for ours, theirs in llama.BLOCK.items() if not ours.startswith("feed_forward/")}
    own = {"router": router} | {
        name: f"{router.rpartition('.')[0]}.experts.{{expert}}.{last}"
        for name, last in (("gate", gate), ("up", up), ("down", down))
    }
    fused = {"router": "gate", **{name: f"experts.{{expert}}.{name}_proj" for name in ("gate", "up", "down")}}
    experts = [
        name._replace(otherwise=f"layers.{{}}.mlp.{fused[name.ours.split('/')[2]]}.weight")
        for name in rows(own, "layers/experts/", "layers.{}.")
        if name.ours.endswith("/kernel")
    ]
    return [*rows(attention, "layers/", "layers.{}."), *experts]


EMBEDDINGS = rows({"embeddings/token": "embed_tokens", "final_norm": "norm"})
FORMAT = replace(
    mistral.FORMAT,
    model_type="mixtral",
    keys=(
        *mistral.FORMAT.keys,
        *KEYS,
        Key("num_experts", "num_local_experts"),
    ),
    body=[*EMBEDDINGS, *block("block_sparse_moe.gate", "w1", "w3", "w2")],
    heads=llama.heads("Mixtral", qa_prefix="model."),
    constants={"router_jitter_noise": 0.0},
)
FAMILY = Family("mixtral", DEFAULTS, FORMAT)
