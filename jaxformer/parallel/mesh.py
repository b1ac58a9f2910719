"""The device mesh and the one table from logical axes to mesh axes."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from pydantic import Field, model_validator

from jaxformer.models.partition import Rules
from jaxformer.schema import Schema, UserError

AXES = ("data", "fsdp", "expert", "sequence", "tensor")

# Name of a dimension -> the mesh axes it is split over: the logical axes of parameters, then those of activations.
RULES: Rules = (
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("experts", "expert"),
    ("head", None),
    ("position", None),
    ("layers", None),
    ("table", None),
    ("classes", None),
    # Rows of a batch are split over all three: fsdp and expert are data parallelism whose parameters are split too.
    ("batch", ("data", "fsdp", "expert")),
    ("length", "sequence"),
)

# The key of the model's configuration that a dimension of its parameters is.
DIMENSION_KEYS = {
    "embed": "hidden_size",
    "vocab": "vocab_size",
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "mlp": "intermediate_size",
    "experts": "num_experts",
}


class ParallelConfig(Schema):
    """Distribution of the work over devices: the product of the axes is the number of devices."""

    strategy: Literal["jit", "pmap"] = Field(
        "jit",
        description="jit: one step over a mesh of any axes; pmap: the data axis alone, parameters on every device",
    )
    data: int = Field(-1, ge=-1, description="devices that split the batch; -1: those left")
    fsdp: int = Field(1, ge=1, description="devices that split the batch, the parameters and the optimizer's state")
    expert: int = Field(1, ge=1, description="devices that split the batch and the experts")
    sequence: int = Field(1, ge=1, description="devices that split the tokens of a row")
    tensor: int = Field(1, ge=1, description="devices that split heads, feed-forward and vocabulary")
    start_timeout: int = Field(
        600, ge=1, description="several processes: seconds that each waits for the others to start"
    )

    @model_validator(mode="after")
    def _pmap_is_data_parallel(self) -> "ParallelConfig":
        others = [f"{name} is {getattr(self, name)}" for name in AXES[1:] if getattr(self, name) > 1]
        if self.strategy == "pmap" and others:
            raise ValueError(
                f"strategy is pmap and {', '.join(others)}, expected 1: under pmap every device holds all parameters "
                "and whole rows; set strategy to jit"
            )
        return self


def number_of_slices(devices: Sequence[jax.Device]) -> int:
    """Into how many slices the devices are divided, between which there is only the data center's network."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def make_mesh(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a configuration over ``devices`` (default: all).

    Over several slices of a TPU pod the ``data`` axis has the slices outermost, and every other axis is within one.

    Raises:
        UserError: if the axes' product is not the number of devices, or the slices do not divide ``data``.
    """
    devices = jax.devices() if devices is None else list(devices)
    others = tuple(getattr(config, name) for name in AXES[1:])
    data = len(devices) // math.prod(others) if config.data == -1 else config.data
    sizes = (data, *others)
    if math.prod(sizes) != len(devices) or data < 1:
        named = " x ".join(f"{name} {size}" for name, size in zip(AXES, (config.data, *sizes[1:]), strict=True))
        raise UserError(
            f"parallel: {named} on {len(devices)} device(s), expected a product of {len(devices)}; "
            f"set parallel.data to -1 and the others to divisors of {len(devices)}"
        )
    types = (AxisType.Auto,) * len(AXES)
    if config.strategy == "pmap":
        # pmap numbers the devices as they come; below they may be ordered by how they are wired.
        return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=types)
    slices = number_of_slices(devices)
    # An axis of the mesh may be a part of an axis of the torus: 8 x 8 chips on one of 4 x 4 x 4.
    split = {"allow_split_physical_axes": True}
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(sizes, devices, **split), AXES, axis_types=types)
    if data % slices:
        raise UserError(
            f"parallel.data is {data} on {slices} slices, expected a multiple of {slices}: the network between slices "
            f"is for the data axis alone; the others may take the {len(devices) // slices} chips of a slice"
        )
    within, between = (data // slices, *others), (slices, *(1,) * len(others))
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, between, devices, **split), AXES, axis_types=types)


def batch_devices(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]


def nearest_multiples(size: int, unit: int) -> str:
    """The sizes around ``size`` that ``unit`` divides, in words.

    >>> nearest_multiples(257, 4), nearest_multiples(3, 4)
    ('256 or 260', '4')
    """
    below, above = size // unit * unit, -(-size // unit) * unit
    return f"{below} or {above}" if below else f"{above}"


def check_batch(batch_size: int, accumulate: int, mesh: Mesh, key: str = "training.batch_size") -> None:
    """Refuses a batch that does not divide evenly.

    Raises:
        UserError: naming the nearest sizes that work.
    """
    unit = batch_devices(mesh) * accumulate
    if batch_size % unit:
        raise UserError(
            f"{key} is {batch_size}, expected a multiple of {unit} ({batch_devices(mesh)} devices x "
            f"{accumulate} accumulated parts); set it to {nearest_multiples(batch_size, unit)}"
        )


def check_length(length: int, mesh: Mesh) -> None:
    """Refuses rows whose tokens do not divide evenly.

    Raises:
        UserError: naming the nearest lengths that work.
    """
    parts = mesh.shape["sequence"]
    if length % parts:
        raise UserError(
            f"parallel.sequence is {parts} and does not divide the sequence length {length}; set "
            f"training.sequence_length to {nearest_multiples(length, parts)}"
        )


def parameter_shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of each parameter by its logical axes.

    Args:
        boxed: abstract parameters as ``init`` returns them, with their logical axes.
        mesh: of the run.

    Raises:
        UserError: if an axis does not divide its dimension; names the dimension, its size and the nearest that work.
    """
    logical = nn.get_partition_spec(boxed)
    shardings = nn.logical_to_mesh_sharding(logical, mesh, RULES)

    def check(path: Any, leaf: Any, sharding: NamedSharding, names: PartitionSpec) -> None:
        for name, size, axis in zip(names, leaf.shape, sharding.spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                parts = mesh.shape[axis]
                # A vocabulary cannot be smaller than it is.
                where = "/".join(str(getattr(part, "key", getattr(part, "name", part))) for part in path)
                works = -(-size // parts) * parts if name == "vocab" else nearest_multiples(size, parts)
                raise UserError(
                    f"parallel.{axis} is {parts} and does not divide {size}, the dimension {name!r} of "
                    f"{where} {tuple(leaf.shape)}; choose a divisor of {size}"
                    + (f" or set model.{DIMENSION_KEYS[name]} to {works}" if name in DIMENSION_KEYS else "")
                )

    jax.tree_util.tree_map_with_path(check, nn.unbox(boxed), shardings, logical)
    return shardings


def batch_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The sharding of an array of a batch: rows over data and fsdp, tokens over sequence.

    Tokens are the last of two or more dimensions. Where their number does not divide (a short batch of examples, a list
    of masked places) they are not split; no number depends on it.
    """
    rows, tokens = nn.logical_to_mesh_axes(("batch", "length"), RULES)
    splits = len(shape) > 1 and shape[-1] % mesh.shape["sequence"] == 0
    inner = (*(None,) * (len(shape) - 2), tokens if splits else None) if len(shape) > 1 else ()
    return NamedSharding(mesh, PartitionSpec(rows, *inner))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
