"""The format of the ``peft`` library: which layer of theirs each kernel is, and the rows of its factors."""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from jaxformer.families.base import Format, Name
from jaxformer.hub.kinds import abstract_params, kind_of

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Shapes = Mapping[str, tuple[int, ...]]


class Module:
    """A linear layer of theirs: one kernel of ours, or several beside one another (GPT-2's query, key and value)."""

    def __init__(self, theirs: str, names: list[Name]) -> None:
        self.theirs = theirs.removesuffix(".weight")
        self.names = sorted(names, key=lambda name: name.part[0])

    def layers(self, shapes: Shapes) -> int:
        """First axis of its kernels: the number of layers, where they are stacked."""
        return shapes[self.names[0].ours][0]

    def places(self, layers: int) -> list[tuple[int | None, str]]:
        """Number and full name of this module in each layer; None for one that stands once."""
        if "{}" not in self.theirs:
            return [(None, self.theirs)]
        return [(layer, self.theirs.format(layer)) for layer in range(layers)]

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Along the first axis, theirs of all outputs to ours of each kernel."""
        parts, groups = self.names[0].part[1], self.names[0].groups
        shaped = rows.reshape(groups, parts, -1, *rows.shape[1:])
        return [shaped[:, part].reshape(-1, *rows.shape[1:]) for part in range(parts)]

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """The way back."""
        groups = self.names[0].groups
        shaped = [array.reshape(groups, -1, *array.shape[1:]) for array in arrays]
        return np.stack(shaped, axis=1).reshape(-1, *arrays[0].shape[1:])


def modules_of(format: Format, model: nn.Module, shapes: Shapes) -> list[Module]:
    """The linear layers of a model in the Hugging Face format."""
    grouped: dict[str, list[Name]] = {}
    for name in format.names(model.config, kind_of(model)):
        if name.ours in shapes and name.ours.endswith("/kernel"):
            grouped.setdefault(name.theirs, []).append(name)
    return [Module(theirs, names) for theirs, names in grouped.items()]


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters by path."""
    flat = flatten_dict(nn.unbox(abstract_params(model)), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def input_axes(path: str) -> int:
    """How many axes of one layer's kernel are inputs."""
    return 2 if path.endswith("attention/output/kernel") else 1
