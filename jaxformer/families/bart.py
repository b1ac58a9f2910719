"""BART (Lewis et al. 2020), and the Transformer of 2017 that it goes back to: post-norm encoder-decoders."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.base import Family, Name, activation, linear, norm
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

BART: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "hidden_size": 768,
    "num_layers": 6,
    "num_heads": 12,
    "intermediate_size": 3072,
    "max_length": 1024,
    "norm": "layer_norm",
    "norm_place": "post",
    "norm_epsilon": 1e-5,
    "embedding_norm": True,
    "activation": "gelu",
    "gated": False,
    "use_bias": True,
    "positions": "learned",
    "position_offset": 2,
    "tie_embeddings": True,
    "decoder_start": "sep",
    "pooler": "tanh",
    "dropout": 0.1,
}
# The base model of Vaswani et al. 2017, table 3: embedding times sqrt(D) plus sinusoids, ReLU, no norm before the
# blocks. The longest length is only what a run allows itself: sinusoids have none.
TRANSFORMER: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "hidden_size": 512,
    "num_layers": 6,
    "num_heads": 8,
    "intermediate_size": 2048,
    "max_length": 512,
    "norm": "layer_norm",
    "norm_place": "post",
    "norm_epsilon": 1e-6,
    "activation": "relu",
    "gated": False,
    "use_bias": True,
    "positions": "sinusoidal",
    "scale_embedding": True,
    "tie_embeddings": True,
    "pooler": "tanh",
    "initializer": "fan_in",
    "dropout": 0.1,
}


def from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``TransformerConfig`` from a BART ``config.json``.

    Raises:
        UserError: if it asks for something no switch here expresses.
    """
    # One set of sizes for both sides.
    for name in ("attention_heads", "ffn_dim"):
        _same(hf, f"encoder_{name}", f"decoder_{name}")
    return {
        "type": "bart",
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["d_model"],
        "num_layers": hf["encoder_layers"],
        "num_decoder_layers": hf["decoder_layers"],
        "num_heads": hf["encoder_attention_heads"],
        "intermediate_size": hf["encoder_ffn_dim"],
        "max_length": hf["max_position_embeddings"],
        "scale_embedding": hf.get("scale_embedding", False),
        "activation": activation(hf, "activation_function"),
        "tie_embeddings": hf.get("tie_word_embeddings", True),
        "dropout": hf["dropout"],
        "attention_dropout": hf["attention_dropout"],
        "initializer_range": hf["init_std"],
    }


def _same(hf: Mapping[str, Any], first: str, second: str) -> None:
    if hf[first] != hf[second]:
        raise UserError(f"config.json has {first}: {hf[first]} and {second}: {hf[second]}, expected the same number")


def names(config: TransformerConfig) -> list[Name]:
    """``BartForConditionalGeneration``."""
    table = [Name("shared/embedding", "model.shared.weight")]
    if not config.tie_embeddings:
        table.append(Name("lm_head/kernel", "lm_head.weight", transposed=True))
    attentions = {"encoder": {"attention": "self_attn"}, "decoder": {"attention": "self_attn"}}
    attentions["decoder"]["cross_attention"] = "encoder_attn"
    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    for side, kinds in attentions.items():
        block = f"model.{side}.layers.{{}}."
        table.append(Name(f"{side}/embeddings/position/embedding", f"model.{side}.embed_positions.weight"))
        table += norm(f"{side}/embeddings/norm", f"model.{side}.layernorm_embedding")
        for ours, theirs in kinds.items():
            table += norm(f"{side}/layers/{ours}_norm", f"{block}{theirs}_layer_norm")
            for part, name in projections.items():
                table += linear(f"{side}/layers/{ours}/{part}", f"{block}{theirs}.{name}")
        table += linear(f"{side}/layers/feed_forward/up", f"{block}fc1")
        table += linear(f"{side}/layers/feed_forward/down", f"{block}fc2")
        table += norm(f"{side}/layers/feed_forward_norm", f"{block}final_layer_norm")
    return table


FAMILIES = (
    Family("bart", BART, from_hf, names, "denoising"),
    Family("transformer", TRANSFORMER, objective="span_corruption"),
)
