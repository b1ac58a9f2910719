"""Divides the parameters of a run into a trained and a frozen part (LoRA, a teacher), and joins them again."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.functional import Quantized
from jaxformer.lora import factors as lora
from jaxformer.lora.factors import LoraConfig, Target
from jaxformer.tasks.distillation import WithTeacher

FACTORS, WHOLE = "factors", "whole"
STUDENT, TEACHER = "student", "teacher"


@dataclass(frozen=True)
class Division:
    """Divides a run's parameters into a frozen part, which no checkpoint holds, and a trained one.

    The frozen part is ``{"student": ..., "teacher": ...}``, each None where there is none. The trained part is the
    model, with LoRA ``{"factors": ..., "whole": ...}``; then all else of the model is frozen.

    Attributes:
        boxed: shapes of the model's parameters with their logical axes.
        config: of the factors, None without LoRA.
        teacher: shapes of the teacher's parameters with their logical axes, None without one.
    """

    boxed: Any
    config: LoraConfig | None = None
    teacher: Any = None

    @cached_property
    def shapes(self) -> Any:
        """Shapes of the model's parameters."""
        return nn.unbox(self.boxed)

    @cached_property
    def _flat(self) -> dict[str, Any]:
        return flatten_dict(self.boxed, sep="/")

    @cached_property
    def _targets(self) -> list[Target]:
        return [] if self.config is None else lora.find_targets(self.shapes, self.config)

    @cached_property
    def _int8(self) -> dict[str, Target]:
        kernels = [] if self.config is None else lora.int8_kernels(self.shapes, self.config)
        return {target.path: target for target in kernels}

    def _split(self, params: Any) -> tuple[Any, Any]:
        """The frozen parameters of a LoRA model, and those that are trained as they are."""
        assert self.config is not None
        flat, targets = flatten_dict(params, sep="/"), {target.path for target in self._targets}
        also = self.config.also_train
        whole = {path: flat.pop(path) for path in self._flat if path not in targets and lora.fits(path, also)}
        return unflatten_dict(flat, sep="/"), unflatten_dict(whole, sep="/")

    def frozen(self, params: Any) -> Any:
        """The frozen part of a model's parameters, without the teacher."""
        return {STUDENT: None if self.config is None else self._split(params)[0]}

    def kept(self, path: str, array: jax.Array) -> Any:
        """A parameter in the form in which the run stores it: int8 kernels as such, all else as it is."""
        target = self._int8.get(path)
        if target is None:
            return array
        made = jax.jit(lambda kernel: lora.to_int8(kernel, target), out_shardings=_int8_shardings(target, array))(array)
        return jax.block_until_ready(made)

    def begin(self, key: jax.Array, params: Any, shardings: Any) -> tuple[Any, Any]:
        """The frozen part, without the teacher, and the trained part of a new model; copies no parameter.

        ``params`` are the whole model's as ``kept`` returned them, ``shardings`` those of the trained part.
        """
        config = self.config
        if config is None:
            return self.frozen(params), params

        def new(key: jax.Array) -> Any:
            # Of the kernels the factors need the shapes alone, but for the lengths, which follow below.
            kernels = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.shapes)
            return lora.init_factors(key, kernels, config)

        factors = flatten_dict(jax.jit(new, out_shardings=shardings[FACTORS])(key), sep="/")
        if config.dora:
            flat = flatten_dict(params, sep="/")
            for target in self._targets:
                old = factors[f"{target.path}/magnitude"]
                lengths = jax.jit(lambda kernel, t=target: lora.kernel_lengths(kernel, t), out_shardings=old.sharding)
                factors[f"{target.path}/magnitude"] = lengths(flat[target.path])
        return self.frozen(params), {FACTORS: unflatten_dict(factors, sep="/"), WHOLE: self._split(params)[1]}

    def joined(self, frozen: Any, trained: Any) -> Any:
        """The model's parameters without factors."""
        if self.config is None:
            return trained
        return unflatten_dict({**flatten_dict(frozen[STUDENT]), **flatten_dict(trained[WHOLE])})

    def assemble(
        self, frozen: Any, trained: Any, dropout_key: jax.Array | None = None, example_ids: jax.Array | None = None
    ) -> Any:
        """The parameters that the objective's loss takes: factors beside their kernels, the teacher's beside all.

        With a key the factors' dropout is on.
        """
        params = self.joined(frozen, trained)
        if self.config is not None:
            params = lora.adapt(params, trained[FACTORS], self.config, dropout_key, example_ids)
        return params if self.teacher is None else WithTeacher(params, frozen[TEACHER])

    def merged(self, frozen: Any, trained: Any) -> Any:
        """The model's parameters as arrays alone, the factors added in."""
        params = self.joined(frozen, trained)
        return params if self.config is None else lora.merge(params, trained[FACTORS], self.config)

    def boxed_parts(self) -> tuple[Any, Any]:
        """Shapes of the frozen and the trained part with their logical axes: a factor's are those of its kernel."""
        if self.config is None:
            return {STUDENT: None, TEACHER: self.teacher}, self.boxed
        frozen, whole = self._split(self.boxed)
        flat = flatten_dict(frozen, sep="/")
        for path, target in self._int8.items():
            names = flat[path].names
            ones = tuple(1 if axis is None else axis for axis in _without_inputs(target, target.shape))
            values = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(target.shape, jnp.int8), names)
            free = _without_inputs(target, names)
            flat[path] = Quantized(values, nn.LogicallyPartitioned(jax.ShapeDtypeStruct(ones, jnp.float32), free))
        factors: dict[str, Any] = {}
        for target in self._targets:
            names, first, last = self._flat[target.path].names, target.each, target.each + target.inputs
            layers, inputs, outputs = names[:first], names[first:last], names[last:]
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
        student = unflatten_dict(flat, sep="/")
        return {STUDENT: student, TEACHER: self.teacher}, {FACTORS: unflatten_dict(factors, sep="/"), WHOLE: whole}


def _without_inputs(target: Target, axes: Sequence[Any]) -> tuple[Any, ...]:
    """The entries of a kernel's axes, None at those that it sums over: an int8 kernel's scale has one value there."""
    first = target.each
    return tuple(None if first <= axis < first + target.inputs else entry for axis, entry in enumerate(axes))


def _int8_shardings(target: Target, kernel: jax.Array) -> Quantized:
    """Shardings of the values and the scale made from a kernel."""
    sharding = kernel.sharding
    if not isinstance(sharding, NamedSharding):
        return Quantized(sharding, sharding)
    names = [*sharding.spec, *[None] * (kernel.ndim - len(sharding.spec))]
    return Quantized(sharding, NamedSharding(sharding.mesh, PartitionSpec(*_without_inputs(target, names))))
