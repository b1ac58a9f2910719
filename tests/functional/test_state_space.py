"""State-space models against their recurrences, token by token in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F

B, T, CHANNELS, R = 2, 11, 5, 3
N, P, G = 4, 3, 2
STARTS = np.zeros((B, T), bool)
STARTS[0, [0, 4, 9]] = STARTS[1, [0, 1, 5]] = True
scan = jax.jit(F.selective_scan, static_argnames=("chunk", "recurrent"))
recurrent = partial(scan, recurrent=True)
duality = jax.jit(F.state_space_duality, static_argnames="chunk")


def draw(*shape, seed=0):
    return np.random.default_rng(sum(shape) + seed).standard_normal(shape)


def mamba():
    """Arguments in float64."""
    step = np.log1p(np.exp(draw(B, T, CHANNELS)))
    rates = -np.exp(0.5 * draw(CHANNELS, R))
    return draw(B, T, CHANNELS, seed=1), step, rates, draw(B, T, R, seed=2), draw(B, T, R, seed=3)


def mamba_by_hand(x, step, rates, inputs, outputs, state=None, starts=None):
    y = np.zeros(x.shape)
    final = np.zeros((B, R, CHANNELS)) if state is None else state.copy()
    for b in range(B):
        for t in range(x.shape[1]):
            if starts is not None and starts[b, t]:
                final[b] = 0
            for i in range(CHANNELS):
                decay = np.exp(step[b, t, i] * rates[i])
                final[b, :, i] = decay * final[b, :, i] + step[b, t, i] * inputs[b, t] * x[b, t, i]
                y[b, t, i] = outputs[b, t] @ final[b, :, i]
    return y, final


def mamba2():
    step = np.log1p(np.exp(draw(B, T, N)))
    rates = -np.exp(0.5 * draw(N))
    return draw(B, T, N, P, seed=1), step, rates, draw(B, T, G, R, seed=2), draw(B, T, G, R, seed=3)


def mamba2_by_hand(x, step, rates, inputs, outputs, state=None, starts=None):
    y = np.zeros(x.shape)
    final = np.zeros((B, N, P, R)) if state is None else state.copy()
    for b in range(B):
        for t in range(x.shape[1]):
            if starts is not None and starts[b, t]:
                final[b] = 0
            for n in range(N):
                g = n // (N // G)
                final[b, n] = np.exp(step[b, t, n] * rates[n]) * final[b, n]
                final[b, n] += step[b, t, n] * np.outer(x[b, t, n], inputs[b, t, g])
                y[b, t, n] = final[b, n] @ outputs[b, t, g]
    return y, final


CASES = {
    "mamba": (scan, mamba, mamba_by_hand, (B, R, CHANNELS)),
    "mamba, recurrent": (recurrent, mamba, mamba_by_hand, (B, R, CHANNELS)),
    "mamba2": (duality, mamba2, mamba2_by_hand, (B, N, P, R)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_the_parallel_form_is_the_recurrence(name, chunk):
    run, make, by_hand, shape = CASES[name]
    arguments, state = make(), draw(*shape, seed=7)
    for extra in ({}, {"state": state}, {"starts": STARTS}):
        expected = by_hand(*arguments, **extra)
        as32 = {name: jnp.asarray(array, bool if array.dtype == bool else jnp.float32) for name, array in extra.items()}
        got = run(*(jnp.asarray(array, jnp.float32) for array in arguments), **as32, chunk=chunk)
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_its_gradient_is_the_difference_quotient_of_the_recurrence(name):
    run, make, by_hand, _ = CASES[name]
    arguments = make()

    def loss(*arguments):
        return jnp.sum(jnp.sin(run(*arguments, starts=jnp.asarray(STARTS), chunk=4)[0]))

    gradients = jax.jit(jax.grad(loss, argnums=range(5)))(*(jnp.asarray(a, jnp.float32) for a in arguments))
    directions = [draw(*a.shape, seed=9) for a in arguments]
    got = sum(float(np.sum(np.asarray(g, np.float64) * d)) for g, d in zip(gradients, directions, strict=True))

    def moved(step):
        places = [a + step * d for a, d in zip(arguments, directions, strict=True)]
        return np.sin(by_hand(*places, starts=STARTS)[0]).sum()

    np.testing.assert_allclose(got, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_a_text_in_two_calls_is_the_text_in_one(name):
    run, make, _, _ = CASES[name]
    x, step, rates, inputs, outputs = (jnp.asarray(a, jnp.float32) for a in make())
    whole, final = run(x, step, rates, inputs, outputs)
    first, state = run(x[:, :7], step[:, :7], rates, inputs[:, :7], outputs[:, :7])
    rest, last = run(x[:, 7:], step[:, 7:], rates, inputs[:, 7:], outputs[:, 7:], state=state)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, final, rtol=1e-5, atol=1e-5)
