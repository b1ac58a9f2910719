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

_FIELDS = ["step", "params", "opt_state", "ema", "skipped", "skipped_in_a_row"]


@partial(jax.tree_util.register_dataclass, data_fields=_FIELDS, meta_fields=[])
@dataclass(frozen=True)
class TrainState:
    """All that changes in training. Random draws need nothing here: they are functions of the seed and the step.

    Attributes:
        step: batches consumed, skipped updates included.
        params: the parameters that are trained, float32.
        opt_state: optax's state.
        ema: exponential moving average of the parameters, or None.
        skipped: updates skipped because the loss or gradient was not finite.
        skipped_in_a_row: how many of them were the latest.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    skipped: Any
    skipped_in_a_row: Any

    @property
    def carried(self) -> Any:
        """What the objective hands on from step to step: for most, nothing."""
        return None

    @property
    def saved(self) -> "TrainState":
        """What a checkpoint holds."""
        return self

    @property
    def evaluation_params(self) -> Any:
        """What is evaluated and sampled from, without what is frozen: the average if there is one."""
        return self.params if self.ema is None else self.ema


@partial(jax.tree_util.register_dataclass, data_fields=[*_FIELDS, "carried"], meta_fields=[])
@dataclass(frozen=True)
class CarryingState(TrainState):
    """The state of a run whose objective hands something on from step to step; checkpoints of other runs lack it.

    Attributes:
        carried: what that is.
    """

    carried: Any = None


@partial(jax.tree_util.register_dataclass, data_fields=[*_FIELDS, "carried", "frozen"], meta_fields=[])
@dataclass(frozen=True)
class FrozenState(CarryingState):
    """The state of a run that trains factors beside a frozen model (LoRA).

    Attributes:
        frozen: the parameters that are not trained; they are in no checkpoint.
    """

    frozen: Any = None

    @property
    def saved(self) -> TrainState:
        """What a checkpoint holds."""
        return with_carried(TrainState(*(getattr(self, name) for name in _FIELDS)), self.carried)


def with_carried(state: TrainState, carried: Any) -> TrainState:
    """The state of a run without frozen parameters, with what its objective hands on; as it is with None."""
    fields = {name: getattr(state, name) for name in _FIELDS}
    return TrainState(**fields) if carried is None else CarryingState(**fields, carried=carried)


def with_frozen(state: TrainState, frozen: Any) -> TrainState:
    """The state with what is frozen beside it; as it is without."""
    fields = {name: getattr(state, name) for name in _FIELDS}
    return state if frozen is None else FrozenState(**fields, carried=state.carried, frozen=frozen)


def frozen_of(state: TrainState) -> Any:
    """What is frozen, None where everything is trained."""
    return state.frozen if isinstance(state, FrozenState) else None


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
    frozen = None
    if adapter is not None:
        frozen, params = adapter.begin(purpose_key(seed, "lora"), params)
    zero = jnp.zeros((), jnp.int32)
    # A copy, since the state's buffers are donated and no buffer can be donated twice.
    average = jax.tree.map(jnp.copy, params) if ema else None
    handed_on = jax.tree.map(jnp.asarray, carried)
    state = TrainState(zero, params, optimizer.init(params), average, zero, zero)
    return with_frozen(with_carried(state, handed_on), frozen)


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
    frozen, boxed = (None, abstract_params(model)) if adapter is None else adapter.boxed_parts()
    shardings = parameter_shardings(boxed, mesh)
    frozen_shardings = None if frozen is None else parameter_shardings(frozen, mesh)
    shapes = jax.eval_shape(lambda seed: new_state(model, optimizer, ema, seed, adapter, carried), jnp.uint32(0))

    opt_shardings = _statistics_shardings(shapes.opt_state, nn.unbox(boxed), shardings, mesh)
    one = replicated(mesh)
    handed_on = jax.tree.map(lambda _: one, carried)
    tree = TrainState(one, shardings, opt_shardings, shardings if ema else None, one, one)
    tree = with_frozen(with_carried(tree, handed_on), frozen_shardings)
    return jax.tree.map(lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, tree)


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
    handed_on = jax.tree.map(lambda leaf: jax.device_put(jnp.asarray(leaf), shardings.step), carried)
    return with_carried(TrainState(step, params, opt_state, ema, skipped, in_a_row), handed_on)
