"""Optimizers and learning-rate schedules: a choice among optax's, with one set of names."""

from fnmatch import fnmatchcase
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import Field, model_validator

from jaxformer.models.kernel_layout import kernel_axes, layer_ndim
from jaxformer.schema import Schema, UserError


class OptimizerConfig(Schema):
    """The optimizer and its hyperparameters."""

    type: Literal["adamw", "adafactor", "lion", "muon", "sgd"] = Field("adamw", description="optimizer")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.1, ge=0, description="decoupled decay, times the learning rate")
    decay: list[str] = Field(
        ["kernel"], description="parameters that decay, by last name; embeddings, norms and biases do not"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="adamw, lion, muon (its Adam part): decay of the mean")
    beta2: float = Field(0.95, ge=0, lt=1, description="adamw, lion, muon (its Adam part): decay of the mean square")
    epsilon: float = Field(1e-8, gt=0, description="adamw: added to the root mean square")
    momentum: float | None = Field(None, ge=0, lt=1, description="sgd (default 0) and muon (default 0.95)")
    clip_norm: float | None = Field(1.0, gt=0, description="largest global norm of the gradient; null: no clipping")
    freeze: list[str] = Field(
        [], description="parameters that stay as they are, by name: embeddings/*, layers/0/*, */attention/*"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of a layer, as a share of that of the layer above it"
    )


