"""The training state: a pytree with a sharding for every leaf, made by shape before any value exists."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxformer.functional import purpose_key
from jaxformer.hub.kinds import init
from jaxformer.parallel.mesh import parameter_shardings, replicated


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "opt_state", "ema", "skipped", "skipped_in_a_row", "carried"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """All that changes in training, and all that a checkpoint holds.

    Random draws need nothing here: they are functions of the seed and the step. What is frozen (the base model beside
    LoRA factors, a teacher) does not change and is an argument of the step.

    ``step`` counts batches, those with a skipped update included; ``ema`` is the average of the parameters, or None;
    updates are skipped because the loss or gradient was not finite; ``carried`` is what the objective hands from step
    to step (an adaptive KL coefficient), None for most.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    skipped: Any
    skipped_in_a_row: Any
    carried: Any = None

    @property
    def evaluation_params(self) -> Any:
        """The trained parameters that are evaluated and sampled from: their average if there is one."""
        return self.params if self.ema is None else self.ema


def count_parameters(params: Any) -> int:
    """Number of values in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _around(params: Any, optimizer: optax.GradientTransformation, ema: bool, carried: Any) -> TrainState:
    """A new state around trained parameters."""
    zero = jnp.zeros((), jnp.int32)
    # A copy, since the state's buffers are donated and no buffer can be donated twice.
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(zero, params, optimizer.init(params), average, zero, zero, jax.tree.map(jnp.asarray, carried))


def new_state(
    model: nn.Module, optimizer: optax.GradientTransformation, ema: bool, seed: jax.Array, carried: Any = None
) -> TrainState:
    """A new state in which all is trained, from a seed; to be jitted with the shardings it shall have."""
    return _around(nn.unbox(init(model, purpose_key(seed, "init"))), optimizer, ema, carried)


def abstract_state(
    boxed: Any, optimizer: optax.GradientTransformation, ema: bool, mesh: Mesh, carried: Any = None
) -> TrainState:
    """The state as ``ShapeDtypeStruct`` with shardings: what is initialised, restored and compiled for.

    ``boxed`` are the shapes of the trained parameters with their logical axes. The optimizer's statistics of a
    parameter are split as it is where they have its shape, else replicated.
    """
    shardings, params, one = parameter_shardings(boxed, mesh), nn.unbox(boxed), replicated(mesh)
    shapes = jax.eval_shape(lambda params: _around(params, optimizer, ema, carried), params)
    opt_shardings = _statistics_shardings(shapes.opt_state, params, shardings, one)
    carried = jax.tree.map(lambda _: one, carried)
    tree = TrainState(one, shardings, opt_shardings, shardings if ema else None, one, one, carried)
    return jax.tree.map(_placed, shapes, tree)


def abstract_on(boxed: Any, mesh: Mesh) -> Any:
    """Parameters as ``ShapeDtypeStruct`` with shardings."""
    return jax.tree.map(_placed, nn.unbox(boxed), parameter_shardings(boxed, mesh))


def _placed(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _statistics_shardings(opt_state: Any, params: Any, shardings: Any, other: Any) -> Any:
    """A statistic stands in optax's state under its parameter's path: the end of its own path names the parameter."""

    def path_of(path: Any) -> tuple[str, ...]:
        return tuple(str(getattr(part, "key", part)) for part in path)

    known = {
        path_of(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(shardings), strict=True
        )
    }

    def sharding_of(path: Any, leaf: Any) -> Any:
        names = path_of(path)
        found = (known.get(names[start:], (None, None)) for start in range(len(names)))
        return next((sharding for shape, sharding in found if shape == leaf.shape), other)

    return jax.tree_util.tree_map_with_path(sharding_of, opt_state)


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, abstract: TrainState, carried: Any = None
) -> TrainState:
    """A new state in which all is trained, each leaf made where it belongs: no array is ever whole on one device."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    new = partial(new_state, model, optimizer, abstract.ema is not None, carried=carried)
    return jax.jit(new, out_shardings=shardings)(jnp.uint32(seed))


def state_of(
    params: Any, optimizer: optax.GradientTransformation, abstract: TrainState, carried: Any = None
) -> TrainState:
    """A new state around trained parameters that lie where they belong; they are not copied."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def rest(params: Any) -> TrainState:
        return replace(_around(params, optimizer, abstract.ema is not None, carried), params=None)

    made = jax.jit(rest, out_shardings=replace(shardings, params=None))(params)
    return replace(made, params=params)
