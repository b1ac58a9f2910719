"""Mamba (Gu, Dao 2023) and Mamba-2 (Dao, Gu 2024): state-space models in the place of attention and feed-forward."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import Family, Format, Head, Key, Name, activation, require, rows, same
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

# The shapes are those of Mamba 130M and Mamba-2 130M; max_length is that of the rows they were trained on.
MAMBA = {
    "hidden_size": 768,
    "num_layers": 24,
    "num_heads": 1,
    "intermediate_size": 1536,
    "max_length": 2048,
    "mixer": "mamba",
    "norm": "rms_norm",
    "activation": "silu",
    "use_bias": False,
    "positions": "none",
    "tie_embeddings": True,
}
MAMBA2 = {**MAMBA, "mixer": "mamba2", "num_heads": 24, "state_size": 128}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The number of channels, which is a multiple of the width."""
    inner, limit = int(hf.get("expand", 2) * hf["hidden_size"]), list(hf.get("time_step_limit") or ())
    require({"intermediate_size": hf.get("intermediate_size", inner)}, intermediate_size=inner)
    if limit and (limit[0] != 0.0 or limit[1] not in (float("inf"), {"__float__": "Infinity"})):
        raise UserError(f"config.json has time_step_limit: {limit}, expected [0, Infinity]; others are not supported")
    return {"intermediate_size": inner}


def read2(hf: Mapping[str, Any]) -> dict[str, Any]:
    """As ``read``; the width of a head follows from the number of heads."""
    keys = read(hf)
    require({"head_dim": hf["head_dim"]}, head_dim=keys["intermediate_size"] // hf["num_heads"])
    return keys


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    if config.inner_size % config.hidden_size:
        raise UserError(
            f"model.intermediate_size is {config.inner_size}, expected a multiple of hidden_size "
            f"({config.hidden_size}): config.json has their quotient"
        )
    return {"expand": config.inner_size // config.hidden_size}


def write2(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read2``."""
    return {**write(config), "head_dim": config.channel_head}


KEYS = (
    *same("vocab_size", "hidden_size", "initializer_range", "state_size"),
    Key("num_layers", "num_hidden_layers"),
    Key("norm_epsilon", "layer_norm_epsilon"),
    Key("conv_size", "conv_kernel"),
    activation("hidden_act", "silu"),
    Key("tie_embeddings", "tie_word_embeddings", True),
)
CONSTANTS = {"use_bias": False, "use_conv_bias": True}


def body(norms: dict[str, str], layers: dict[str, str], vectors: dict[str, str]) -> list[Name]:
    """The rows of a model; vectors and matrices that are no layer have one name here and there."""
    outside = {"embeddings/token": "embeddings", "final_norm": "norm_f"}
    taps = Name("layers/mixer/conv/taps", "layers.{}.mixer.conv1d.weight", transposed=True, middle_one=True)
    return [
        *(
            name._replace(otherwise="embedding.weight") if name.theirs == "embeddings.weight" else name
            for name in rows(outside)
        ),
        *rows({"mixer_norm": "norm", **norms}, "layers/", "layers.{}."),
        taps,
        Name("layers/mixer/conv/bias", "layers.{}.mixer.conv1d.bias"),
        *rows({**layers, "output": "out_proj"}, "layers/mixer/", "layers.{}.mixer."),
        *(Name(f"layers/mixer/{ours}", f"layers.{{}}.mixer.{theirs}") for ours, theirs in vectors.items()),
    ]


def heads(name: str) -> dict[str, Head]:
    """The classes in transformers."""
    return {
        "body": Head(f"{name}Model"),
        "causal_lm": Head(f"{name}ForCausalLM", rows({"lm_head": "lm_head"})),
    }


FORMAT = Format(
    "mamba",
    (*KEYS, Key("time_step_rank", "time_step_rank", "auto", lambda rank: None if rank == "auto" else rank)),
    body(
        {},
        {"inner+gate": "in_proj", "select": "x_proj", "time_step": "dt_proj"},
        {"A_log": "A_log", "D": "D"},
    ),
    heads("Mamba"),
    prefix="backbone.",
    constants=CONSTANTS,
    read=read,
    write=write,
)
FORMAT2 = Format(
    "mamba2",
    (*KEYS, *same("num_heads"), Key("state_groups", "n_groups")),
    body({"mixer/norm": "mixer.norm"}, {"input": "in_proj"}, {"time_step/bias": "dt_bias", "a_log": "A_log", "D": "D"}),
    heads("Mamba2"),
    prefix="backbone.",
    constants=CONSTANTS,
    read=read2,
    write=write2,
)
FAMILIES = (Family("mamba", MAMBA, FORMAT), Family("mamba2", MAMBA2, FORMAT2))
