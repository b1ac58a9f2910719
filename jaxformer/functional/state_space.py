"""State-space models: Mamba's selective scan and Mamba-2's state-space duality.

Letters beside those of the other files: ``I`` channels, ``R`` entries of a channel's
state, ``P`` width of a head of Mamba-2, ``G`` groups of heads that share B and C. A state is what all earlier tokens
left behind, of one size however many they were: the caller passes it in and gets it back.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def _in_chunks(
    step: Callable[[Any, Any], tuple[Any, Array]], state: Array, arrays: tuple[Any, ...], chunk: int
) -> tuple[Array, Array]:
    """Runs ``step`` over chunks of tokens, one after the other, and keeps only the states between them for a gradient.

    ``arrays`` are ``[B, T, ...]``; the last chunk is filled with zeros, which leave the state as it is.
    """
    T = arrays[0].shape[1]
    size = min(chunk, T)
    count = -(-T // size)

    def split(array: Array) -> Array:
        padded = jnp.pad(array, ((0, 0), (0, count * size - T), *((0, 0),) * (array.ndim - 2)))
        return padded.reshape(len(array), count, size, *array.shape[2:]).swapaxes(0, 1)

    if count == 1:
        state, y = step(state, arrays)
        return y, state
    state, y = jax.lax.scan(jax.checkpoint(step), state, jax.tree.map(split, arrays))
    y = y.swapaxes(0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :T], state


def selective_scan(
    x: Float[Array, "B T I"],
    time_step: Float[Array, "B T I"],
    rates: Float[Array, "I R"],
    inputs: Float[Array, "B T R"],
    outputs: Float[Array, "B T R"],
    *,
    state: Float[Array, "B R I"] | None = None,
    starts: Bool[Array, "B T"] | None = None,
    chunk: int = 16,
    recurrent: bool = False,
) -> tuple[Float[Array, "B T I"], Float[Array, "B R I"]]:
    """Mamba's recurrence ``h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]``, ``y[t] = C[t] h[t]``; float32.

    Gu, Dao 2023, "Mamba", equations 2 and 4 and algorithm 2. The pairs ``(exp(dt A), dt B x)`` compose associatively,
    so that the tokens of a chunk are one parallel scan (ibid., section 3.3.2; Blelloch 1990, "Prefix Sums and Their
    Applications"); chunks follow one another, and a gradient computes their states again.

    On a CPU the recurrence itself is faster: 12 rows of 256 tokens, 384 channels with states of 16, forward and
    backward, take 234 ms so and 1,700 ms by parallel scans (two cores).

    Args:
        x: the channels' inputs.
        time_step: ``dt``, not negative. A token with 0 changes nothing: padding.
        rates: ``A``, negative.
        inputs: ``B``.
        outputs: ``C``.
        state: before the first token; default zeros.
        starts: True at the first token of each document of a packed row, before which the state is forgotten.
        chunk: tokens whose states are in memory at once.
        recurrent: compute the tokens of a chunk one after the other, instead of by a parallel scan.

    Returns:
        ``y``, and the state after the last token.
    """
    x, time_step, inputs, outputs = (array.astype(jnp.float32) for array in (x, time_step, inputs, outputs))
    rates = rates.astype(jnp.float32).T
    if state is None:
        state = jnp.zeros((x.shape[0], *rates.shape), jnp.float32)

    def combine(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    def token(state: Array, part: Any) -> tuple[Array, Array]:
        x, dt, inputs, outputs, starts = part
        decay = jnp.exp(dt[:, None] * rates)
        if starts is not None:
            decay = jnp.where(starts[:, None, None], 0.0, decay)
        state = decay * state + (dt * x)[:, None] * inputs[..., None]
        return state, jnp.sum(state * outputs[..., None], axis=1)

    def step(state: Array, part: Any) -> tuple[Array, Array]:
        x, dt, inputs, outputs, starts = part
        T = x.shape[1]
        if recurrent or T == 1:
            state, y = jax.lax.scan(token, state, jax.tree.map(lambda array: array.swapaxes(0, 1), part), unroll=T)
            return state, y.swapaxes(0, 1)
        decay = jnp.exp(dt[:, :, None] * rates)
        if starts is not None:
            decay = jnp.where(starts[..., None, None], 0.0, decay)
        added = (dt * x)[:, :, None] * inputs[..., None]
        decay, states = jax.lax.associative_scan(combine, (decay, added), axis=1)
        states = decay * state[:, None] + states
        return states[:, -1], jnp.einsum("btri,btr->bti", states, outputs)

    return _in_chunks(step, state, (x, time_step, inputs, outputs, starts), chunk)


def state_space_duality(
    x: Float[Array, "B T N P"],
    time_step: Float[Array, "B T N"],
    rates: Float[Array, " N"],
    inputs: Float[Array, "B T G R"],
    outputs: Float[Array, "B T G R"],
    *,
    state: Float[Array, "B N P R"] | None = None,
    starts: Bool[Array, "B T"] | None = None,
    chunk: int = 32,
) -> tuple[Float[Array, "B T N P"], Float[Array, "B N P R"]]:
    """Mamba-2's recurrence ``h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]^T``, ``y[t] = h[t] C[t]``; float32.

    Dao, Gu 2024, "Transformers are SSMs", section 6 and listing 1: within a chunk it is attention without softmax,
    ``y = (L * C B^T) (dt x)`` with ``L[t, s] = exp(sum of dt A over s < r <= t)``; a chunk's state goes to the next.

    Args:
        x: the heads' inputs.
        time_step: ``dt``, not negative. A token with 0 changes nothing: padding.
        rates: ``A``, a negative number for each head.
        inputs: ``B``; ``N / G`` heads share a group's.
        outputs: ``C``, likewise.
        state: before the first token; default zeros.
        starts: True at the first token of each document of a packed row, before which the state is forgotten.
        chunk: tokens that attend to each other.

    Returns:
        ``y``, and the state after the last token.
    """
    x, time_step, inputs, outputs = (array.astype(jnp.float32) for array in (x, time_step, inputs, outputs))
    rates = rates.astype(jnp.float32)
    (B, _, N, P), (G, R) = x.shape, inputs.shape[2:]
    if state is None:
        state = jnp.zeros((B, N, P, R), jnp.float32)
    grouped = partial(jnp.reshape, shape=(B, G, N // G, P, R))

    def step(state: Array, part: Any) -> tuple[Array, Array]:
        x, dt, inputs, outputs, starts = part
        T = x.shape[1]
        total = jnp.cumsum(dt * rates, axis=1)  # [B, T, N], logarithm of the decay since the chunk's beginning
        causal = jnp.tril(jnp.ones((T, T), bool))[None]
        document = jnp.zeros((1, T), int) if starts is None else jnp.cumsum(starts, axis=1)
        sees = causal & (document[:, :, None] == document[:, None, :])
        # The exponent is at most 0 where it counts; elsewhere it might overflow, and its gradient with it.
        exponent = jnp.where(sees[..., None], total[:, :, None] - total[:, None, :], 0.0)
        decay = jnp.where(sees[..., None], jnp.exp(exponent), 0.0)  # [B, T, S, N]
        scores = jnp.einsum("btgr,bsgr->btsg", outputs, inputs)
        weights = decay.reshape(*decay.shape[:3], G, -1) * scores[..., None]
        added = (dt[..., None] * x).reshape(B, T, G, N // G, P)
        y = jnp.einsum("btsgn,bsgnp->btgnp", weights, added)
        carried = jnp.where((document == 0)[..., None], jnp.exp(total), 0.0).reshape(-1, T, G, N // G)
        carried = jnp.broadcast_to(carried, (B, T, G, N // G))
        y = y + jnp.einsum("btgn,btgr,bgnpr->btgnp", carried, outputs, grouped(state))
        left = jnp.broadcast_to(decay[:, -1], (B, T, N)).reshape(B, T, G, N // G)
        new = jnp.einsum("btgn,btgr,btgnp->bgnpr", left, inputs, added)
        new = new + carried[:, -1, :, :, None, None] * grouped(state)
        return new.reshape(state.shape), y.reshape(B, T, N, P)

    return _in_chunks(step, state, (x, time_step, inputs, outputs, starts), chunk)
