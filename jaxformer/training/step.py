"""The one train step, and the evaluation step beside it. Parallelism is a wrapper: the sharding of what goes in."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxformer.functional import call, purpose_key
from jaxformer.models.experts import PRICES
from jaxformer.parallel.fixed_tree import FixedTree
from jaxformer.tasks.base import Batch, LossSums, Task, router_prices, router_sums
from jaxformer.training.adapter import Division
from jaxformer.training.state import TrainState


class StepMetrics(NamedTuple):
    """Metrics of a step, on the device until they are read.

    ``sums`` are of the batch, to be divided by ``weight``, the number of trained tokens; ``loss`` is always there. The
    norm is that of the mean gradient, before clipping.
    """

    sums: dict[str, jax.Array]
    weight: jax.Array
    gradient_norm: jax.Array
    skipped_in_a_row: jax.Array
    skipped: jax.Array


# (state, batch, what is frozen or None) -> (state, metrics)
TrainStep = Callable[..., tuple[TrainState, StepMetrics]]
ALL_TRAINED = Division(None)
Assemble = Callable[[Any, jax.Array, jax.Array], Any]


def objective(
    params: Any, batch: Batch, model: nn.Module, task: Task, dropout_key: jax.Array, assemble: Assemble
) -> tuple[jax.Array, LossSums]:
    """The objective's sum over the batch, and all its sums; arguments as in ``gradients_of_sum``."""
    sums = task.loss(model, assemble(params, dropout_key, batch["example_ids"]), batch, dropout_key)
    return sums.objective, sums


def gradients_of_sum(
    model: nn.Module,
    task: Task,
    params: Any,
    batch: Batch,
    dropout_key: jax.Array,
    accumulate: int,
    axis_name: str | None = None,
    assemble: Assemble = lambda params, dropout_key, example_ids: params,
) -> tuple[Any, LossSums]:
    """Gradient of the objective's sum over the batch, in ``accumulate`` parts one after the other.

    Summing sums weights every token alike, however the parts' token counts differ; and each example keeps its number in
    the global batch, so that parts and devices draw the dropout the whole batch would have drawn. Under pmap,
    ``axis_name`` is that of the devices that hold the other rows. ``assemble`` makes the model's parameters of those
    that are trained, the dropout key and the examples' numbers.
    """

    def gradient(params: Any, batch: Batch) -> tuple[Any, LossSums]:
        return jax.grad(objective, has_aux=True)(params, batch, model, task, dropout_key, assemble)

    def vectors(params: Any, batch: Batch) -> jax.Array:
        return task.vectors(model, assemble(params, dropout_key, batch["example_ids"]), batch, dropout_key)

    size = len(next(iter(batch.values())))
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size
    batch = {**batch, "example_ids": first + jnp.arange(size)}
    if task.joint:
        return _gradients_of_joint_sum(task, vectors, params, batch, accumulate, axis_name)
    c = model.config
    if c.num_experts and c.balance_loss and task.config.predicts_tokens and (accumulate > 1 or axis_name is not None):
        batch |= _prices_of_whole(model, params, batch, dropout_key, accumulate, axis_name, assemble)
    if accumulate == 1:
        return gradient(params, batch)
    parts = _split(batch, accumulate)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda array: array[0], parts))
    return _sum_over_parts(lambda part: gradient(params, part), parts, shapes)