class ScheduleConfig(Schema):
    """The learning-rate schedule."""

    type: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = Field(
        "cosine", description="shape after the warm-up; wsd: warm-up, stable, decay"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear rise from 0; 0: none")
    final_learning_rate: float = Field(0.0, ge=0, description="cosine, linear, wsd: learning rate at the last step")
    decay_fraction: float = Field(0.2, gt=0, le=1, description="wsd: share of all steps spent in the final decay")

    @model_validator(mode="after")
    def _inverse_sqrt_needs_warmup(self) -> "ScheduleConfig":
        if self.type == "inverse_sqrt" and self.warmup_steps == 0:
            raise ValueError("schedule.warmup_steps is 0, expected 1 or more: inverse_sqrt falls from there")
        return self


def build_schedule(config: ScheduleConfig, learning_rate: float, steps: int) -> optax.Schedule:
    """Learning rate by number of updates done, of ``steps`` in the whole run.

    After a linear rise over ``w`` steps to the peak ``p``: cosine ``f + (p-f)(1+cos(pi t))/2`` and linear ``p + (f-p)
    t`` with ``t`` the share of the remaining steps; ``inverse_sqrt`` ``p sqrt(w/n)`` (Vaswani et al. 2017, section
    5.3); ``wsd`` constant, then linear to ``f`` (Hu et al. 2024, "MiniCPM", section 4).
    """
    warmup, final = min(config.warmup_steps, steps), config.final_learning_rate
    rest = max(1, steps - warmup)
    match config.type:
        case "cosine":
            after = optax.cosine_decay_schedule(learning_rate, rest, alpha=final / learning_rate)
        case "linear":
            after = optax.linear_schedule(learning_rate, final, rest)
        case "constant":
            after = optax.constant_schedule(learning_rate)
        case "inverse_sqrt":
            # join_schedules asks every part at every step, so also before the warm-up is over.
            after = lambda count: learning_rate * (warmup / jnp.maximum(count + warmup, 1)) ** 0.5  # noqa: E731
        case "wsd":
            decay = min(rest, max(1, round(config.decay_fraction * steps)))
            after = optax.linear_schedule(learning_rate, final, decay, transition_begin=rest - decay)
    if warmup == 0:
        return after
    # The first update has a learning rate above 0: step 0 of the rise would be wasted.
    rise = optax.linear_schedule(learning_rate / warmup, learning_rate, max(1, warmup - 1))
    return optax.join_schedules([rise, after], [warmup])


def decay_mask(params: Any, names: list[str]) -> Any:
    """True at the parameters that decay: those whose last name is in ``names``."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in names, params)


def muon_dimensions(params: Any) -> Any:
    """The input and output axes of each kernel; None where Adam is used (embeddings, head, norms, biases).

    Kernels are stacked over layers, ``[L, ...]``: the leading axis is neither, so each layer is orthogonalised alone.
    Where all layers share their parameters there is no such axis.
    """

    def dimensions(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        names = [part.key for part in path]
        if "layers" not in names or names[-1] != "kernel":
            return None
        inputs, outputs = kernel_axes("/".join(names))
        first = leaf.ndim - inputs - outputs
        axes = tuple(range(first, leaf.ndim))
        return optax.contrib.MuonDimensionNumbers(reduction_axis=axes[:inputs], output_axis=axes[inputs:])

    return jax.tree_util.tree_map_with_path(dimensions, params)


def layer_scales(params: Any, freeze: list[str], layer_decay: float) -> Any:
    """Factors of each parameter's update: a number, or one per layer, ``[L, 1, ...]``.

    ``layer_decay ** d`` where ``d`` counts layers from the top: 0 for the head and the final norm, 1 for the last
    layer, ``L + 1`` for the embedding (Howard, Ruder 2018, "ULMFiT", section 3.2; Clark et al. 2020, appendix B). 0 for
    what is frozen. Each side of an encoder-decoder counts for itself.

    ``freeze`` has patterns of names, ``*`` for anything; a layer's parameters have its number in their name,
    ``layers/0/attention/query/kernel``. Raises ``UserError`` if a pattern fits no parameter.
    """
    used: set[str] = set()

    def frozen(name: str) -> bool:
        fitting = {pattern for pattern in freeze if fnmatchcase(name, pattern)}
        used.update(fitting)
        return bool(fitting)

    leaves = jax.tree_util.tree_leaves_with_path(params)
    deepest = max((leaf.shape[0] for path, leaf in leaves if _is_stacked(path, leaf)), default=0)

    def scale(path: Any, leaf: Any) -> Any:
        names = [part.key for part in path]
        if _is_stacked(path, leaf):
            first, count = names.index("layers") + 1, leaf.shape[0]
            each = ["/".join([*names[:first], str(i), *names[first:]]) for i in range(count)]
            rates = [0.0 if frozen(name) else layer_decay ** (count - i) for i, name in enumerate(each)]
            return np.array(rates, np.float32).reshape(-1, *(1,) * (leaf.ndim - 1))
        depth = deepest + 1 if {"embeddings", "shared", "relative_bias"} & set(names) else int("layers" in names)
        return 0.0 if frozen("/".join(names)) else layer_decay**depth

    scales = jax.tree_util.tree_map_with_path(scale, params)
    unused = [pattern for pattern in freeze if pattern not in used]
    if unused:
        example = "/".join(part.key for part in leaves[0][0])
        raise UserError(
            f"optimizer.freeze has {unused[0]!r}, which fits no parameter; their names are like {example} and "
            "layers/0/attention/query/kernel"
        )
    return scales


def _is_stacked(path: Any, leaf: Any) -> bool:
    """True if a parameter has the leading axis of stacked layers."""
    names = [part.key for part in path]
    return "layers" in names and bool(leaf.ndim > layer_ndim("/".join(names)))


def scaled_by_layer(
    optimizer: optax.GradientTransformation, freeze: list[str], layer_decay: float
) -> optax.GradientTransformation:
    """``optimizer`` with its updates multiplied by ``layer_scales``; frozen parameters have no gradient either.

    So what is frozen neither decays nor counts in the gradient's norm.
    """

    def drop_frozen(gradients: Any, params: Any) -> Any:
        scales = layer_scales(params, freeze, layer_decay)
        return jax.tree.map(lambda leaf, factor: leaf * np.sign(factor), gradients, scales)

    def by_layer(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda leaf, factor: leaf * factor, updates, layer_scales(params, freeze, layer_decay))

    return optax.chain(optax.stateless(drop_frozen), optimizer, optax.stateless(by_layer))


def build_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, then the optimizer with its decoupled weight decay.

    Every type decays by ``learning_rate * weight_decay * parameter`` on the parameters named in ``decay``; muon only on
    the kernels of the layers, since optax gives its Adam part no mask.
    """
    c = config

    def mask(params: Any) -> Any:
        return decay_mask(params, c.decay)

    decay = (optax.add_decayed_weights(c.weight_decay, mask), optax.scale_by_learning_rate(schedule))
    match c.type:
        case "adamw":
            optimizer = optax.adamw(schedule, c.beta1, c.beta2, c.epsilon, weight_decay=c.weight_decay, mask=mask)
        case "lion":
            optimizer = optax.lion(schedule, c.beta1, c.beta2, weight_decay=c.weight_decay, mask=mask)
        case "muon":
            # consistent_rms 0.2 gives updates the size of AdamW's, so that one learning rate serves both parts
            # (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).
            optimizer = optax.contrib.muon(
                schedule,
                beta=0.95 if c.momentum is None else c.momentum,
                adam_b1=c.beta1,
                adam_b2=c.beta2,
                weight_decay=c.weight_decay,
                weight_decay_mask=mask,
                muon_weight_dimension_numbers=muon_dimensions,
                consistent_rms=0.2,
            )
        case "adafactor":
            # optax's own decay is not multiplied by the learning rate, so decay is added where AdamW adds it.
            optimizer = optax.chain(optax.adafactor(None), optax.scale(-1.0), *decay)
        case "sgd":
            optimizer = optax.chain(optax.trace(c.momentum) if c.momentum else optax.identity(), *decay)
    if c.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(c.clip_norm), optimizer)
    if not c.freeze and c.layer_decay == 1.0:
        return optimizer
    return scaled_by_layer(optimizer, c.freeze, c.layer_decay)
