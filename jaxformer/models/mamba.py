"""Mamba and Mamba-2 in the place of attention and feed-forward, over ``functional.state_space``, and their states.

Logical axes are those of ``layers``; the channels are ``mlp``.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.layers import PACKED, Projection, apart, for_products
from jaxformer.models.partition import place, platform
from jaxformer.schema import UserError

# Initial time steps, log-uniform between these, and the smallest one: Gu, Dao 2023, "Mamba", section 3.6, and its code.
STEPS, SMALLEST_STEP = (1e-3, 1e-1), 1e-4
# Initial rates of Mamba-2's heads, uniform between these: the code of Dao, Gu 2024, "Transformers are SSMs".
RATES = (1.0, 16.0)


class MixerState(NamedTuple):
    """All that a layer keeps of earlier tokens.

    Attributes:
        tail: ``[B, W - 1, channels]``, the last inputs of the convolution.
        state: ``[B, R, I]`` of Mamba, ``[B, N, P, R]`` of Mamba-2, float32.
    """

    tail: jax.Array
    state: jax.Array


def empty_states(config: TransformerConfig, batch: tuple[int, ...], dtype: str | None) -> MixerState:
    """The state before the first token.

    Args:
        config: of the model.
        batch: ``[B]``, or ``[L, B]`` for all layers.
        dtype: of the tail; default the compute dtype.

    Raises:
        UserError: if it is int8.
    """
    c = config
    if dtype == "int8":
        raise UserError(
            f"cache_dtype is int8 for a model with mixer {c.mixer}, expected float32 or bfloat16: its state is written "
            "anew at every token, and the rounding would add up"
        )
    shape = (c.state_size, c.inner_size) if c.mixer == "mamba" else (c.num_heads, c.channel_head, c.state_size)
    tail = jnp.zeros((*batch, c.conv_size - 1, c.conv_channels), dtype or c.dtype)
    return MixerState(tail, jnp.zeros((*batch, *shape), jnp.float32))


def _inverse_softplus_of_steps(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    low, high = (jnp.log(step) for step in STEPS)
    steps = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, dtype, low, high)), SMALLEST_STEP)
    return steps + jnp.log(-jnp.expm1(-steps))


def _logs_of_state_numbers(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """``A = -1, -2, ..., -R`` in every channel: S4D-real (Gu et al. 2022, "S4D", section 4.1)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype)), shape)


