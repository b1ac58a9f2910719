"""The parameters of an earlier model taken into a new one: shared names are copied, all others are initialised."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.functional import purpose_key
from jaxformer.hub.kinds import abstract_params, init_params
from jaxformer.schema import UserError


class Transfer(NamedTuple):
    """Names of the parameters that come from an earlier model, and of those that do not.

    Both models have those ``taken``, only the new one those that are ``new``, only the earlier one those ``left``; the
    tables ``grown`` got more rows, which are initialised as the new parameters are.
    """

    taken: list[str]
    new: list[str]
    grown: list[str]
    left: list[str]


def start_params(
    model: nn.Module, seed: int, earlier: dict[str, np.ndarray], shardings: Any, kept: Callable[[str, jax.Array], Any]
) -> tuple[Any, Transfer]:
    """A model's parameters, those of an earlier one where both have them; only the others are initialised.

    ``earlier`` has arrays by name and is emptied, so that no parameter is in memory twice; ``kept`` says what becomes
    of each parameter, by name, once it is there. Raises ``UserError`` as ``transfer``.
    """
    flat, shapes = (flatten_dict(tree, sep="/") for tree in (shardings, nn.unbox(abstract_params(model))))
    fresh = [n for n, leaf in shapes.items() if n not in earlier or earlier[n].shape != leaf.shape]
    params: dict[str, Any] = {
        n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=flat[n]) for n, leaf in shapes.items()
    }
    params |= init_params(model, purpose_key(seed, "init"), fresh, {name: flat[name] for name in fresh})
    return transfer(unflatten_dict(params, sep="/"), earlier, kept)


def transfer(
    params: Any, earlier: dict[str, np.ndarray], kept: Callable[[str, jax.Array], Any] = lambda name, array: array
) -> tuple[Any, Transfer]:
    """The parameters with those of an earlier model in their place, and which these are.

    A vocabulary that grew (an objective may add special tokens) keeps its first rows. ``params`` are initialised, or
    shapes where the earlier model has the same; both with shardings. Raises ``UserError`` if a parameter has another
    shape, or none is shared.
    """
    flat = flatten_dict(nn.unbox(params), sep="/")
    taken = [name for name in flat if name in earlier]
    grown = [name for name in taken if earlier[name].shape != flat[name].shape]
    done = Transfer(taken, [name for name in flat if name not in earlier], grown, sorted(earlier.keys() - flat.keys()))
    result = dict(flat)
    # The largest first: the memory that it leaves has room for the others.
    for name, array in sorted(flat.items(), key=lambda item: -item[1].size):
        if name in earlier:
            old = earlier.pop(name)
            if name in grown:
                old = _grown(name, old, _whole(array))
            array = place_array(old.astype(array.dtype, copy=False), array.sharding)
        result[name] = kept(name, array)
    if not taken:
        raise UserError("no parameter of model.pretrained has a place in this model; expected the same model.type")
    return unflatten_dict(result, sep="/"), done


def place_array(values: np.ndarray, sharding: Any) -> jax.Array:
    """An array in JAX's own memory, each part on its device.

    On a CPU JAX would take over NumPy's memory, which cannot be given up to the result of the first step: all
    parameters would then be in memory twice.
    """
    indices = sharding.addressable_devices_indices_map(values.shape)
    parts = [jax.device_put(values[index], device) for device, index in indices.items()]
    parts = [part.copy() if part.device.platform == "cpu" else part for part in parts]
    return jax.block_until_ready(jax.make_array_from_single_device_arrays(values.shape, sharding, parts))


def _whole(array: jax.Array) -> np.ndarray:
    """All of an array, whose parts may be on devices of other processes."""
    if array.is_fully_addressable:
        return np.asarray(array)
    assert isinstance(array.sharding, NamedSharding), "a state's arrays lie on a mesh"
    everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(array))


def _grown(name: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    axes = [axis for axis, sizes in enumerate(zip(old.shape, new.shape, strict=False)) if sizes[0] != sizes[1]]
    vocabulary = name.split("/")[-2:] in (["token", "embedding"], ["mlm_head", "bias"]) or name.removeprefix(
        "decoder/"
    ).startswith(("shared/", "lm_head/", "generator_head/bias"))
    if old.ndim != new.ndim or len(axes) != 1 or old.shape[axes[0]] > new.shape[axes[0]] or not vocabulary:
        raise UserError(
            f"{name} of model.pretrained is {list(old.shape)}, expected {list(new.shape)}; "
            "leave out the model keys that change its size"
        )
    grown = new.copy()
    grown[tuple(slice(size) for size in old.shape)] = old
    return grown