def _split(batch: Any, parts: int) -> Any:
    """The batch in parts, on a leading axis."""

    def split(array: jax.Array) -> jax.Array:
        # Every accumulate-th row: a device that holds consecutive rows then has an equal share of each part.
        return array.reshape(len(array) // parts, parts, *array.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


def _sum_over_parts(function: Callable[[Any], Any], parts: Any, shapes: Any) -> Any:
    """The sum of ``function`` over the parts, one after the other; ``shapes`` are those of its result."""

    def add_part(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, function(part)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add_part, zeros, parts)[0]


def _gradients_of_joint_sum(
    task: Task,
    vectors: Callable[[Any, Batch], jax.Array],
    params: Any,
    batch: Batch,
    accumulate: int,
    axis_name: str | None,
) -> tuple[Any, LossSums]:
    """Gradient of an objective that compares the rows of the whole global batch, with cached gradients.

    ``dL/dp = sum over parts of (dL/dv)(dv/dp)``: the vectors ``v`` of all parts are computed first, without what a
    gradient needs; then the loss and its gradient ``dL/dv`` on all of them; then each part again, for its own term. So
    memory is that of a part, and the loss, dropout included, that of the whole batch. Gao et al. 2021, "Scaling Deep
    Contrastive Learning Batch Size under Memory Limited Setup", section 3.
    """

    def of_vectors(mine: jax.Array) -> tuple[jax.Array, LossSums]:
        """The gradient for the vectors of this device's rows, and the sums, which under pmap one device returns."""
        whole, rows = (mine, batch) if axis_name is None else jax.lax.all_gather((mine, batch), axis_name, tiled=True)

        def of_whole(whole: jax.Array) -> tuple[jax.Array, LossSums]:
            sums = task.loss_of(whole, rows)
            return sums.objective, sums

        cotangents, sums = jax.grad(of_whole, has_aux=True)(whole)
        if axis_name is None:
            return cotangents, sums
        place = jax.lax.axis_index(axis_name)
        cotangents = jax.lax.dynamic_slice_in_dim(cotangents, place * len(mine), len(mine))
        return cotangents, jax.tree.map(lambda x: jnp.where(place == 0, x, jnp.zeros_like(x)), sums)

    if accumulate == 1:
        found, pull_back = jax.vjp(lambda params: vectors(params, batch), params)
        cotangents, sums = of_vectors(found)
        return pull_back(cotangents)[0], sums
    parts = _split(batch, accumulate)
    found = jax.lax.map(lambda part: vectors(params, part), parts)
    cotangents, sums = of_vectors(found.swapaxes(0, 1).reshape(-1, *found.shape[2:]))

    def of_part(part: tuple[Batch, jax.Array]) -> Any:
        return jax.vjp(lambda params: vectors(params, part[0]), params)[1](part[1])[0]

    return _sum_over_parts(of_part, (parts, _split(cotangents, accumulate)), params), sums


def _prices_of_whole(
    model: nn.Module,
    params: Any,
    batch: Batch,
    dropout_key: jax.Array,
    accumulate: int,
    axis_name: str | None,
    assemble: Assemble,
) -> Batch:
    """The prices of experts in the whole global batch, as an array of this device's rows; see ``router_prices``.

    The balance loss is a product of two means over all tokens. One of them, the choices, has no gradient: counted in a
    forward pass of its own, it makes of the loss a sum over tokens.
    """

    def of_part(part: Batch) -> Any:
        return router_sums(model, assemble(params, dropout_key, part["example_ids"]), part, dropout_key)

    size = len(batch["labels"])
    parts = jax.tree.map(lambda array: array.reshape(size // accumulate, accumulate, *array.shape[1:]), batch)
    sums = jax.lax.map(of_part, jax.tree.map(lambda array: array.swapaxes(0, 1), parts))
    sums = jax.tree.map(lambda array: jnp.sum(array, axis=0), sums)
    prices = router_prices(*(sums if axis_name is None else jax.lax.psum(sums, axis_name)))
    return {PRICES: jnp.broadcast_to(prices, (size, *prices.shape))}


def make_train_step(
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    ema_decay: float | None = None,
    axis_name: str | None = None,
    division: Division = ALL_TRAINED,
    tree: FixedTree | None = None,
) -> TrainStep:
    """One update: mean gradient over all trained tokens of the global batch, optimizer, average of the weights.

    A loss or gradient that is inf or nan leaves parameters, optimizer state and average as they were and is counted.
    The result is pure and not jitted; ``parallel.strategy`` spreads it over devices. Under pmap, where each device has
    rows of its own, sums are added up over ``axis_name``; with a ``tree``, which needs the whole batch on every device,
    in its order.
    """

    def summed(state: TrainState, batch: Batch, frozen: Any) -> tuple[Any, LossSums]:
        key = purpose_key(seed, "dropout", state.step)
        if tree is not None:

            def of_part(part: Batch, params: Any, frozen: Any, key: jax.Array) -> tuple[Any, LossSums]:
                return jax.grad(objective, has_aux=True)(
                    params, part, model, task, key, partial(division.assemble, frozen)
                )

            batch = {**batch, "example_ids": jnp.arange(len(next(iter(batch.values()))))}
            return tree.sum(of_part, batch, state.params, frozen, key)
        assemble = partial(division.assemble, frozen)
        gradients, sums = gradients_of_sum(model, task, state.params, batch, key, accumulate, axis_name, assemble)
        return (gradients, sums) if axis_name is None else jax.lax.psum((gradients, sums), axis_name)

    def step(state: TrainState, batch: Batch, frozen: Any = None) -> tuple[TrainState, StepMetrics]:
        gradients, sums = summed(state, batch, frozen)
        return (update if tree is None else partial(call, update))(state, gradients, sums)

    def update(state: TrainState, gradients: Any, sums: LossSums) -> tuple[TrainState, StepMetrics]:
        # The mean is taken here and nowhere else. A batch without a single trained token gives zeros.
        weight = jnp.where(sums.weight > 0, sums.weight, 1.0)
        gradients = jax.tree.map(lambda gradient: gradient / weight, gradients)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(sums.objective) & jnp.isfinite(norm)

        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = jax.tree.map(lambda average, p: ema_decay * average + (1 - ema_decay) * p, ema, params)
        # Chosen value by value, so that the compiler joins it with the update and nothing is copied.
        params, opt_state, ema = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        skipped = state.skipped + ~finite
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        metrics = StepMetrics(sums.metrics, sums.weight, norm, in_a_row, skipped)
        return TrainState(state.step + 1, params, opt_state, ema, skipped, in_a_row, state.carried), metrics

    return step


def make_policy_step(
    model: nn.Module,
    task: Any,
    update: TrainStep,
    *,
    seed: int,
    division: Division = ALL_TRAINED,
    tree: FixedTree | None = None,
) -> TrainStep:
    """All updates of a step as one pure function of the state and the responses: epochs of mini-batches.

    ``update`` is ``make_train_step``'s, on a mini-batch; ``seed`` is that of the mini-batches; ``tree`` as there.
    """
    c = task.config

    def experience(params: Any, batch: Batch, carried: Any) -> tuple[Batch, dict[str, jax.Array], Any]:
        if tree is None:
            return task.experience(model, params, batch, carried)
        found = tree.by_rows(partial(task.log_probs_and_values, model, params), batch)

        def known(batch: Batch, carried: Any, found: Any) -> tuple[Batch, dict[str, jax.Array], Any]:
            return task.experience(model, None, batch, carried, found)

        return call(known, batch, carried, found)

    def step(state: TrainState, batch: Batch, frozen: Any = None) -> tuple[TrainState, StepMetrics]:
        params = division.assemble(frozen, state.params)
        columns, facts, carried = experience(params, batch, state.carried)
        batch = {**batch, **columns}
        size = len(batch["scores"])
        key = purpose_key(seed, "minibatches", state.step)
        orders = [jax.random.permutation(jax.random.fold_in(key, epoch), size) for epoch in range(c.epochs)]
        parts = jnp.stack(orders).reshape(c.updates, size // c.minibatches)

        def learn(trained: TrainState, rows: jax.Array) -> tuple[TrainState, tuple[StepMetrics, dict[str, jax.Array]]]:
            part = {name: array[rows] for name, array in batch.items()}
            trained, metrics = update(trained, part, frozen)
            weight = jnp.where(metrics.weight > 0, metrics.weight, 1.0)
            return trained, (metrics, {name: total / weight for name, total in metrics.sums.items()})

        trained, (metrics, means) = jax.lax.scan(learn, state, parts)
        last = jax.tree.map(lambda array: array[-1], metrics)
        values = {name: jnp.mean(array) for name, array in means.items()} | facts
        # The record divides sums by the weight; these are means already.
        sums = {name: value * size for name, value in values.items()}
        norm = jnp.mean(metrics.gradient_norm)
        new = dataclasses.replace(trained, step=state.step + 1, carried=carried)
        done = last._replace(sums=sums, weight=jnp.float32(size), gradient_norm=norm)
        return new, done

    return step
