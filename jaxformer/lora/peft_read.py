"""Factors of low rank that the ``peft`` library wrote, as ours."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.families import get_family
from jaxformer.families.base import Format
from jaxformer.families.convert import ArrayWeights, read_params
from jaxformer.hub.kinds import abstract_params, kind_of
from jaxformer.hub.weights import SafetensorsWeights
from jaxformer.lora.factors import LoraConfig
from jaxformer.lora.peft_format import (
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    Module,
    Shapes,
    input_axes,
    modules_of,
    shapes_of,
)
from jaxformer.schema import UserError

# What PEFT can do to a model and this library cannot, with the value that means it does not.
REFUSED: dict[str, Any] = {
    "bias": "none",
    "layers_to_transform": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "lora_bias": False,
    "target_parameters": None,
    "alora_invocation_tokens": None,
}


def read_config(folder: str | Path) -> dict[str, Any]:
    """What an ``adapter_config.json`` says.

    Raises:
        UserError: if there is none, or it asks for something that is not here.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG_FILE}, expected the folder of an adapter of peft") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if found.get("peft_type") != "LORA":
        raise UserError(f"{path} has peft_type: {found.get('peft_type')!r}, expected 'LORA'")
    for key, value in REFUSED.items():
        if found.get(key, value) not in (value, None):
            raise UserError(f"{path} has {key}: {found[key]!r}, expected {value!r}; this variant is not read")
    return dict(found)


def read_adapter(folder: str | Path, model: nn.Module) -> tuple[LoraConfig, dict[str, Any], dict[str, Any]]:
    """Factors of PEFT as ours, the configuration they go with, and parameters that were trained as they are.

    A layer of theirs that is several kernels of ours gives each the same A and its own rows of B. Layers whose rank or
    alpha differs from the others' (``rank_pattern``, ``alpha_pattern``) are filled up with zeros to the largest rank,
    and their scale goes into B.

    Args:
        folder: of the adapter.
        model: the frozen one.

    Returns:
        The configuration, the factors for ``adapt`` and ``merge``, and a tree of further parameters, often empty.

    Raises:
        UserError: if the files are missing or broken, are of another model, or ask for what is not here.
    """
    described = read_config(folder)
    path = Path(folder) / WEIGHTS_FILE
    if not path.exists():
        raise UserError(f"{folder} has no {WEIGHTS_FILE}, expected it beside {CONFIG_FILE}")
    weights = SafetensorsWeights([path])
    tensors = {name.removeprefix(PREFIX): np.asarray(weights.read(name), np.float32) for name in weights.names()}
    format, shapes = get_family(model.config.type).hub, shapes_of(model)
    scaled = _Scales(described, tensors)
    config = scaled.config(described)
    flat: dict[str, np.ndarray] = {}
    used: set[str] = set()
    for module in modules_of(format, model, shapes):
        found = {
            layer: place for layer, place in module.places(module.layers(shapes)) if f"{place}.lora_A.weight" in tensors
        }
        if found:
            used |= {
                f"{place}.{end}"
                for place in found.values()
                for end in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
            }
            _read_module(module, found, tensors, scaled, shapes, flat)
    rest = {name: array for name, array in tensors.items() if name not in used}
    lora = sorted(name for name in rest if ".lora_" in name)
    if lora:
        raise UserError(
            f"{path} has {lora[0]}, which is no linear layer of this {model.config.type} model; "
            "check that the two belong together"
        )
    targets = sorted({p.removesuffix("/kernel") for p in (name.rsplit("/", 1)[0] for name in flat)})
    whole = _read_whole(format, model, rest)
    config = config.model_copy(update={"targets": targets, "also_train": sorted(flatten_dict(whole, sep="/"))})
    return config, unflatten_dict({name: jnp.asarray(array) for name, array in flat.items()}, sep="/"), whole


