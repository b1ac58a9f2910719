"""What a family is, and the conversion of parameters that its table of names drives, in both directions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError


class Name(NamedTuple):
    """One row of a family's table: a parameter here, its name there, and how its layout differs.

    Attributes:
        ours: path in the parameter tree, ``/`` between levels; under ``layers/`` it carries the layer axis.
        theirs: name in the Hugging Face state dict, ``{}`` where the layer's number goes.
        transposed: theirs is ``[out, in]`` (``torch.nn.Linear``) where ours is ``[in, out]``.
        part: index of this parameter among equal parts of theirs along its output axis, and the number of parts
            (GPT-2 keeps query, key and value in one matrix).
        groups: how many groups their output axis is made of, each with all its parts (GPT-NeoX and BLOOM keep query,
            key and value of a head together: a group for each head).
        not_first: theirs has no such parameter in layer 0, where ours is not used and keeps ones (ModernBERT).
    """

    ours: str
    theirs: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)
    groups: int = 1
    not_first: bool = False


def linear(
    ours: str,
    theirs: str,
    *,
    bias: bool = True,
    transposed: bool = True,
    part: tuple[int, int] = (0, 1),
    groups: int = 1,
) -> list[Name]:
    """The rows of a linear layer, by default a ``torch.nn.Linear``."""
    rows = [Name(f"{ours}/kernel", f"{theirs}.weight", transposed, part, groups)]
    return [*rows, Name(f"{ours}/bias", f"{theirs}.bias", False, part, groups)] if bias else rows


def norm(ours: str, theirs: str, *, bias: bool = True) -> list[Name]:
    """The rows of a norm; an RMS norm has no bias."""
    rows = [Name(f"{ours}/scale", f"{theirs}.weight")]
    return [*rows, Name(f"{ours}/bias", f"{theirs}.bias")] if bias else rows


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: the value of ``model.type``.
        defaults: the keys of ``TransformerConfig`` that make a model of this family.
        from_hf: Hugging Face ``config.json`` to keys of ``TransformerConfig``; None if the family is not there.
        names: the table of parameter names for a configuration, heads included; None if the family is not there.
        objective: the ``task.type`` it was made for, which is a run's default.
    """

    name: str
    defaults: Mapping[str, Any]
    from_hf: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    names: Callable[[TransformerConfig], list[Name]] | None = None
    objective: str = "causal_lm"


def require(hf: Mapping[str, Any], **values: Any) -> None:
    """Refuses a ``config.json`` with another value for a key that has no switch here; absent keys are fine.

    Raises:
        UserError: naming the key.
    """
    for key, value in values.items():
        if hf.get(key, value) != value:
            raise UserError(f"config.json has {key}: {hf[key]!r}, expected {value!r}; this variant is not supported")


# Their names of the activations; "gelu_fast" and "gelu_new" are two spellings of one formula.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation(hf: Mapping[str, Any], key: str) -> str:
    """Our name of the activation that ``config.json`` has under ``key``.

    Raises:
        UserError: if there is none.
    """
    if hf[key] not in ACTIVATIONS:
        raise UserError(f"config.json has {key}: {hf[key]!r}, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[hf[key]]


def rotary(hf: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` from a ``config.json`` of transformers 4, or 5 (in ``rope_parameters``).

    Raises:
        UserError: if the scaling is of a kind that has no switch here.
    """
    rope = hf.get("rope_parameters") or {}
    scaling = hf.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    theta = hf.get("rope_theta") or rope.get("rope_theta", 10_000.0)
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind not in ("linear", "llama3"):
        raise UserError(f"config.json has rope_type: {kind!r}, expected default, linear or llama3")
    names = {
        "factor": "factor",
        "low_frequency_factor": "low_freq_factor",
        "high_frequency_factor": "high_freq_factor",
        "original_max_length": "original_max_position_embeddings",
    }
    given = {ours: scaling[theirs] for ours, theirs in names.items() if theirs in scaling}
    return {"rope_theta": theta, "rope_scaling": {"type": kind, **given}}


def params_from_hf(
    family: Family, config: TransformerConfig, state_dict: Mapping[str, np.ndarray], shapes: Mapping[str, Any]
) -> dict[str, Any]:
    """Our parameter tree from a Hugging Face state dict, float32.

    Rows of the table that this model has no parameter for (another head's) are left out.

    Args:
        family: whose table is used.
        config: of the model.
        state_dict: arrays by their Hugging Face names.
        shapes: our parameter tree with anything that has a ``shape`` at the leaves (``jax.eval_shape`` of ``init``).

    Raises:
        UserError: if a parameter is missing or has another number of values.
    """
    expected = flatten_dict(dict(shapes), sep="/")
    ours: dict[str, np.ndarray] = {}
    assert family.names is not None, f"{family.name} has no table of names"
    for name in family.names(config):
        if name.ours not in expected:
            continue
        shape = expected[name.ours].shape
        array = _stacked(name, config, state_dict) if "{}" in name.theirs else _read(name, state_dict, None)
        if array.size != np.prod(shape):
            raise UserError(f"{name.theirs} has shape {array.shape}, expected {shape} of {name.ours}; check the config")
        ours[name.ours] = array.reshape(shape)
    missing = expected.keys() - ours.keys()
    assert not missing, f"the table of {family.name} lacks {sorted(missing)}"
    return unflatten_dict(ours, sep="/")


def _stacked(name: Name, config: TransformerConfig, state_dict: Mapping[str, np.ndarray]) -> np.ndarray:
    num_layers = config.decoder_layers if name.ours.startswith("decoder/") else config.num_layers
    layers = [_read(name, state_dict, layer) for layer in range(int(name.not_first), num_layers)]
    return np.stack([np.ones_like(layers[0]), *layers] if name.not_first else layers)


def _read(name: Name, state_dict: Mapping[str, np.ndarray], layer: int | None) -> np.ndarray:
    key = name.theirs.format(layer)
    if key not in state_dict:
        raise UserError(f"the checkpoint has no {key}, expected it for this config; check that the two belong together")
    array = np.asarray(state_dict[key], np.float32)
    array = array.T if name.transposed else array
    index, parts = name.part
    if array.shape[-1] % (name.groups * parts):
        expected = f"{name.groups} groups of {parts} parts" if name.groups > 1 else f"{parts} parts"
        raise UserError(f"{name.theirs} has {array.shape[-1]} outputs, expected {expected}; check the config")
    grouped = array.reshape(*array.shape[:-1], name.groups, parts, -1)
    return grouped[..., index, :].reshape(*array.shape[:-1], -1)
