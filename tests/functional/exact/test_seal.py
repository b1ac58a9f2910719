"""Sealed programs: nothing is joined across their walls, and gradients are those of the function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.functional.exact.seal import TILE, by_rows, call, sealed


def test_a_call_stays_a_call_when_compiled():
    x = jnp.ones((8, 8))
    compiled = jax.jit(lambda x: jnp.sin(call(jnp.cos, x) * 2)).lower(x).compile().as_text()
    entry = compiled[compiled.index("ENTRY") :]
    assert " call(" in entry and "cosine" not in entry
    assert "cosine" not in jax.jit(lambda x: call(lambda x: x + 1, x)).lower(x).compile().as_text()


def test_calls_inside_are_joined():
    """The attribute is for the call alone: functions of jax.numpy are jitted, and would each become a call."""
    text = (
        jax.jit(lambda x: call(lambda x: jnp.where(x > 0, jax.nn.gelu(x), 0.0), x))
        .lower(jnp.ones(8))
        .compile()
        .as_text()
    )
    assert text.count(" call(") == 1


def test_gradients_and_facts():
    def function(args, facts):
        x, w = args
        return jnp.where(facts["keep"], jnp.tanh(x @ w), 0.0)

    x, w = jax.random.normal(jax.random.key(0), (2, 3, 3))
    facts = {"keep": jnp.array([[True], [False], [True]])}
    found = jax.grad(lambda *args: jnp.sum(sealed(function, args, facts) ** 2), argnums=(0, 1))(x, w)
    expected = jax.grad(lambda *args: jnp.sum(function(args, facts) ** 2), argnums=(0, 1))(x, w)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("lead", [(1,), (3, 5), (2, TILE), (7, 31)])
def test_rows_are_filled_up_and_cut_back(lead, tiles):
    random = np.random.default_rng(0)
    x, w = random.standard_normal((*lead, 6)).astype(np.float32), random.standard_normal(6).astype(np.float32)
    x, w, index = map(jnp.asarray, (x, w, random.integers(0, 6, lead)))

    def function(args, facts):
        (x,), (w,) = args
        assert len(x) % TILE == 0
        return (x * w).sum(-1) + jnp.take_along_axis(x, facts[0][0][:, None], axis=1)[:, 0]

    def total(x, w):
        return by_rows(function, lead, (x,), (w,), (index,), tiles=tiles)

    expected = (x * w).sum(-1) + np.take_along_axis(np.asarray(x), np.asarray(index)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(total(x, w), expected, rtol=1e-5, atol=1e-5)
    # The filling has no part in the gradient of what rows share.
    np.testing.assert_allclose(jax.grad(lambda w: total(x, w).sum())(w), x.reshape(-1, 6).sum(0), rtol=1e-4, atol=1e-5)
