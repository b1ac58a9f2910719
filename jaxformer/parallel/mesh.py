"""The device mesh and the one table from logical axes to mesh axes."""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from pydantic import Field

from jaxformer.schema import Schema, UserError

AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter -> mesh axis. What is not named is not split.
RULES: tuple[tuple[str, str | None], ...] = (
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("head", None),
    ("position", None),
    ("layers", None),
    ("table", None),
    ("classes", None),
)

# Rows of a batch are split over both: fsdp is data parallelism whose parameters are split too.
BATCH = PartitionSpec(("data", "fsdp"))


class ParallelConfig(Schema):
    """How the work is spread over devices: the product of the axes is the number of devices."""

    strategy: Literal["jit"] = Field("jit", description="one jitted step over a mesh")
    data: int = Field(-1, ge=-1, description="devices that split the batch; -1: those left")
    fsdp: int = Field(1, ge=1, description="devices that split the batch, the parameters and the optimizer's state")
    tensor: int = Field(1, ge=1, description="devices that split heads, feed-forward and vocabulary")


def make_mesh(config: ParallelConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of a configuration over ``devices`` (default: all).

    Raises:
        UserError: if the axes' product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.tensor
    data = len(devices) // rest if config.data == -1 else config.data
    sizes = (data, config.fsdp, config.tensor)
    if math.prod(sizes) != len(devices) or data < 1:
        named = " x ".join(f"{name} {size}" for name, size in zip(AXES, (config.data, *sizes[1:]), strict=True))
        raise UserError(
            f"parallel: {named} on {len(devices)} device(s), expected a product of {len(devices)}; "
            f"set parallel.data to -1 and the others to divisors of {len(devices)}"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_devices(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch_size: int, accumulate: int, mesh: Mesh, key: str = "training.batch_size") -> None:
    """Refuses a batch that does not divide evenly.

    Raises:
        UserError: naming the nearest sizes that work.
    """
    unit = batch_devices(mesh) * accumulate
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        sizes = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"{key} is {batch_size}, expected a multiple of {unit} ({batch_devices(mesh)} devices x "
            f"{accumulate} accumulated parts); set it to {sizes}"
        )


def parameter_shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of each parameter by its logical axes.

    Args:
        boxed: abstract parameters as ``init`` returns them, with their logical axes.
        mesh: of the run.

    Raises:
        UserError: if an axis does not divide its dimension; names the parameter, the axis and the size.
    """
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)

    def check(path: Any, leaf: Any, sharding: NamedSharding) -> None:
        for dimension, axis in zip(leaf.shape, sharding.spec, strict=False):
            if axis is not None and dimension % mesh.shape[axis]:
                name = "/".join(part.key for part in path)
                raise UserError(
                    f"parallel.{axis} is {mesh.shape[axis]} and does not divide {dimension}, a dimension of {name} "
                    f"{tuple(leaf.shape)}; choose a divisor of {dimension}"
                )

    jax.tree_util.tree_map_with_path(check, nn.unbox(boxed), shardings)
    return shardings


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())
