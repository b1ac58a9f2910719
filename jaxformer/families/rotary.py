"""Rotary positions in ``config.json``: the base of the wavelengths and their scaling."""

from collections.abc import Mapping
from typing import Any

from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

# Their names of our keys of ``rope_scaling``, where they differ.
THEIRS = {
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_max_length": "original_max_position_embeddings",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}
# The keys that belong to each type of scaling.
ROPE_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_frequency_factor", "high_frequency_factor", "original_max_length"),
    "yarn": (
        *("factor", "original_max_length", "attention_factor"),
        *("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"),
    ),
    "longrope": ("factor", "original_max_length", "attention_factor", "short_factors", "long_factors"),
    "dynamic": ("factor", "original_max_length"),
}


def read_rotary(hf: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` from a ``config.json`` of transformers 4, or 5 (in ``rope_parameters``)."""
    rope = hf.get("rope_parameters") or {}
    scaling = hf.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    theta = hf.get("rope_theta") or rope.get("rope_theta", 10_000.0)
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    kind = "longrope" if kind == "su" else kind  # as Phi-3 called it first
    if kind not in ROPE_KEYS:
        raise UserError(f"config.json has rope_type: {kind!r}, expected default, {', '.join(ROPE_KEYS)}")
    given = {ours: scaling.get(THEIRS.get(ours, ours)) for ours in ROPE_KEYS[kind]}
    if kind in ("yarn", "longrope", "dynamic"):
        longest = hf["max_position_embeddings"]
        original = given["original_max_length"] or hf.get("original_max_position_embeddings") or longest
        # The base of dynamic positions changes from the length on that the file allows, whatever else it says.
        given["original_max_length"] = longest if kind == "dynamic" else original
        given["factor"] = given["factor"] or longest / original
    given = {ours: value for ours, value in given.items() if value is not None}
    return {"rope_theta": theta, "rope_scaling": {"type": kind, **given}}


def write_rotary(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read_rotary``, in the form that both versions read."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_theta": config.rope_theta, "rope_scaling": None}
    given = {THEIRS.get(ours, ours): getattr(scaling, ours) for ours in ROPE_KEYS[scaling.type]}
    given = {
        key: list(value) if isinstance(value, tuple) else value for key, value in given.items() if value is not None
    }
    return {"rope_theta": config.rope_theta, "rope_scaling": {"rope_type": scaling.type, **given}}
