"""Starting from an earlier run: its sizes and tokenizer, and the parameters that the new model has too."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.schema import UserError
from jaxformer.training.checkpoint import Checkpoints

CONFIG_FILE, TOKENIZER_FILE, CHECKPOINTS = "config.yaml", "tokenizer.json", "checkpoints"


def check_run(folder: Path) -> None:
    """Refuses a folder that no run was trained in.

    Raises:
        UserError: naming what is missing.
    """
    for name in (CONFIG_FILE, TOKENIZER_FILE, CHECKPOINTS):
        if not (folder / name).exists():
            raise UserError(f"model.pretrained is {folder}, which has no {name}; expected the output_dir of a run")


def read_params(folder: Path) -> dict[str, np.ndarray]:
    """The parameters of the newest whole checkpoint of a run, by name; its average of the weights if it kept one.

    Raises:
        UserError: if there is none.
    """
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    try:
        state = checkpoints.read()
    finally:
        checkpoints.close()
    params = state["ema"] if state.get("ema") is not None else state["params"]
    return {name: np.asarray(array) for name, array in flatten_dict(params, sep="/").items()}


@dataclass
class Transfer:
    """Which parameters of a model come from an earlier one.

    Attributes:
        taken: names that both have.
        new: names that only the new model has; they are initialised.
        grown: names whose table got more rows; the further ones are initialised.
        left: names that only the earlier model has.
    """

    taken: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def transfer(params: Any, earlier: dict[str, np.ndarray]) -> tuple[Any, Transfer]:
    """The parameters with those of an earlier model in their place, and which these are.

    A vocabulary that grew (an objective may add special tokens) keeps its first rows.

    Args:
        params: of the new model, initialised; arrays keep their shardings.
        earlier: arrays by name.

    Raises:
        UserError: if a parameter has another shape, or none is shared.
    """
    flat = flatten_dict(nn.unbox(params), sep="/")
    result, done = dict(flat), Transfer(left=sorted(earlier.keys() - flat.keys()))
    for name, array in flat.items():
        if name not in earlier:
            done.new.append(name)
            continue
        old = earlier[name]
        if old.shape != array.shape:
            old = _grown(name, old, np.asarray(array))
            done.grown.append(name)
        done.taken.append(name)
        result[name] = jax.device_put(old.astype(array.dtype), array.sharding)
    if not done.taken:
        raise UserError("no parameter of model.pretrained has a place in this model; expected the same model.type")
    return unflatten_dict(result, sep="/"), done


def _grown(name: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    axes = [axis for axis, sizes in enumerate(zip(old.shape, new.shape, strict=False)) if sizes[0] != sizes[1]]
    vocabulary = name.split("/")[-2:] in (["token", "embedding"], ["mlm_head", "bias"]) or name.startswith(
        ("shared/", "lm_head/", "generator_head/bias")
    )
    if old.ndim != new.ndim or len(axes) != 1 or old.shape[axes[0]] > new.shape[axes[0]] or not vocabulary:
        raise UserError(
            f"{name} of model.pretrained is {list(old.shape)}, expected {list(new.shape)}; "
            "leave out the model keys that change its size"
        )
    grown = new.copy()
    grown[tuple(slice(size) for size in old.shape)] = old
    return grown
