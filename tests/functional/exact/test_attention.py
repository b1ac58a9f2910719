"""Exact attention against ``dot_product_attention``, and its bits for a query alone and in a longer cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.functional.attention import heads_first, zero_padding
from jaxformer.functional.exact.attention import exact_attention

B, N, K, H, T = 3, 6, 3, 20, 150
KEY = jax.random.key(0)


def drawn(T=T, S=T):
    keys = jax.random.split(KEY, 3)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H)
    return [2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


LENGTHS = jnp.array([T, 70, 3])
REAL = jnp.arange(T) < LENGTHS[:, None]
DOCUMENTS = 1 + jnp.arange(T)[None].repeat(B, 0) // 50
MASKS = {
    "none": F.Mask(),
    "causal": F.Mask(causal=True),
    "padding": F.Mask(causal=True, key_valid=REAL),
    "window": F.Mask(causal=True, window=40),
    "both sides": F.Mask(window=40, key_valid=REAL),
    "prefix": F.Mask(causal=True, key_prefix=jnp.arange(T)[None] < jnp.array([[90], [1], [0]])),
    "documents": F.Mask(causal=True, query_segments=DOCUMENTS, key_segments=DOCUMENTS),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("switches", [{}, {"scale": 0.1, "bias": True}, {"dropout_rate": 0.3}], ids=str)
@pytest.mark.default_cases(
    "{}-causal", "{}-documents", "{}-padding", "*'bias': True}-window", "*'dropout_rate': 0.3}-prefix"
)
def test_computes_attention(name, switches):
    mask, switches = MASKS[name], dict(switches)
    query, key, value = drawn()
    if switches.pop("bias", False):
        switches["bias"] = jax.random.normal(KEY, (1, N, T, T))
    if "dropout_rate" in switches:
        switches["dropout_keys"] = jax.random.split(KEY, B)

    def exact(query, key, value):
        key, value = (heads_first(x) for x in zero_padding(mask, key, value))
        return exact_attention(query, key, value, mask=mask, **switches)

    def reference(query, key, value):
        return F.dot_product_attention(query, key, value, mask=mask, **switches)

    expected = np.asarray(reference(query, key, value))
    np.testing.assert_allclose(exact(query, key, value), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    found, wanted = (
        jax.grad(lambda *x, f=f: jnp.sum(jnp.sin(f(*x))), argnums=(0, 1, 2))(query, key, value)
        for f in (exact, reference)
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("width", [4, 20, 32])
def test_a_query_alone_over_a_longer_cache(width):
    query, key, value = (x[..., :width] for x in drawn())
    key, value = heads_first(key), heads_first(value)
    attend = jax.jit(exact_attention)
    whole = np.asarray(attend(query, key, value, mask=F.Mask(causal=True)))
    room = ((0, 0), (0, 0), (0, 90), (0, 0))
    for at in (0, 63, 64, 149):
        for rows in (1, 3):
            seen = F.Mask(
                causal=True, query_offset=jnp.full((rows, 1, 1), at), key_valid=jnp.arange(T + 90)[None] <= at
            )
            seen = F.Mask(
                causal=True, query_offset=seen.query_offset, key_valid=jnp.repeat(seen.key_valid, rows, axis=0)
            )
            parts = query[:rows, at : at + 1], jnp.pad(key[:rows], room), jnp.pad(value[:rows], room)
            assert np.array_equal(attend(*parts, mask=seen), whole[:rows, at : at + 1]), (at, rows)


def test_a_query_that_sees_nothing_gets_zeros():
    query, key, value = drawn()
    mask = F.Mask(key_valid=jnp.zeros((B, T), bool))
    assert not np.any(exact_attention(query, heads_first(key), heads_first(value), mask=mask))
