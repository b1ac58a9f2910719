"""Sums over a batch in a fixed tree of parts, so that their bits do not depend on the number of devices.

The rows are cut into parts of equal size, the sum over a part is one sealed program, and the parts are added in pairs,
then the pairs in pairs. A device adds the subtree of its own parts and exchanges the rest of the tree with the others:
``a + b`` is ``b + a``, bit for bit. Sums of floating-point numbers depend on their order alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxformer.functional import call
from jaxformer.parallel.mesh import AXES
from jaxformer.schema import UserError

# Parts of a batch, where nothing asks for more: as many devices share a step.
MOST_PARTS = 8
AXIS = "data"


def number_of_parts(rows: int, accumulate: int = 1) -> int:
    """The largest power of two that divides the rows, at most 8 or the power of two from ``accumulate`` on.

    >>> number_of_parts(32), number_of_parts(12), number_of_parts(64, accumulate=16)
    (8, 4, 16)
    """
    most = max(MOST_PARTS, 1 << (accumulate - 1).bit_length())
    return min(rows & -rows, most)


def check_tree(rows: int, accumulate: int, mesh: Mesh, key: str = "training.batch_size") -> None:
    """Refuses what a fixed tree cannot be split over.

    Raises:
        UserError: parameters or tokens are split over devices, or the parts of a batch are too few.
    """
    others = [f"parallel.{name} is {mesh.shape[name]}" for name in AXES if name != AXIS and mesh.shape[name] > 1]
    if others:
        raise UserError(
            f"numerics is exact and {', '.join(others)}, expected 1: only the batch is split; set data alone"
        )
    parts, devices = number_of_parts(rows, accumulate), mesh.shape[AXIS]
    if parts % devices or parts < accumulate:
        unit = max(devices, accumulate)
        raise UserError(
            f"{key} is {rows}, which numerics: exact cuts into {parts} parts, expected a multiple of a power of two "
            f"from {unit} on for {devices} devices and {accumulate} accumulated parts; set it to a multiple of "
            f"{1 << (unit - 1).bit_length()}, on 1, 2, 4 or 8 devices"
        )


@dataclass(frozen=True)
class FixedTree:
    """The devices of a run, inside of ``on_every_device``.

    Attributes:
        devices: their number.
        accumulate: least number of parts.
    """

    devices: int = 1
    accumulate: int = 1

    def sum(self, function: Callable[..., Any], batch: dict[str, jax.Array], *shared: Any) -> Any:
        """The sum of ``function(part, *shared)``, a tree of float arrays, over the parts of the batch.

        ``batch`` is the whole one, on every device, and so is the result.
        """
        size = len(next(iter(batch.values())))
        parts = number_of_parts(size, self.accumulate)
        rows = size // parts

        def program(part: Any, *shared: Any) -> Any:
            # A zero has no sign, so that adding nothing changes no bit.
            return jax.tree.map(lambda x: jnp.where(x == 0, jnp.zeros_like(x), x), function(part, *shared))

        def leaf(index: jax.Array) -> Any:
            part = {name: jax.lax.dynamic_slice_in_dim(x, index * rows, rows) for name, x in batch.items()}
            return call(program, part, *shared)

        def subtree(depth: int, index: jax.Array) -> Any:
            if depth == 0:
                return leaf(index)

            def add(j: Any, total: Any) -> Any:
                return jax.tree.map(jnp.add, total, subtree(depth - 1, 2 * index + j))

            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(leaf, index))
            return jax.lax.fori_loop(0, 2, add, zeros)

        total = subtree((parts // self.devices).bit_length() - 1, jax.lax.axis_index(AXIS))
        shift = 1
        while shift < self.devices:
            others = [(i, i ^ shift) for i in range(self.devices)]
            total = jax.tree.map(lambda x, p=others: x + jax.lax.ppermute(x, AXIS, p), total)
            shift *= 2
        return total

    def by_rows(self, function: Callable[..., Any], batch: dict[str, jax.Array]) -> Any:
        """``function(batch)``, arrays by row, of which each device computes its share; the whole result on all."""
        rows = len(next(iter(batch.values()))) // self.devices
        first = jax.lax.axis_index(AXIS) * rows
        mine = {name: jax.lax.dynamic_slice_in_dim(x, first, rows) for name, x in batch.items()}
        return jax.tree.map(gathered, function(mine))


def gathered(x: jax.Array) -> jax.Array:
    """The rows of all devices."""
    return jax.lax.all_gather(x, AXIS, tiled=True)


def on_every_device(function: Callable[..., Any], mesh: Mesh, rows: tuple[bool, ...]) -> Callable[..., Any]:
    """``function`` on each device by itself, with all arguments whole.

    ``rows`` says which arguments are split over the devices by their first axis; these are gathered. The results, the
    same on all devices, are taken as whole ones.
    """

    def whole(*args: Any) -> Any:
        return function(*(jax.tree.map(gathered, a) if split else a for a, split in zip(args, rows, strict=True)))

    return jax.shard_map(
        whole, mesh=mesh, in_specs=tuple(P(AXIS) if split else P() for split in rows), out_specs=P(), check_vma=False
    )


def by_device(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """``function(params, *arrays)``, whose results are by row, on each device for its own rows."""

    def spread(params: Any, *arrays: Any) -> Any:
        split = P(AXIS) if len(jax.tree.leaves(arrays)[0]) % mesh.shape[AXIS] == 0 else P()
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=(P(), *[split] * len(arrays)), out_specs=split, check_vma=False
        )
        return mapped(params, *arrays)

    return spread