class _Scales:
    """Rank and scale of each layer of theirs, and what they become where all layers have one."""

    def __init__(self, described: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        self._described = described
        ranks = [len(array) for name, array in tensors.items() if name.endswith(".lora_A.weight")]
        if not ranks:
            raise UserError(f"{WEIGHTS_FILE} has no factors, expected names that end in lora_A.weight")
        self.rank = max(ranks)

    def config(self, described: Mapping[str, Any]) -> LoraConfig:
        """Ours."""
        uniform = not described.get("rank_pattern") and not described.get("alpha_pattern")
        return LoraConfig(
            rank=self.rank,
            alpha=float(described.get("lora_alpha", 8)) if uniform else float(self.rank),
            dropout=0.0 if described.get("use_dora") else float(described.get("lora_dropout") or 0.0),
            rslora=bool(described.get("use_rslora")) and uniform,
            dora=bool(described.get("use_dora")),
        )

    def factor(self, place: str, rank: int) -> float:
        """What B of a layer is multiplied by."""
        if not self._described.get("rank_pattern") and not self._described.get("alpha_pattern"):
            return 1.0
        patterns = self._described.get("alpha_pattern") or {}
        alpha = next(
            (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", place)),
            self._described.get("lora_alpha", 8),
        )
        return float(alpha) / (rank**0.5 if self._described.get("use_rslora") else rank)


def _read_module(
    module: Module,
    found: Mapping[int | None, str],
    tensors: Mapping[str, np.ndarray],
    scaled: _Scales,
    shapes: Shapes,
    flat: dict[str, np.ndarray],
) -> None:
    """Puts the factors of one module, in all layers it has, under our names."""
    stacked = None not in found
    for number, name in enumerate(module.names):
        shape = shapes[name.ours]
        layers = shape[:1] if stacked else ()
        inner = shape[len(layers) :]
        inputs = input_axes(name.ours)
        a = np.zeros((*layers, *inner[:inputs], scaled.rank), np.float32)
        b = np.zeros((*layers, scaled.rank, *inner[inputs:]), np.float32)
        lengths = np.zeros((*layers, *inner[inputs:]), np.float32)
        has_lengths = False
        for layer, place in found.items():
            theirs_a, theirs_b = tensors[f"{place}.lora_A.weight"], tensors[f"{place}.lora_B.weight"]
            rank, mine = len(theirs_a), module.split(theirs_b)[number]
            if theirs_a.shape[1] != int(np.prod(inner[:inputs])) or len(mine) != int(np.prod(inner[inputs:])):
                raise UserError(
                    f"{place} of the adapter is {theirs_a.shape[1]} to {len(theirs_b)}, expected a kernel "
                    f"{list(inner)}; check that adapter and model belong together"
                )
            index = (layer,) if stacked else ()
            a[(*index, ..., slice(rank))] = theirs_a.T.reshape(*inner[:inputs], rank)
            b[(*index, slice(rank))] = scaled.factor(place, rank) * mine.T.reshape(rank, *inner[inputs:])
            if f"{place}.lora_magnitude_vector" in tensors:
                vector = tensors[f"{place}.lora_magnitude_vector"].ravel()
                lengths[index] = module.split(vector)[number].reshape(inner[inputs:])
                has_lengths = True
        if has_lengths and len(found) < (layers[0] if stacked else 1):
            raise UserError(f"the adapter has dora in some layers of {module.theirs} only, expected all of them")
        flat[f"{name.ours}/a"], flat[f"{name.ours}/b"] = a, b
        if has_lengths:
            flat[f"{name.ours}/magnitude"] = lengths


def _read_whole(format: Format, model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What an adapter holds beside factors: whole parameters of the head."""
    if not tensors:
        return {}
    kind, shapes = kind_of(model), nn.unbox(abstract_params(model))
    wanted = {
        name.ours for name in format.names(model.config, kind) if name.theirs in tensors or name.otherwise in tensors
    }
    flat = {path: leaf for path, leaf in flatten_dict(shapes, sep="/").items() if path in wanted}
    if not flat:
        raise UserError(f"the adapter has {sorted(tensors)[0]}, which this {model.config.type} model has not")
    loaded = read_params(format, model.config, kind, ArrayWeights(dict(tensors)), unflatten_dict(flat, sep="/"))
    return unflatten_dict(loaded.params, sep="/")
