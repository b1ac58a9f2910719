"""Attention against a slow float64 reference, against JAX's own function, and every path against every other."""

import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.functional import Mask, example_keys
from jaxformer.functional.attention import head_norm, project_key_value, project_query
from jaxformer.functional.kernels import choose

# One compilation instead of one for each operation. A mask that is an argument also shows that it survives jit.
STATIC = ("scale", "softcap", "dropout_rate", "implementation", "return_weights")
multi_head_attention = jax.jit(F.multi_head_attention, static_argnames=STATIC)


@functools.partial(jax.jit, static_argnames=STATIC)
def dot_product_attention(query, key, value, *, mask=None, implementation=None, **options):
    if implementation is None:
        return F.dot_product_attention(query, key, value, mask=mask, **options)
    mask = Mask() if mask is None else mask
    return F.kernel_attention(query, key, value, mask=mask, platform="cpu", implementation=implementation, **options)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def draw(seed, B=2, T=7, S=None, N=6, K=3, H=4):
    """Queries, keys and values; the sizes are odd on purpose and differ from each other."""
    return normal(seed, B, T, N, H), normal(seed + 100, B, S or T, K, H), normal(seed + 200, B, S or T, K, H)


def may_attend(b, t, s, *, causal=False, window=None, key_valid=None, segments=None):
    """The definition of the mask, one query and one key at a time."""
    if causal and s > t:
        return False
    if window is not None and abs(t - s) >= window:
        return False
    if key_valid is not None and not key_valid[b][s]:
        return False
    return segments is None or (segments[b][t] == segments[b][s] and segments[b][t] > 0)


