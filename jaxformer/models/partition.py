"""Split of activations over devices, by the names of their dimensions, on the mesh that a step is traced for.

The split of the parameters is declared with them (logical axes). That of what is computed from them mostly follows;
where it could follow in two ways, a module decides by calling ``place``. Outside of ``on_mesh`` that does nothing, so
that a model alone stays a pure function of arrays.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding

from jaxformer import functional as F

Rules = tuple[tuple[str, Any], ...]


class _Placement(NamedTuple):
    mesh: Mesh
    rules: Rules


_PLACEMENT: ContextVar[_Placement | None] = ContextVar("placement", default=None)


@contextmanager
def _placed(placement: _Placement) -> Iterator[None]:
    token = _PLACEMENT.set(placement)
    try:
        yield
    finally:
        _PLACEMENT.reset(token)


def on_mesh(function: Callable[..., Any], mesh: Mesh, rules: Rules) -> Callable[..., Any]:
    """Makes ``function`` be traced for this mesh: ``place`` and ``shards`` inside it follow the rules.

    Args:
        function: to be jitted by the caller.
        mesh: the devices, real or only described.
        rules: pairs of a dimension's name and the mesh axes it is split over (None: not split).
    """

    @wraps(function)
    def placed(*args: Any, **kwargs: Any) -> Any:
        with _placed(_Placement(mesh, rules)):
            return function(*args, **kwargs)

    return placed


def place(x: jax.Array, *axes: str | None) -> jax.Array:
    """``x`` with its dimensions split by the rules for their names (None: not split).

    A dimension whose size is not divisible is not split: rows of examples are as long as the longest of them.
    """
    placement = _PLACEMENT.get()
    if placement is None:
        return x
    divides = (axis if axis and size % shards(axis) == 0 else None for axis, size in zip(axes, x.shape, strict=True))
    return jax.lax.with_sharding_constraint(
        x, NamedSharding(placement.mesh, nn.logical_to_mesh_axes(tuple(divides), placement.rules))
    )


def shards(axis: str) -> int:
    """Number of parts into which a dimension of this name is split; 1 outside of ``on_mesh``."""
    placement = _PLACEMENT.get()
    if placement is None:
        return 1
    found = nn.logical_to_mesh_axes((axis,), placement.rules)[0]
    names = () if found is None else (found,) if isinstance(found, str) else found
    return math.prod(placement.mesh.shape[name] for name in names)


def attention_split(rows: int, queries: int, heads: int, kv_heads: int) -> F.Split | None:
    """Split of attention's arrays, for kernels that the compiler cannot split; None outside of ``on_mesh``.

    As in ``place``, what is not divisible is not split; key/value heads and their query heads are only split together.
    """
    placement = _PLACEMENT.get()
    if placement is None:
        return None
    fits = {
        "batch": rows % shards("batch") == 0,
        "length": queries % shards("length") == 0,
        "heads": heads % shards("heads") == 0 and kv_heads % shards("heads") == 0,
    }
    axes = nn.logical_to_mesh_axes(tuple(name if fit else None for name, fit in fits.items()), placement.rules)
    return F.Split(placement.mesh, *axes)


class ExpertSplit(NamedTuple):
    """Split of a mixture of experts over the axes of a mesh; None: not split.

    Attributes:
        mesh: the devices.
        batch: of the rows.
        length: of the tokens of a row.
        experts: of the experts.
        inner: of an expert's inner width.
    """

    mesh: Mesh
    batch: Any
    length: Any
    experts: Any
    inner: Any

    def parts(self, axis: Any) -> int:
        """Number of parts into which a mesh axis splits a dimension."""
        return 1 if axis is None else int(self.mesh.shape[axis])


def expert_split(rows: int, tokens: int, experts: int, inner: int) -> ExpertSplit | None:
    """Split of a mixture of experts, which the compiler would gather; None on one device.

    As in ``place``, what is not divisible is not split.
    """
    placement = _PLACEMENT.get()
    if placement is None or placement.mesh.size == 1:
        return None
    sizes = {"batch": rows, "length": tokens, "experts": experts, "mlp": inner}
    axes = [
        nn.logical_to_mesh_axes((name if size % shards(name) == 0 else None,), placement.rules)[0]
        for name, size in sizes.items()
    ]
    return ExpertSplit(placement.mesh, *axes)


def platform() -> str:
    """The platform that the program is compiled for: the mesh's, which may only be described, or JAX's default."""
    placement = _PLACEMENT.get()
    return jax.default_backend() if placement is None else placement.mesh.devices.flat[0].platform


def one_device() -> bool:
    """True if the program is compiled for a single device; under pmap each device runs such a program."""
    placement = _PLACEMENT.get()
    return placement is None or placement.mesh.size == 1
