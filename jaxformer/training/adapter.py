"""LoRA in a run: divides the parameters into a trained and a frozen part, and joins them again."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.functional import Quantized
from jaxformer.lora.factors import (
    LoraConfig,
    Target,
    adapt,
    find_targets,
    fits,
    init_factors,
    int8_kernels,
    kernel_lengths,
    merge,
    quantize_base,
    to_int8,
)

FACTORS, WHOLE = "factors", "whole"


class Division(Protocol):
    """Divides a run's parameters into a frozen part, which no checkpoint holds, and a trained one."""

    @property
    def shapes(self) -> Any:
        """Shapes of the whole model's parameters."""

    def boxed_parts(self) -> tuple[Any, Any]:
        """Shapes of the frozen and the trained part with their logical axes."""

    def begin(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """The frozen and the trained part of a new model."""

    def kept(self, path: str, array: jax.Array) -> Any:
        """A parameter of the model in the form in which the run stores it."""

    def begin_from(self, key: jax.Array, params: Any, shardings: Any) -> tuple[Any, Any]:
        """``begin`` for parameters that are on their devices already.

        Args:
            key: of what is drawn.
            params: of the whole model, as ``kept`` returned them.
            shardings: of the trained part.
        """

    def joined(self, frozen: Any, trained: Any) -> Any:
        """The model's parameters without factors."""

    def assemble(
        self, frozen: Any, trained: Any, dropout_key: jax.Array | None = None, example_ids: jax.Array | None = None
    ) -> Any:
        """The parameters that the objective's loss takes; with a key, dropout is on."""

    def merged(self, frozen: Any, trained: Any) -> Any:
        """The model's parameters as arrays alone."""


@dataclass(frozen=True)
class Adapter:
    """The trained part of a run is ``{"factors": ..., "whole": ...}``, all else of the model is frozen.

    Attributes:
        config: of the factors.
        boxed: shapes of the whole model's parameters with their logical axes.
    """

    config: LoraConfig
    boxed: Any

    @cached_property
    def _flat(self) -> dict[str, Any]:
        return flatten_dict(self.boxed, sep="/")

    @cached_property
    def shapes(self) -> Any:
        """Shapes of the whole model's parameters."""
        return nn.unbox(self.boxed)

    @cached_property
    def _int8(self) -> dict[str, Target]:
        return {target.path: target for target in int8_kernels(self.shapes, self.config)}

    @cached_property
    def whole(self) -> list[str]:
        """Paths of the parameters that are trained as they are."""
        targets = {target.path for target in find_targets(self.shapes, self.config)}
        return [path for path in self._flat if path not in targets and fits(path, self.config.also_train)]

    def split(self, params: Any) -> tuple[Any, Any]:
        """The frozen part of a model's parameters, and that which is trained as it is."""
        flat = flatten_dict(params, sep="/")
        whole = {path: flat.pop(path) for path in self.whole}
        return unflatten_dict(flat, sep="/"), unflatten_dict(whole, sep="/")

    def begin(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """The frozen and the trained part of a new model."""
        frozen, whole = self.split(quantize_base(params, self.config))
        return frozen, {FACTORS: init_factors(key, params, self.config), WHOLE: whole}

    def kept(self, path: str, array: jax.Array) -> Any:
        """A kernel that is to be int8 as such, all else as it is."""
        target = self._int8.get(path)
        if target is None:
            return array
        values, scale = _int8_specs(target, array.sharding)
        made = jax.jit(lambda kernel: to_int8(kernel, target), out_shardings=Quantized(values, scale))(array)
        return jax.block_until_ready(made)

    def begin_from(self, key: jax.Array, params: Any, shardings: Any) -> tuple[Any, Any]:
        """See ``Division``; makes no second copy of the parameters."""
        now, whole = self.split(params)
        flat = flatten_dict(params, sep="/")

        def new(key: jax.Array) -> Any:
            # Of the kernels the factors need the shapes alone, but for the lengths, which follow below.
            kernels = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.shapes)
            return init_factors(key, kernels, self.config)

        factors = flatten_dict(jax.jit(new, out_shardings=shardings[FACTORS])(key), sep="/")
        for target in find_targets(self.shapes, self.config):
            if self.config.dora:
                old = factors[f"{target.path}/magnitude"]
                lengths = jax.jit(lambda kernel, t=target: kernel_lengths(kernel, t), out_shardings=old.sharding)
                factors[f"{target.path}/magnitude"] = lengths(flat[target.path])
        return now, {FACTORS: unflatten_dict(factors, sep="/"), WHOLE: whole}

    def joined(self, frozen: Any, trained: Any) -> Any:
        """The model's parameters without the factors."""
        return unflatten_dict({**flatten_dict(frozen), **flatten_dict(trained[WHOLE])})

    def assemble(
        self, frozen: Any, trained: Any, dropout_key: jax.Array | None = None, example_ids: jax.Array | None = None
    ) -> Any:
        """The model's parameters with the factors beside their kernels; with a key, dropout is on."""
        return adapt(self.joined(frozen, trained), trained[FACTORS], self.config, dropout_key, example_ids)

    def merged(self, frozen: Any, trained: Any) -> Any:
        """The model's parameters with the factors added in."""
        return merge(self.joined(frozen, trained), trained[FACTORS], self.config)

    def boxed_parts(self) -> tuple[Any, Any]:
        """Shapes of the frozen and the trained part with their logical axes: a factor's are those of its kernel."""
        frozen, whole = self.split(self.boxed)
        flat = flatten_dict(frozen, sep="/")
        for path, target in self._int8.items():
            names = flat[path].names
            inputs = range(int(target.stacked), int(target.stacked) + target.inputs)
            ones = tuple(1 if axis in inputs else size for axis, size in enumerate(target.shape))
            free = tuple(None if axis in inputs else name for axis, name in enumerate(names))
            values = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(target.shape, jnp.int8), names)
            scale = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(ones, jnp.float32), free)
            flat[path] = Quantized(values, scale)
        frozen = unflatten_dict(flat, sep="/")
        factors: dict[str, Any] = {}
        for target in find_targets(self.shapes, self.config):
            names = self._flat[target.path].names
            first = int(target.stacked)
            layers, inputs, outputs = (
                names[:first],
                names[first : first + target.inputs],
                names[first + target.inputs :],
            )
            sizes = target.split
            parts = {
                "a": ((*sizes[0], *sizes[1], self.config.rank), (*layers, *inputs, None)),
                "b": ((*sizes[0], self.config.rank, *sizes[2]), (*layers, None, *outputs)),
                "magnitude": ((*sizes[0], *sizes[2]), (*layers, *outputs)),
            }
            for name, (shape, axes) in parts.items():
                if name != "magnitude" or self.config.dora:
                    value = jax.ShapeDtypeStruct(shape, jnp.float32)
                    factors[f"{target.path}/{name}"] = nn.LogicallyPartitioned(value, axes)
        return frozen, {FACTORS: unflatten_dict(factors, sep="/"), WHOLE: whole}


def _int8_specs(target: Target, sharding: Any) -> tuple[Any, Any]:
    """Shardings of the values and the scale of a kernel that has this one."""
    if not isinstance(sharding, NamedSharding):
        return sharding, sharding
    inputs = range(int(target.stacked), int(target.stacked) + target.inputs)
    names = [*sharding.spec, *[None] * (len(target.shape) - len(sharding.spec))]
    free = (None if axis in inputs else name for axis, name in enumerate(names))
    return sharding, NamedSharding(sharding.mesh, PartitionSpec(*free))