def reference(query, key, value, *, bias=None, scale=None, softcap=None, **mask):
    """Attention in float64 numpy, one query of one head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    (B, T, N, H), (S, K) = query.shape, key.shape[1:3]
    scale = H**-0.5 if scale is None else scale
    bias = np.zeros((B, N, T, S)) if bias is None else np.broadcast_to(np.asarray(bias, np.float64), (B, N, T, S))
    output = np.zeros((B, T, N, H))
    for b, t, n in np.ndindex(B, T, N):
        seen = [s for s in range(S) if may_attend(b, t, s, **mask)]
        if not seen:
            continue
        head = n // (N // K)
        scores = key[b, seen, head] @ query[b, t, n] * scale
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores + bias[b, n, t, seen])
        output[b, t, n] = weights @ value[b, seen, head] / weights.sum()
    return output


def as_mask(*, causal=False, window=None, key_valid=None, segments=None):
    segments = None if segments is None else jnp.array(segments)
    valid = None if key_valid is None else jnp.array(key_valid, bool)
    return Mask(causal, window, valid, segments, segments)


VALID = [[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]
SEGMENTS = [[1, 1, 1, 2, 2, 3, 0], [1, 2, 2, 2, 2, 0, 0]]
MASKS = {
    "none": {},
    "causal": {"causal": True},
    "causal window": {"causal": True, "window": 3},
    "window on both sides": {"window": 2},
    "padding": {"key_valid": VALID},
    "causal padding": {"causal": True, "key_valid": VALID},
    "segments": {"segments": SEGMENTS},
    "causal segments": {"causal": True, "segments": SEGMENTS},
    "everything": {"causal": True, "window": 3, "key_valid": VALID, "segments": SEGMENTS},
}


def test_by_hand():
    # Scores ln 1 and ln 3 with scale 1: weights 1/4 and 3/4.
    query = jnp.array([1.0]).reshape(1, 1, 1, 1)
    key = jnp.log(jnp.array([1.0, 3.0])).reshape(1, 2, 1, 1)
    value = jnp.array([4.0, 8.0]).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(dot_product_attention(query, key, value, scale=1.0), [[[[7.0]]]], rtol=1e-6)


@pytest.mark.parametrize("kind", MASKS)
def test_masks_against_float64(kind):
    arrays = draw(0)
    expected = reference(*arrays, **MASKS[kind])
    for implementation in ("auto", "reference", *(["blocked"] if MASKS[kind].get("causal") else [])):
        got = dot_product_attention(*arrays, mask=as_mask(**MASKS[kind]), implementation=implementation)
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 1.0},
        {"scale": 0.3, "softcap": 0.7},
        {"bias": (2, 6, 7, 7)},
        {"bias": (1, 6, 7, 7)},
        {"bias": (2, 1, 1, 7)},
        {"bias": (1, 1, 7, 1), "softcap": 2.0},
    ],
    ids=str,
)
def test_options_against_float64(options):
    arrays = draw(1)
    if "bias" in options:
        options = {**options, "bias": normal(9, *options["bias"])}
    expected = reference(*arrays, causal=True, **options)
    for implementation in ("reference", "blocked"):
        got = dot_product_attention(*arrays, mask=Mask(causal=True), implementation=implementation, **options)
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("N", "K"), [(6, 6), (6, 2), (6, 1), (5, 5)])
def test_grouped_heads(N, K):
    arrays = draw(2, N=N, K=K)
    np.testing.assert_allclose(dot_product_attention(*arrays), reference(*arrays), atol=1e-5)


def test_queries_and_keys_may_differ_in_number():
    arrays = draw(3, T=3, S=8)
    np.testing.assert_allclose(dot_product_attention(*arrays), reference(*arrays), atol=1e-5)


def test_a_query_offset_is_the_end_of_the_whole():
    query, key, value = draw(4)
    whole = dot_product_attention(query, key, value, mask=Mask(causal=True))
    for offset in (5, jnp.array(5)):
        last = dot_product_attention(query[:, 5:], key, value, mask=Mask(causal=True, query_offset=offset))
        np.testing.assert_allclose(last, whole[:, 5:], atol=1e-6)


def test_value_and_gradient_against_jax():
    query, key, value = draw(5)
    bias = normal(6, 1, 6, 7, 7)
    valid = jnp.array(VALID, bool).at[:, 0].set(True)  # JAX defines no output for a row that sees nothing

    def ours(query, key, value, bias):
        mask = Mask(causal=True, key_valid=valid)
        return jnp.sum(jnp.sin(dot_product_attention(query, key, value, mask=mask, bias=bias)))

    def theirs(query, key, value, bias):
        mask = valid[:, None, None]
        output = jax.nn.dot_product_attention(query, key, value, bias, mask, is_causal=True, implementation="xla")
        return jnp.sum(jnp.sin(output))

    every = (0, 1, 2, 3)
    got = jax.jit(jax.value_and_grad(ours, every))(query, key, value, bias)
    expected = jax.jit(jax.value_and_grad(theirs, every))(query, key, value, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


def gradients(implementation, mask, options, dtype=jnp.float32):
    def total(arrays):
        output = dot_product_attention(*arrays, mask=mask, implementation=implementation, **options)
        # Every entry gets a weight of its own, so that no error cancels another.
        return jnp.sum(output * jnp.cos(jnp.arange(output.size)).reshape(output.shape).astype(dtype)), output

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def long_mask(kind, T):
    """The masks above, stretched over ``T`` tokens."""
    t = jnp.arange(T)
    segments = jnp.stack([1 + t // 30, jnp.where(t < T - 2, 1 + t // 70, 0)])
    valid = jnp.stack([t < max(1, T - 5), t >= min(T - 1, 3)])
    positions = jnp.stack([t, jnp.maximum(t - 3, 0)])
    return {
        "causal": Mask(causal=True),
        "window": Mask(causal=True, window=10),
        "window by positions": Mask(True, 10, valid, query_positions=positions, key_positions=positions),
        "everything": Mask(True, 70, valid, segments, segments),
    }[kind]


LENGTHS = [
    *((kind, 200) for kind in ("causal", "window", "window by positions")),
    *(("everything", T) for T in (1, 63, 64, 65, 200)),
]


@pytest.mark.parametrize(("kind", "T"), LENGTHS)
def test_blocked_is_reference_in_value_and_gradient(kind, T):
    arrays, mask, options = draw(7, T=T, N=4, K=2), long_mask(kind, T), {}
    if kind == "everything":
        options = {"bias": normal(8, 1, 4, 1, T), "softcap": 3.0}
    (_, got), got_gradients = gradients("blocked", mask, options)(arrays)
    (_, expected), expected_gradients = gradients("reference", mask, options)(arrays)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    for a, b in zip(got_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_gradient_of_the_bias_is_the_same_blocked():
    T = 70
    arrays, bias = draw(7, T=T, N=4, K=2), normal(8, 1, 4, T, T)

    def total(bias, implementation):
        output = dot_product_attention(*arrays, bias=bias, mask=Mask(causal=True), implementation=implementation)
        return jnp.sum(jnp.sin(output))

    got, expected = (jax.jit(jax.grad(total), static_argnums=1)(bias, name) for name in ("blocked", "reference"))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert float(jnp.abs(got[0, 0, 69, 0])) > 0 and float(jnp.abs(got[0, 0, 0, 69])) == 0


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_a_query_that_sees_nothing_gets_zeros_and_zero_gradients(implementation):
    arrays = draw(10)
    # The left-padded row's first two queries see padding only; the packed row's last query is padding itself.
    for mask, blind in (
        (as_mask(causal=True, key_valid=VALID), [(1, 0), (1, 1)]),
        (as_mask(causal=True, segments=SEGMENTS), [(0, 6), (1, 5), (1, 6)]),
    ):
        (_, output), (d_query, d_key, d_value) = gradients(implementation, mask, {})(arrays)
        for b, t in blind:
            np.testing.assert_array_equal(output[b, t], 0)
            np.testing.assert_array_equal(d_query[b, t], 0)
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in (d_query, d_key, d_value))


def test_a_mask_of_nothing_gives_zeros():
    output = dot_product_attention(*draw(10), mask=Mask(key_valid=jnp.zeros((2, 7), bool)))
    np.testing.assert_array_equal(output, 0)
    # An infinite bias, the habit of other libraries, too.
    output = dot_product_attention(*draw(10), bias=jnp.full((1, 1, 1, 7), -jnp.inf))
    np.testing.assert_array_equal(output, 0)


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
def test_poison_at_padded_keys_reaches_nothing(implementation, poison):
    clean = draw(11)
    hidden = ~jnp.array(VALID, bool)[:, :, None, None]
    poisoned = (clean[0], jnp.where(hidden, poison, clean[1]), jnp.where(hidden, poison, clean[2]))
    run = gradients(implementation, as_mask(causal=True, key_valid=VALID), {"softcap": 5.0})
    (_, expected), expected_gradients = run(clean)
    (_, got), got_gradients = run(poisoned)
    np.testing.assert_array_equal(got, expected)
    for a, b in zip(got_gradients, expected_gradients, strict=True):
        np.testing.assert_array_equal(a, b)
        assert bool(jnp.all(jnp.isfinite(a)))
    for gradient in got_gradients[1:]:
        np.testing.assert_array_equal(jnp.where(hidden, gradient, 0), 0)


def test_poison_at_the_padding_of_a_packed_row_reaches_no_key():
    clean = draw(11)
    padding = (jnp.array(SEGMENTS) == 0)[:, :, None, None]
    poisoned = (clean[0], jnp.where(padding, jnp.nan, clean[1]), jnp.where(padding, jnp.nan, clean[2]))
    run = gradients("auto", as_mask(causal=True, segments=SEGMENTS), {})
    jax.tree.map(np.testing.assert_array_equal, run(poisoned), run(clean))


def test_large_scores_do_not_overflow():
    arrays = [1000 * x for x in draw(12)]
    got = dot_product_attention(*arrays, mask=Mask(causal=True))
    weights = [np.asarray(x, np.float64) for x in arrays]
    scores = np.einsum("btngh,bsnh->bngts", weights[0].reshape(2, 7, 3, 2, 4), weights[1]) / 2
    scores = np.where(np.tril(np.ones((7, 7), bool)), scores, -np.inf)
    hard = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bngts,bsnh->btngh", hard / hard.sum(-1, keepdims=True), weights[2]).reshape(2, 7, 6, 4)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=0.5)


def test_bfloat16_keeps_its_dtype_with_a_float32_softmax():
    arrays = [x.astype(jnp.bfloat16) for x in draw(13, B=1, T=600, N=1, K=1)]
    got = dot_product_attention(*arrays)
    assert got.dtype == jnp.bfloat16
    # 600 weights of about 1/600: a sum in bfloat16 would stop growing at 256 and be off by a factor of two.
    expected = reference(*(x.astype(jnp.float32) for x in arrays))
    np.testing.assert_allclose(got.astype(jnp.float32), expected, atol=2e-3)


# Dropout


def ones_of(B, T):
    """All weights are 1/T and all values 1: an output is the share of weights kept, scaled."""
    return jnp.zeros((B, T, 2, 1)), jnp.zeros((B, T, 1, 1)), jnp.ones((B, T, 1, 1))


def test_dropout_keeps_the_expectation():
    B, T, rate = 4, 60, 0.25
    keys = example_keys(jax.random.key(0), jnp.arange(B))
    output = np.asarray(dot_product_attention(*ones_of(B, T), dropout_rate=rate, dropout_keys=keys))
    kept = output * T * (1 - rate)
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-4)  # so many weights were kept, each 4/3 of 1/60
    # 28,800 draws: five standard deviations of the mean output.
    assert abs(output.mean() - 1) < 5 * (rate / (1 - rate) / (B * 2 * T * T)) ** 0.5


def test_dropout_belongs_to_the_example():
    query, key, value = draw(14, B=3)
    keys = example_keys(jax.random.key(1), jnp.array([5, 6, 7]))
    drop = {"dropout_rate": 0.5, "mask": Mask(causal=True)}
    together = dot_product_attention(query, key, value, dropout_keys=keys, **drop)
    order = jnp.array([2, 0, 1])
    moved = dot_product_attention(query[order], key[order], value[order], dropout_keys=keys[order], **drop)
    np.testing.assert_allclose(moved, together[order], atol=1e-6)
    # Another row's content does not change what this row drops either.
    other = dot_product_attention(query.at[1].set(9), key, value, dropout_keys=keys, **drop)
    np.testing.assert_allclose(other[0], together[0], atol=1e-6)
    assert bool(jnp.any(together[0] != together[1]))


def test_dropout_without_keys_is_evaluation():
    arrays = draw(15)
    np.testing.assert_array_equal(dot_product_attention(*arrays, dropout_rate=0.5), dot_product_attention(*arrays))


# The choice of an implementation


@pytest.mark.parametrize(
    ("mask", "S", "dropping", "reason"),
    [
        (Mask(), 7, False, "the mask is not causal"),
        (Mask(causal=True, query_offset=2), 7, False, "the queries start at an offset"),
        (Mask(causal=True), 9, False, r"queries \(7\) and keys \(9\) differ in number"),
        (Mask(causal=True), 7, True, "attention dropout draws for the whole score matrix"),
    ],
)
def test_an_implementation_that_cannot_serve_says_why(mask, S, dropping, reason):
    options = {}
    if dropping:
        options = {"dropout_rate": 0.1, "dropout_keys": example_keys(jax.random.key(0), jnp.arange(2))}
    arrays = draw(16, S=S)
    with pytest.raises(ValueError, match=f"'blocked' cannot serve this call: {reason}.*; use 'auto'"):
        dot_product_attention(*arrays, mask=mask, implementation="blocked", **options)
    dot_product_attention(*arrays, mask=mask, implementation="auto", **options)


def test_unknown_implementation():
    with pytest.raises(
        ValueError, match="implementation is 'flash', expected auto, splash, cudnn, blocked, local, tokamax, reference"
    ):
        dot_product_attention(*draw(16), implementation="flash")


@pytest.mark.parametrize(
    ("platform", "T", "mask", "chosen"),
    [
        ("cpu", 256, Mask(causal=True), "blocked"),
        ("cpu", 64, Mask(causal=True), "reference"),
        ("cpu", 256, Mask(), "reference"),
        ("gpu", 256, Mask(causal=True), "reference"),
        ("cpu", 256, Mask(window=100), "local"),
        ("cpu", 256, Mask(window=128), "reference"),
        ("gpu", 256, Mask(causal=True, window=100), "local"),
    ],
)
def test_auto(platform, T, mask, chosen, caplog):
    choose._log_once.cache_clear()
    request = choose.AttentionRequest(mask, T, T, False, platform)
    with caplog.at_level(logging.INFO, logger=choose.__name__):
        assert choose.choose_implementation("auto", request) == chosen
        choose.choose_implementation("auto", request)
    assert [record.message for record in caplog.records] == [f"attention: {chosen} ({T} queries, {T} keys)"]


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="6 query heads and 4 key/value heads, expected a multiple of the latter"):
        dot_product_attention(*draw(17, N=6, K=4))


# Multi-head attention


def arange_weights(D, N, K, H, biases):
    def array(start, *shape):
        return (jnp.arange(start, start + int(np.prod(shape))) % 7 - 3).astype(jnp.float32).reshape(shape) / 5

    shapes = {"query": ((D, N, H), (N, H)), "key": ((D, K, H), (K, H)), "value": ((D, K, H), (K, H))}
    shapes["output"] = ((N, H, D), (D,))
    weights = {}
    for i, (name, (kernel, bias)) in enumerate(shapes.items()):
        weights[name] = {"kernel": array(i, *kernel)} | ({"bias": array(i + 2, *bias)} if biases else {})
    return weights


def multi_head_in_float64(x, context, weights, N, K, H, **mask):
    def project(x, name, heads):
        kernel = np.asarray(weights[name]["kernel"], np.float64).reshape(x.shape[-1], heads * H)
        bias = np.asarray(weights[name].get("bias", np.zeros((heads, H))), np.float64)
        return (x @ kernel).reshape(*x.shape[:2], heads, H) + bias

    attended = reference(
        project(x, "query", N), project(context, "key", K), project(context, "value", K), **mask
    ).reshape(*x.shape[:2], N * H)
    kernel = np.asarray(weights["output"]["kernel"], np.float64).reshape(N * H, -1)
    return attended @ kernel + np.asarray(weights["output"].get("bias", 0), np.float64)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_multi_head_attention_against_float64(biases, cross):
    D, N, K, H = 5, 6, 3, 4
    x = normal(0, 2, 7, D)
    context = normal(1, 2, 9, D) if cross else None
    weights, mask = arange_weights(D, N, K, H, biases), {} if cross else {"causal": True}
    got = multi_head_attention(x, weights, context=context, mask=as_mask(**mask))
    source = np.asarray(x if context is None else context, np.float64)
    expected = multi_head_in_float64(np.asarray(x, np.float64), source, weights, N, K, H, **mask)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_weights_are_those_that_make_the_output():
    query, key, value = draw(18)
    mask = as_mask(causal=True, key_valid=VALID)
    output, weights = dot_product_attention(query, key, value, mask=mask, return_weights=True)
    np.testing.assert_array_equal(output, dot_product_attention(query, key, value, mask=mask))
    values = np.repeat(np.asarray(value), 2, axis=2)  # each key/value head serves two query heads
    np.testing.assert_allclose(output, np.einsum("bnts,bsnh->btnh", weights, values), atol=1e-5)
    # They sum to 1, or to 0 where a query sees nothing, and are 0 where the mask is False.
    seen = np.asarray(mask.array(7, 7))
    np.testing.assert_allclose(weights.sum(axis=-1), np.broadcast_to(seen.any(-1)[:, None], (2, 6, 7)), atol=1e-6)
    assert np.all(np.where(seen[:, None], 0, weights) == 0)
    x, kernels = normal(0, 2, 7, 5), arange_weights(5, 6, 3, 4, biases=True)
    whole, weights = multi_head_attention(x, kernels, mask=mask, return_weights=True)
    assert weights.shape == (2, 6, 7, 7)
    np.testing.assert_array_equal(whole, multi_head_attention(x, kernels, mask=mask))


def test_rotary_turns_queries_and_keys_but_not_values():
    D, N, K, H = 5, 6, 3, 4
    x, weights = normal(0, 1, 7, D), arange_weights(D, N, K, H, biases=True)
    rotary = F.rotary_angles(jnp.arange(7)[None], F.rotary_frequencies(H))
    got = multi_head_attention(x, weights, rotary=rotary)
    query, key, value = (F.linear(x, **weights[name]) for name in ("query", "key", "value"))
    turned = dot_product_attention(F.apply_rotary(query, rotary), F.apply_rotary(key, rotary), value)
    np.testing.assert_allclose(got, F.linear(turned, **weights["output"], inputs=2), atol=1e-6)


def test_append_key_value_by_hand():
    cache = F.empty_key_value((1, 1, 4, 1), jnp.float32)
    new = jnp.array([5.0, 6.0]).reshape(1, 2, 1, 1)
    cache = F.append_key_value(cache, new, -new, slot=1)
    np.testing.assert_array_equal(cache.key.ravel(), [0, 5, 6, 0])
    np.testing.assert_array_equal(cache.value.ravel(), [0, -5, -6, 0])
    # Of more tokens than there are places the last stay.
    cache = F.append_key_value(cache, jnp.arange(6.0).reshape(1, 6, 1, 1), new[:, :1] * jnp.ones((1, 6, 1, 1)), slot=0)
    np.testing.assert_array_equal(cache.key.ravel(), [2, 3, 4, 5])


def test_multi_head_attention_with_a_cache_is_the_whole():
    D, N, K, H = 5, 6, 3, 4
    x, weights = normal(0, 2, 7, D), arange_weights(D, N, K, H, biases=True)
    whole = multi_head_attention(x, weights, mask=Mask(causal=True))
    cache, start = F.empty_key_value((2, K, 10, H), jnp.float32), 4  # with room to spare
    part, cache = F.prefill_attention(x[:, :4], weights, cache, mask=Mask(causal=True))
    np.testing.assert_allclose(part, whole[:, :4], atol=1e-5)
    for stop in (5, 6, 7):
        slot = jnp.int32(start)
        mask = Mask(causal=True, query_offset=slot)
        part, cache = F.cached_self_attention(x[:, start:stop], weights, cache, slot, mask=mask)
        np.testing.assert_allclose(part, whole[:, start:stop], atol=1e-5)
        start = stop
    assert jnp.all(cache.key[:, :, 7:] == 0) and jnp.all(cache.key[:, :, :7] != 0)


def test_heads_are_normalised_each_or_all_together_by_hand():
    heads = jnp.array([3.0, 4.0, 0.0, 5.0]).reshape(1, 1, 2, 2)
    each = head_norm(heads, jnp.ones(2), epsilon=0.0)
    np.testing.assert_allclose(each.ravel(), np.array([3, 4, 0, 5]) / math.sqrt(12.5), rtol=1e-6)
    # All four entries: the mean square is 50 / 4, and each entry has a scale of its own.
    together = head_norm(heads, jnp.arange(1.0, 5.0), epsilon=0.0)
    np.testing.assert_allclose(together.ravel(), np.array([3, 8, 0, 20]) / math.sqrt(12.5), rtol=1e-6)


def test_queries_keys_and_values_are_clipped():
    x, eye = jnp.array([[[2.0, -0.5]]]), jnp.eye(2).reshape(2, 1, 2)
    weights = {name: {"kernel": eye} for name in ("query", "key", "value")} | {"clip": 1.0}
    assert project_query(x, weights, None, 1e-6).ravel().tolist() == [1.0, -0.5]
    key, value = project_key_value(-x, weights, None, 1e-6)
    assert key.ravel().tolist() == value.ravel().tolist() == [-1.0, 0.5]
