"""The training step on several devices: jitted over a mesh, or copied to each device by pmap."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer.models.partition import on_mesh
from jaxformer.parallel.batch import put_batch
from jaxformer.parallel.fixed_tree import on_every_device
from jaxformer.parallel.mesh import RULES, batch_sharding, replicated

# pmap's name of the devices; a step under pmap sums over it.
AXIS_NAME = "data"

# (state, batch, frozen) -> (state, metrics)
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def _with_request(step: Step, largest: Callable[[Any], Any]) -> Callable[[Any, Any, Any, Any], tuple[Any, Any, Any]]:
    """The step, which also returns the largest request of all processes: all receive it in the same step."""
    return lambda state, batch, frozen, requests: (*step(state, batch, frozen), largest(requests))


class DeviceStep:
    """A train step compiled for the devices of a run. The state it returns is laid out like the one it takes.

    Under ``pmap`` every device runs the step on its own rows, with all parameters, and ``step`` itself sums over
    ``AXIS_NAME``; under ``jit`` the step is one program over all devices, which the compiler splits.
    """

    def __init__(
        self, step: Step, abstract: Any, mesh: Mesh, strategy: str, batch_size: int, *, exact: bool = False
    ) -> None:
        """Prepares the program; it is compiled for each shape of batch when that first comes.

        Args:
            step: pure, ``(state, batch, frozen) -> (state, metrics)``; the state's memory is reused for the result.
            abstract: the state's shapes with their shardings.
            mesh: the devices.
            strategy: ``jit`` or ``pmap``.
            batch_size: rows of the global batch.
            exact: each device runs the step by itself, with the whole batch, and the step says what it shares.
        """
        self.mesh, self.strategy, self.batch_size = mesh, strategy, batch_size
        self.facts: dict[str, float] = {}  # what a step says beside its metrics: nothing here
        self.processes = len({device.process_index for device in mesh.devices.flat})
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        if strategy == "pmap":
            mapped = step
            if self.processes > 1:
                mapped = _with_request(step, lambda request: jax.lax.pmax(request, AXIS_NAME))  # type: ignore[assignment]
            axes = (None, 0, None, 0) if self.processes > 1 else (None, 0, None)
            self.program: Any = jax.pmap(
                mapped,
                axis_name=AXIS_NAME,
                in_axes=axes,
                out_axes=None,
                donate_argnums=0,
                devices=list(mesh.devices.flat),
            )
        else:
            if exact:
                step = on_every_device(step, mesh, (False, True, False))
            traced = _with_request(step, jnp.max) if self.processes > 1 else step
            traced = traced if exact else on_mesh(traced, mesh, RULES)
            one = replicated(mesh)
            out = (shardings, one, one) if self.processes > 1 else (shardings, one)
            self.program = jax.jit(traced, donate_argnums=0, out_shardings=out)

    def put(self, batch: Mapping[str, np.ndarray]) -> Any:
        """This process's rows of a batch, as the program takes them."""
        if self.strategy == "jit":
            return put_batch(batch, self.batch_size, self.mesh)
        devices = len(self.mesh.local_devices)
        return {name: array.reshape(devices, -1, *array.shape[1:]) for name, array in batch.items()}

    def lower(self, state: Any, shapes: Mapping[str, jax.ShapeDtypeStruct], frozen: Any = None) -> Any:
        """The program for a state and a global batch of which only shapes are known, ready to be compiled.

        Args:
            state: shapes with shardings.
            shapes: of the global batch's arrays, by name.
            frozen: shapes with shardings of what is not trained.
        """
        if self.strategy == "pmap":
            devices = len(self.mesh.local_devices)
            each = {name: (devices, s.shape[0] // self.mesh.size, *s.shape[1:]) for name, s in shapes.items()}
            batch = {name: jax.ShapeDtypeStruct(shape, shapes[name].dtype) for name, shape in each.items()}
            request: Any = jax.ShapeDtypeStruct((devices,), np.int32)
        else:
            laid_out = {name: batch_sharding(s.shape, self.mesh) for name, s in shapes.items()}
            batch = {n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=laid_out[n]) for n, s in shapes.items()}
            spread = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
            request = jax.ShapeDtypeStruct((self.mesh.size,), np.int32, sharding=spread)
        return self.program.lower(state, batch, frozen, *([request] if self.processes > 1 else []))

    def __call__(self, state: Any, batch: Any, request: int = 0, frozen: Any = None) -> tuple[Any, Any, Any]:
        """New state, metrics, and the largest ``request`` of all processes (an array where there are several).

        Args:
            state: laid out as ``abstract``; its memory is reused.
            batch: from ``put``.
            request: this process's message to all, 0 for none.
            frozen: parameters that are not trained.
        """
        if self.processes == 1:
            return *self.program(state, batch, frozen), request
        if self.strategy == "pmap":
            outputs = self.program(state, batch, frozen, np.full(len(self.mesh.local_devices), request, np.int32))
            return jax.tree.map(self._of_all_processes, outputs)
        # [devices], each process's request on its own devices.
        spread = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        requests = jax.make_array_from_callback((self.mesh.size,), spread, lambda _: np.array([request], np.int32))
        return self.program(state, batch, frozen, requests)

    def _of_all_processes(self, array: jax.Array) -> jax.Array:
        """The array over all processes, from pmap's over the devices of this one; the values are the same on all."""
        parts = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, replicated(self.mesh), parts)
