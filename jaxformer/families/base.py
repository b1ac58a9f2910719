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
    """

    ours: str
    theirs: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: the value of ``model.type``.
        defaults: the keys of ``TransformerConfig`` that make a model of this family.
        from_hf: Hugging Face ``config.json`` to keys of ``TransformerConfig``.
        names: the table of parameter names for a configuration.
    """

    name: str
    defaults: Mapping[str, Any]
    from_hf: Callable[[Mapping[str, Any]], dict[str, Any]]
    names: Callable[[TransformerConfig], list[Name]]


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
    for name in family.names(config):
        layers = range(config.num_layers) if "{}" in name.theirs else [0]
        parts = [_layout(name, _get(state_dict, name.theirs.format(layer))) for layer in layers]
        array = np.stack(parts) if "{}" in name.theirs else parts[0]
        shape = expected[name.ours].shape
        if array.size != np.prod(shape):
            raise UserError(f"{name.theirs} has shape {array.shape}, expected {shape} of {name.ours}; check the config")
        ours[name.ours] = array.reshape(shape)
    missing = expected.keys() - ours.keys()
    assert not missing, f"the table of {family.name} lacks {sorted(missing)}"
    return unflatten_dict(ours, sep="/")


def _get(state_dict: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    if key not in state_dict:
        raise UserError(f"the checkpoint has no {key}, expected it for this config; check that the two belong together")
    return np.asarray(state_dict[key], np.float32)


def _layout(name: Name, array: np.ndarray) -> np.ndarray:
    array = array.T if name.transposed else array
    index, parts = name.part
    return np.split(array, parts, axis=-1)[index]
