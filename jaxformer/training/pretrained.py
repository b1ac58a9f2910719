"""Starting from an earlier model: its sizes and tokenizer, and the parameters that the new model has too.

The earlier model is a run's folder, or one in the Hugging Face format: a folder or a name on the Hub.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.families import get_family
from jaxformer.families.checkpoint import read_params as read_hub_params
from jaxformer.functional import purpose_key
from jaxformer.hub.kinds import abstract_params, build, kind_of
from jaxformer.hub.pretrained import read_config, untie_by
from jaxformer.hub.repository import Repository
from jaxformer.hub.weights import open_weights
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError
from jaxformer.training.checkpoint import Checkpoints

CONFIG_FILE, TOKENIZER_FILE, CHECKPOINTS = "config.yaml", "tokenizer.json", "checkpoints"


def is_run(source: str) -> bool:
    """Whether ``model.pretrained`` names a run's folder, rather than a model in the Hugging Face format.

    A folder with nothing of either is taken for a run that has not got far, and ``check_run`` says what it lacks.
    """
    folder = Path(source).expanduser()
    return folder.is_dir() and not (folder / "config.json").exists()


def hub_model_keys(source: str) -> dict[str, Any]:
    """The model's keys from a ``config.json``; no weights are downloaded.

    Raises:
        UserError: if there is none, or it makes no sense.
    """
    config = read_config(Repository(source)).config
    # How the model is run is the new run's affair.
    return config.model_dump(exclude={"pretrained", "dtype", "remat", "unroll", "attention_implementation"})


def read_hub(source: str, model: nn.Module, labels: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The parameters of a model in the Hugging Face format by our names, and its names that no parameter took.

    The head comes along where the checkpoint has one of the same kind, with the same classes in the same order.

    Raises:
        UserError: if the weights are missing or broken.
    """
    repository = Repository(source)
    described = read_config(repository)
    hub = get_family(described.config.type).hub
    kind = kind_of(model)
    kind = kind if kind in hub.heads else "body"
    weights = open_weights(repository)
    config: TransformerConfig = untie_by(described, weights)
    theirs = build(config, kind, num_labels=getattr(model, "num_labels", 2))
    loaded = read_hub_params(hub, config, kind, weights, nn.unbox(abstract_params(theirs)), may_differ=True)
    params = {name: np.asarray(array) for name, array in loaded.params.items()}
    named = described.labels and not all(name.startswith("LABEL_") for name in described.labels)
    if labels and named and described.labels != labels:
        params = {name: array for name, array in params.items() if not name.startswith("classifier/")}
    return params, loaded.left


def earlier_params(
    source: str, model: nn.Module, labels: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The parameters of what ``model.pretrained`` names, by our names, and names of others that have no place here.

    Args:
        source: a run's folder, a folder in the Hugging Face format or a name on the Hub.
        model: the new one.
        labels: names of its classes.

    Raises:
        UserError: if there are none.
    """
    if is_run(source):
        return read_params(Path(source).expanduser()), []
    return read_hub(source, model, labels)


def check_run(folder: Path, what: str = "model.pretrained") -> None:
    """Refuses a folder that no run was trained in.

    Args:
        folder: named by the user.
        what: it was named as.

    Raises:
        UserError: naming what is missing.
    """
    for name in (CONFIG_FILE, TOKENIZER_FILE, CHECKPOINTS):
        if not (folder / name).exists():
            raise UserError(f"{what} is {folder}, which has no {name}; expected the output_dir of a run")


def read_params(folder: Path) -> dict[str, np.ndarray]:
    """The parameters of the newest whole checkpoint of a run, by name; its average of the weights if it kept one.

    Of a run that trained factors of low rank the whole model, with the factors added in.

    Raises:
        UserError: if there is none.
    """
    params = read_trained(folder)
    if "factors" in params:
        from jaxformer.training.adapter import merged_run

        return merged_run(folder, params)
    return {name: np.asarray(array) for name, array in flatten_dict(params, sep="/").items()}


def read_trained(folder: Path) -> dict[str, Any]:
    """What the newest whole checkpoint of a run holds of parameters, as a tree: all of them, or factors.

    Raises:
        UserError: if there is none.
    """
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    try:
        state = checkpoints.read()
    finally:
        checkpoints.close()
    params: dict[str, Any] = state["ema"] if state.get("ema") is not None else state["params"]
    return params


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


def _as_it_is(name: str, array: jax.Array) -> Any:
    return array


def start_params(
    model: nn.Module,
    seed: int,
    earlier: dict[str, np.ndarray],
    shardings: Any,
    kept: Callable[[str, jax.Array], Any] = _as_it_is,
) -> tuple[Any, Transfer]:
    """A model's parameters, those of an earlier one where both have them; only the others are initialised.

    Args:
        model: the new one.
        seed: of the run.
        earlier: arrays by name; emptied, so that no parameter is in memory twice.
        shardings: of the new model's parameters.
        kept: what becomes of each parameter, by name, once it is there.

    Raises:
        UserError: as ``transfer``.
    """
    from jaxformer.training.state import init_inputs

    inputs = init_inputs(model)

    def init(key: jax.Array) -> dict[str, Any]:
        return flatten_dict(nn.unbox(model.init(key, inputs)["params"]), sep="/")

    key, flat = purpose_key(seed, "init"), flatten_dict(shardings, sep="/")
    shapes = jax.eval_shape(init, key)
    fresh = [n for n, leaf in shapes.items() if n not in earlier or earlier[n].shape != leaf.shape]

    def some(key: jax.Array) -> dict[str, Any]:
        params = init(key)
        return {name: params[name] for name in fresh}

    params = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=flat[n]) for n, leaf in shapes.items()}
    params |= jax.jit(some, out_shardings={name: flat[name] for name in fresh})(key)
    return transfer(unflatten_dict(params, sep="/"), earlier, kept)


def transfer(
    params: Any, earlier: dict[str, np.ndarray], kept: Callable[[str, jax.Array], Any] = _as_it_is
) -> tuple[Any, Transfer]:
    """The parameters with those of an earlier model in their place, and which these are.

    A vocabulary that grew (an objective may add special tokens) keeps its first rows.

    Args:
        params: of the new model, initialised, or shapes where the earlier one has the same; both with shardings.
        earlier: arrays by name; those taken are taken out, so that they need not stay in memory.
        kept: what becomes of each parameter, by name, once it is there.

    Raises:
        UserError: if a parameter has another shape, or none is shared.
    """
    flat = flatten_dict(nn.unbox(params), sep="/")
    result, done = dict(flat), Transfer(left=sorted(earlier.keys() - flat.keys()))
    done.taken = [name for name in flat if name in earlier]
    done.new = [name for name in flat if name not in earlier]
    done.grown = [name for name in done.taken if earlier[name].shape != flat[name].shape]
    # The largest first: the memory that it leaves has room for the others.
    for name, array in sorted(flat.items(), key=lambda item: -item[1].size):
        if name in earlier:
            old = earlier.pop(name)
            if name in done.grown:
                old = _grown(name, old, _whole(array))
            array = place_array(old.astype(array.dtype, copy=False), array.sharding)
        result[name] = kept(name, array)
    if not done.taken:
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
