"""The mixture-of-experts feed-forward over ``functional.experts``: its parameters, its split over devices, its losses.

Logical axes beside those of ``layers``: ``experts`` E.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.layers import Projection, kernel_deviation
from jaxformer.models.partition import ExpertSplit, expert_split, platform

# The collection of variables in which a block leaves the sums of its router, for who asks for it.
ROUTER = "router"
# An array of a batch: in each row the prices of the experts, which are those of the whole batch.
PRICES = "expert_prices"


class ExpertKernel(nn.Module):
    """Declares the kernels of all experts, ``[E, inputs, outputs]``, and returns them.

    Attributes:
        shape: of the kernels.
        axes: their logical axis names.
        standard_deviation: of the initial values.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    standard_deviation: float

    @nn.compact
    def __call__(self) -> Any:
        """The kernels."""
        normal = nn.initializers.normal(self.standard_deviation)
        return self.param("kernel", nn.with_logical_partitioning(normal, self.axes), self.shape)


class Experts(nn.Module):
    """A feed-forward of which each token uses a few of several."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """Applies it to every token; ``real [B, T]`` is False at padding, which the router's losses leave out."""
        c = self.config
        D, inner, count = c.hidden_size, c.inner_size, c.num_experts or 0
        std, out_std = kernel_deviation(c, D), kernel_deviation(c, inner, to_residual=True)
        logits = F.linear(x, **Projection((D, count), ("embed", None), False, std, name="router")())
        routing = F.route(logits, c.experts_per_token, normalize=c.normalize_expert_weights)
        if has_router_losses(c) and not self.is_initializing():
            for name, total in F.router_sums(logits, routing, real)._asdict().items():
                self.sow(ROUTER, name, total)
        into, back = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
        weights = {"up": ExpertKernel((count, D, inner), into, std, name="up")()}
        if c.gated:
            weights["gate"] = ExpertKernel((count, D, inner), into, std, name="gate")()
        weights["down"] = ExpertKernel((count, inner, D), back, out_std, name="down")()
        compute = partial(F.expert_feed_forward, activation=c.activation, in_blocks=platform() == "cpu")
        split = expert_split(x.shape[0], x.shape[1], count, inner)
        if split is None:
            return _of_rows(compute, x, weights, routing.experts, routing.weights)
        return _on_devices(compute, split, x, weights, routing)


def _of_rows(compute: Any, x: jax.Array, weights: Any, experts: jax.Array, scales: jax.Array) -> jax.Array:
    """``compute`` with the tokens of all rows in one list."""
    flat = (array.reshape(-1, array.shape[-1]) for array in (experts, scales))
    y: jax.Array = compute(x.reshape(-1, x.shape[-1]), weights, *flat)
    return y.reshape(x.shape)


def _on_devices(compute: Any, split: ExpertSplit, x: jax.Array, weights: Any, routing: F.Routing) -> jax.Array:
    """``compute`` where each device has a part of the experts and of the rows.

    A device gathers the rows of those that have the other experts, computes what its own experts add to them, and the
    sums go back to where the rows are.
    """
    s = split
    size = F.expert_count(weights["up"]) // s.parts(s.experts)
    gathers = s.experts is not None and s.experts in (s.batch or ())

    def part(x: jax.Array, weights: Any, experts: jax.Array, scales: jax.Array) -> jax.Array:
        if gathers:
            x, experts, scales = (
                jax.lax.all_gather(array, s.experts, axis=0, tiled=True) for array in (x, experts, scales)
            )
        if s.experts is not None:
            own = experts - size * jax.lax.axis_index(s.experts)
            experts = jnp.where((own >= 0) & (own < size), own, size)
        y = _of_rows(compute, x, weights, experts, scales)
        if s.inner is not None:
            y = jax.lax.psum(y, s.inner)
        if gathers:
            return jax.lax.psum_scatter(y, s.experts, scatter_dimension=0, tiled=True)
        return y if s.experts is None else jax.lax.psum(y, s.experts)

    tokens = PartitionSpec(s.batch, s.length, None)
    axes = {"up": (None, s.inner), "gate": (None, s.inner), "down": (s.inner, None)}
    specs = {name: _kernel_spec(kernel, s.experts, *axes[name]) for name, kernel in weights.items()}
    mapped = jax.shard_map(part, mesh=s.mesh, in_specs=(tokens, specs, tokens, tokens), out_specs=tokens)
    return mapped(x, weights, routing.experts, routing.weights)


def _kernel_spec(kernel: Any, experts: Any, inputs: Any, outputs: Any) -> Any:
    """The split of a kernel ``[E, inputs, outputs]``, for each of its arrays."""
    if isinstance(kernel, F.LowRankKernel):
        return dataclasses.replace(
            kernel,
            kernel=_kernel_spec(kernel.kernel, experts, inputs, outputs),
            a=PartitionSpec(experts, inputs, None),
            b=PartitionSpec(experts, None, outputs),
        )
    whole = PartitionSpec(experts, inputs, outputs)
    return F.Quantized(whole, PartitionSpec(experts, None, outputs)) if isinstance(kernel, F.Quantized) else whole


def has_router_losses(config: TransformerConfig) -> bool:
    """True if the objective has a term of the router."""
    return config.num_experts is not None and bool(config.balance_loss or config.router_z_loss)


def sums_of(state: Mapping[str, Any], config: TransformerConfig) -> F.RouterSums:
    """The sums over layers, of the collection ``ROUTER``."""
    found: dict[str, jax.Array] = {}
    for path, (total,) in flatten_dict(dict(state)).items():
        # A number or a vector of each layer, which are stacked or have names of their own.
        vector = path[-1] in ("choices", "probabilities")
        added = jnp.sum(total.reshape(-1, config.num_experts or 0), axis=0) if vector else jnp.sum(total)
        found[path[-1]] = found[path[-1]] + added if path[-1] in found else added
    return F.RouterSums(**found)
