"""Batches on the devices: which rows a process must read, and where they go."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxformer.parallel.mesh import batch_sharding


@functools.cache
def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Numbers of the rows of the global batch that devices of this process hold, ascending.

    Processes that share rows (a tensor axis across hosts) all read them.
    """
    slices = batch_sharding((batch_size,), mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices if index is not None]))


def _global_array(array: np.ndarray, sharding: NamedSharding, rows: np.ndarray, batch_size: int) -> jax.Array:
    def of_device(index: Any) -> np.ndarray:
        # The rows of one device are neighbours in the batch, so they are neighbours in what this process read.
        start, stop, _ = index[0].indices(batch_size)
        first = int(np.searchsorted(rows, start))
        return array[(slice(first, first + stop - start), *index[1:])]

    return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, of_device)


def put_batch(batch: Mapping[str, np.ndarray], batch_size: int, mesh: Mesh) -> dict[str, jax.Array]:
    """A batch on the devices, its rows and tokens split over them.

    Args:
        batch: the rows ``local_rows`` names, in that order.
        batch_size: rows of the global batch.
        mesh: of the run.
    """
    rows = local_rows(batch_size, mesh)
    return {
        name: _global_array(array, batch_sharding((batch_size, *array.shape[1:]), mesh), rows, batch_size)
        for name, array in batch.items()
    }
