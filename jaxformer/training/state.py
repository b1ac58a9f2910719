"""The training state: a pytree with a sharding for every leaf, made by shape before any value exists."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxformer.functional import purpose_key
from jaxformer.parallel.mesh import parameter_shardings, replicated
from jaxformer.training.adapter import Division


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

    Attributes:
        step: batches consumed, skipped updates included.
        params: the parameters that are trained, float32.
        opt_state: optax's state.
        ema: exponential moving average of the parameters, or None.
        skipped: updates skipped because the loss or gradient was not finite.
        skipped_in_a_row: how many of them were the latest.
        carried: what the objective hands from step to step (an adaptive KL coefficient); None for most.
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


def abstract_params(model: nn.Module) -> Any:
    """Shapes of the parameters with their logical axes; nothing is computed."""
    return jax.eval_shape(model.init, jax.random.key(0), init_inputs(model))["params"]


def init_inputs(model: nn.Module) -> jax.Array:
    """The smallest ``input_ids`` a model can be initialised with."""
    return jnp.zeros(getattr(model, "init_shape", (1, 2)), jnp.int32)


def count_parameters(params: Any) -> int:
    """Number of values in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def new_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    ema: bool,
    seed: jax.Array,
    adapter: Division | None = None,
    carried: Any = None,
) -> TrainState:
    """A new state from a seed, to be jitted with the shardings it shall have."""
    params = nn.unbox(model.init(purpose_key(seed, "init"), init_inputs(model))["params"])
    if adapter is not None:
        params = adapter.begin(purpose_key(seed, "lora"), params)[1]
    zero = jnp.zeros((), jnp.int32)
    # A copy, since the state's buffers are donated and no buffer can be donated twice.
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(zero, params, optimizer.init(params), average, zero, zero, jax.tree.map(jnp.asarray, carried))


def abstract_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    ema: bool,
    mesh: Mesh,
    adapter: Division | None = None,
    carried: Any = None,
) -> TrainState:
    """The state as ``ShapeDtypeStruct`` with shardings: what is initialised, restored and compiled for.

    The optimizer's statistics of a parameter are split as it is where they have its shape, else replicated.
    """
    boxed = abstract_params(model) if adapter is None else adapter.boxed_parts()[1]
    shardings = parameter_shardings(boxed, mesh)
    shapes = jax.eval_shape(lambda seed: new_state(model, optimizer, ema, seed, adapter, carried), jnp.uint32(0))

    opt_shardings = _statistics_shardings(shapes.opt_state, nn.unbox(boxed), shardings, mesh)
    one = replicated(mesh)
    carried = jax.tree.map(lambda _: one, carried)
    tree = TrainState(one, shardings, opt_shardings, shardings if ema else None, one, one, carried)
    return jax.tree.map(_placed, shapes, tree)


def abstract_frozen(adapter: Division | None, mesh: Mesh) -> Any:
    """The frozen part as ``ShapeDtypeStruct`` with shardings, None where everything is trained."""
    if adapter is None:
        return None
    frozen = adapter.boxed_parts()[0]
    return jax.tree.map(_placed, nn.unbox(frozen), parameter_shardings(frozen, mesh))


def _placed(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _statistics_shardings(opt_state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
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
        for start in range(len(names)):
            shape, sharding = known.get(names[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding_of, opt_state)


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    abstract: TrainState,
    carried: Any = None,
) -> TrainState:
    """A new state in which all is trained, each leaf made where it belongs: no array is ever whole on one device."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    new = partial(new_state, model, optimizer, abstract.ema is not None, carried=carried)
    return jax.jit(new, out_shardings=shardings)(jnp.uint32(seed))


def state_of(
    params: Any, optimizer: optax.GradientTransformation, abstract: TrainState, carried: Any = None
) -> TrainState:
    """A new state around parameters that lie where they belong.

    Args:
        params: the trained ones; they are not copied.
        optimizer: whose state begins.
        abstract: shapes of what a checkpoint holds, with shardings.
        carried: what the objective hands on, as it begins.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    # A copy, since the state's buffers are donated and no buffer can be donated twice.
    ema = None if abstract.ema is None else jax.tree.map(jnp.copy, params)
    step, skipped, in_a_row = (jax.device_put(jnp.zeros((), jnp.int32), shardings.step) for _ in range(3))
    carried = jax.tree.map(lambda leaf: jax.device_put(jnp.asarray(leaf), shardings.step), carried)
    return TrainState(step, params, opt_state, ema, skipped, in_a_row, carried)
