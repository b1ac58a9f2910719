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
        not_first: theirs has no such parameter in layer 0, where ours is not used and keeps ones (ModernBERT).
    """

    ours: str
    theirs: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)
    not_first: bool = False


def linear_names(ours: str, theirs: str, use_bias: bool = True, part: tuple[int, int] = (0, 1)) -> list[Name]:
    """The rows of a ``torch.nn.Linear``."""
    rows = [Name(f"{ours}/kernel", f"{theirs}.weight", transposed=True, part=part)]
    return [*rows, Name(f"{ours}/bias", f"{theirs}.bias", part=part)] if use_bias else rows


def norm_names(ours: str, theirs: str, use_bias: bool = True) -> list[Name]:
    """The rows of a layer norm."""
    rows = [Name(f"{ours}/scale", f"{theirs}.weight")]
    return [*rows, Name(f"{ours}/bias", f"{theirs}.bias")] if use_bias else rows


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation(hf: Mapping[str, Any], key: str) -> str:
    """Our name of the activation that ``config.json`` has under ``key``.

    Raises:
        UserError: if there is no such activation here.
    """
    if hf[key] not in ACTIVATIONS:
        raise UserError(f"{key} is {hf[key]!r}, expected one of {list(ACTIVATIONS)}")
    return ACTIVATIONS[hf[key]]


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
    index, parts = name.part
    return np.split(array.T if name.transposed else array, parts, axis=-1)[index]