def _logs_of_rates(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jnp.log(jax.random.uniform(key, shape, dtype, *RATES))


def _symmetric(bound: float) -> Any:
    """Uniform between ``-bound`` and ``bound``."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


class Convolution(nn.Module):
    """The causal depthwise convolution and its activation."""

    config: TransformerConfig
    axis: str | None

    @nn.compact
    def __call__(self, x: jax.Array, tail: jax.Array | None, starts: jax.Array | None) -> jax.Array:
        """Convolves the channels of ``x [B, T, channels]``."""
        c, size = self.config, x.shape[-1]
        uniform = nn.with_logical_partitioning(_symmetric(c.conv_size**-0.5), (None, self.axis))
        taps = self.param("taps", uniform, (c.conv_size, size))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,)), (size,))
        y = F.causal_convolution(x, taps, bias, tail=tail, starts=starts)
        activated: jax.Array = apart(c)(F.ACTIVATIONS[c.activation], y)
        return activated


class TimeStep(nn.Module):
    """``dt = softplus(low W + bias)``; float32.

    Attributes:
        size: of ``dt``.
        axis: its logical axis.
        rank: of ``low``; None: ``low`` has the size of ``dt`` and there is no ``W``.
    """

    size: int
    axis: str | None
    rank: int | None = None

    @nn.compact
    def __call__(self, low: jax.Array, real: jax.Array | None) -> jax.Array:
        """The time steps, 0 at padding, so that it changes no state."""
        if self.has_variable("params", PACKED):
            low = F.linear(low, self.get_variable("params", PACKED))
        elif self.rank is not None:
            draw = nn.with_logical_partitioning(_symmetric(self.rank**-0.5), (None, self.axis))
            low = F.linear(low, for_products(self.param("kernel", draw, (self.rank, self.size))))
        initial = nn.with_logical_partitioning(_inverse_softplus_of_steps, (self.axis,))
        steps = jax.nn.softplus(low.astype(jnp.float32) + self.param("bias", initial, (self.size,)))
        return steps if real is None else jnp.where(real[..., None], steps, 0.0)


def _deviation(inputs: int) -> float:
    """That of PyTorch's linear layers, which the published code keeps."""
    return float((3 * inputs) ** -0.5)


def _next_state(mixed: jax.Array, state: jax.Array, before: MixerState | None, real: jax.Array | None) -> Any:
    """The state after these tokens; None where none was passed."""
    if before is None:
        return None
    counts = jnp.full(len(mixed), mixed.shape[1]) if real is None else jnp.sum(real, axis=1)
    return MixerState(F.convolution_tail(mixed, before.tail, counts), state)


class Mamba(nn.Module):
    """Mamba's mixer: ``(scan(silu(conv(x W_x))) * silu(x W_z)) W_out``, with steps and B, C made of the scan's input.

    Gu, Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 3.4.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, real: jax.Array | None, starts: jax.Array | None, before: MixerState | None
    ) -> tuple[jax.Array, MixerState | None]:
        """Mixes the tokens of ``x [B, T, D]``, real ones first.

        Args:
            x: the tokens.
            real: ``[B, T]`` bool, False at padding.
            starts: ``[B, T]`` bool, True at the first token of each document of a packed row.
            before: of the tokens before, which is then returned with these.
        """
        c, D, inner, R, rank = (
            self.config,
            x.shape[-1],
            self.config.inner_size,
            self.config.state_size,
            self.config.rank,
        )
        std = _deviation(D)
        into = Projection((D, inner), ("embed", "mlp"), False, std, name="inner")()
        gate = F.linear(x, **Projection((D, inner), ("embed", "mlp"), False, std, name="gate")())
        mixed = place(F.linear(x, **into), "batch", None, "mlp")
        u = Convolution(c, "mlp", name="conv")(mixed, None if before is None else before.tail, starts)
        chosen = Projection((inner, rank + 2 * R), ("mlp", None), False, _deviation(inner), name="select")()
        low, inputs, outputs = jnp.split(F.linear(u, **chosen), (rank, rank + R), axis=-1)
        steps = TimeStep(inner, "mlp", rank, name="time_step")(low, real)
        rates = self.param("A_log", nn.with_logical_partitioning(_logs_of_state_numbers, ("mlp", None)), (inner, R))
        skip = self.param("D", nn.with_logical_partitioning(nn.initializers.ones, ("mlp",)), (inner,))
        y, state = F.selective_scan(
            u,
            steps,
            -jnp.exp(rates),
            inputs,
            outputs,
            state=None if before is None else before.state,
            starts=starts,
            recurrent=platform() == "cpu",
        )
        y = (y + skip * u).astype(x.dtype) * F.ACTIVATIONS[c.activation](gate)
        out = Projection((inner, D), ("mlp", "embed"), False, _deviation(inner) * c.num_layers**-0.5, name="output")()
        return F.linear(y, **out), _next_state(mixed, state, before, real)


class Mamba2(nn.Module):
    """Mamba-2's mixer: one projection, a scan of heads, and a norm of the gated result before the last projection.

    Dao, Gu 2024, "Transformers are SSMs", section 7.1; the norm is that of each group.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, real: jax.Array | None, starts: jax.Array | None, before: MixerState | None
    ) -> tuple[jax.Array, MixerState | None]:
        """As ``Mamba``."""
        c, D, inner, N = self.config, x.shape[-1], self.config.inner_size, self.config.num_heads
        B, T, _ = x.shape
        G, R = c.state_groups, c.state_size
        shape = (D, inner + c.conv_channels + N)
        joined = F.linear(x, **Projection(shape, ("embed", None), False, _deviation(D), name="input")())
        gate, mixed, low = jnp.split(place(joined, "batch", None, None), (inner, inner + c.conv_channels), axis=-1)
        u = Convolution(c, None, name="conv")(mixed, None if before is None else before.tail, starts)
        heads, inputs, outputs = jnp.split(u, (inner, inner + G * R), axis=-1)
        heads = heads.reshape(B, T, N, -1)
        steps = TimeStep(N, None, name="time_step")(low, real)
        rates = self.param("a_log", nn.with_logical_partitioning(_logs_of_rates, (None,)), (N,))
        skip = self.param("D", nn.with_logical_partitioning(nn.initializers.ones, (None,)), (N,))
        y, state = F.state_space_duality(
            heads,
            steps,
            -jnp.exp(rates),
            inputs.reshape(B, T, G, R),
            outputs.reshape(B, T, G, R),
            state=None if before is None else before.state,
            starts=starts,
        )
        y = (y + skip[:, None] * heads).reshape(B, T, inner) * F.silu(gate.astype(jnp.float32))
        y = GroupNorm(c.norm_epsilon, G, name="norm")(y).astype(x.dtype)
        out = Projection((inner, D), ("mlp", "embed"), False, _deviation(inner) * c.num_layers**-0.5, name="output")()
        return F.linear(y, **out), _next_state(mixed, state, before, real)


class GroupNorm(nn.Module):
    """RMS norm of each of ``groups`` equal parts of the last axis, with one scale for all entries."""

    epsilon: float
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("mlp",))
        scale, parts = self.param("scale", ones, (x.shape[-1],)), x.reshape(*x.shape[:-1], self.groups, -1)
        return F.rms_norm(parts, jnp.ones(parts.shape[-1]), epsilon=self.epsilon).reshape(x.shape) * scale


MIXERS: dict[str, Any] = {"mamba": Mamba, "mamba2": Mamba2}
