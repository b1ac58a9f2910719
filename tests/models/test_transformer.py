"""The decoder against a slow float64 one written here, and what its arguments mean."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.check.textbook import states as textbook_states
from jaxformer.models import init_cache
from tests.models.tiny import CONFIGS, config_of, shapes, tiny, tokens

# The reference: numpy, float64, one row, one head and one query at a time.


def norm(c, weights, x):
    scale = weights["scale"] + c.norm_offset
    if c.norm == "rms_norm":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon) * scale
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon) * scale + weights.get("bias", 0)


def head_norm(c, scale, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon) * (scale + c.norm_offset)


def activation(c, x):
    if c.activation == "silu":
        return x / (1 + np.exp(-x))
    if c.activation == "relu":
        return np.maximum(x, 0)
    if c.activation == "gelu":
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotate(c, x, t):
    half = int(c.head_width * c.rotary_fraction) // 2
    angles = []
    for i in range(half):
        frequency = c.rope_theta ** (-i / half)
        scaling = c.rope_scaling
        if scaling is not None:
            turns = scaling.original_max_length * frequency / (2 * math.pi)
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            keep = min(1.0, max(0.0, (turns - low) / (high - low)))
            frequency = keep * frequency + (1 - keep) * frequency / scaling.factor
        angles.append(t * frequency)
    turned = (x[:half] + 1j * x[half : 2 * half]) * np.exp(1j * np.array(angles))
    return np.concatenate([turned.real, turned.imag, x[2 * half :]])


# Press, Smith, Lewis 2022: 1/2^(8/N), 1/2^(16/N) ... for two heads; the third takes the first slope of four.
SLOPES = {3: [2**-4, 2**-8, 2**-2]}


def attend(c, x, weights):
    T, D = x.shape
    projected = {
        name: np.einsum("td,dnh->tnh", x, weights[name]["kernel"]) + weights[name].get("bias", 0)
        for name in ("query", "key", "value")
    }
    if c.qk_norm:
        for name in ("query", "key"):
            projected[name] = head_norm(c, weights[f"{name}_norm"]["scale"], projected[name])
    output = np.zeros((T, D)) + weights["output"].get("bias", 0)
    for t in range(T):
        for n in range(c.num_heads):
            k = n // (c.num_heads // c.kv_heads)
            seen = [s for s in range(t + 1) if c.window is None or t - s < c.window]
            query, keys = projected["query"][t, n], [projected["key"][s, k] for s in seen]
            if c.positions == "rotary":
                query, keys = rotate(c, query, t), [rotate(c, key, s) for key, s in zip(keys, seen, strict=True)]
            slope = SLOPES[c.num_heads][n] if c.positions == "alibi" else 0
            pairs = zip(keys, seen, strict=True)
            scores = np.exp([query @ key / math.sqrt(c.head_width) - slope * (t - s) for key, s in pairs])
            mixed = scores / scores.sum() @ projected["value"][seen, k]
            output[t] += mixed @ weights["output"]["kernel"][n]
    return output


def feed(c, x, weights):
    inner = x @ weights["up"]["kernel"] + weights["up"].get("bias", 0)
    inner = activation(c, x @ weights["gate"]["kernel"]) * inner if c.gated else activation(c, inner)
    return inner @ weights["down"]["kernel"] + weights["down"].get("bias", 0)


def decode(c, params, ids):
    table = params["embeddings"]["token"]["embedding"]
    x = table[ids] * (math.sqrt(c.hidden_size) if c.scale_embedding else 1)
    if c.positions == "learned":
        x = x + params["embeddings"]["position"]["embedding"][c.first_position :][: len(ids)]
    if c.positions == "sinusoidal":
        for t, d in np.ndindex(x.shape):
            angle = t / 10_000 ** (2 * (d // 2) / c.hidden_size)
            x[t, d] += math.cos(angle) if d % 2 else math.sin(angle)
    if c.embedding_norm:
        x = norm(c, params["embeddings"]["norm"], x)
    for index in range(c.num_layers):
        w = jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"])
        first, second = partial(norm, c, w["attention_norm"]), partial(norm, c, w["feed_forward_norm"])
        if c.parallel_residual:
            x = x + attend(c, first(x), w["attention"]) + feed(c, second(x), w["feed_forward"])
        elif c.norm_place == "pre":
            x = x + attend(c, first(x), w["attention"])
            x = x + feed(c, second(x), w["feed_forward"])
        else:
            x = first(x + attend(c, x, w["attention"]))
            x = second(x + feed(c, x, w["feed_forward"]))
    if c.norm_place == "pre":
        x = norm(c, params["final_norm"], x)
    return x @ (table.T if c.tie_embeddings else params["lm_head"]["kernel"]), x


# Compared with the textbook of the checks, in tests/check/test_model.py.
TEXTBOOK = ("experts", "mamba", "mamba2")


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        *((name, {}) for name in CONFIGS if name not in TEXTBOOK),
        ("gpt2", {"positions": "none", "use_bias": False, "norm": "rms_norm"}),
    ],
    ids=str,
)
def test_decoder_against_float64(name, switches):
    model, params = tiny(name, **switches)
    ids = tokens(2, 7)
    output = jax.jit(lambda: model.apply({"params": params}, ids))()
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for b in range(2):
        logits, hidden = decode(model.config, exact, np.asarray(ids[b]))
        np.testing.assert_allclose(output.last_hidden_state[b], hidden, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(output.logits[b], logits, rtol=1e-4, atol=1e-4)
    assert output.cache is None


def test_a_tied_head_is_one_table_with_the_gradients_of_both_uses():
    tied, params = tiny("gpt2")
    untied, _ = tiny("gpt2", tie_embeddings=False)
    assert "lm_head" not in params
    ids = tokens(1, 5)

    def gradient(model):
        return jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(model.apply({"params": params}, ids).logits))))

    table = params["embeddings"]["token"]["embedding"]
    together = gradient(tied)(params)["embeddings"]["token"]["embedding"]
    apart = gradient(untied)({**params, "lm_head": {"kernel": table.T}})
    inputs, outputs = apart["embeddings"]["token"]["embedding"], apart["lm_head"]["kernel"].T
    np.testing.assert_allclose(together, inputs + outputs, rtol=1e-4, atol=1e-4)
    # Each part is there: words outside the text have no input gradient, every word has an output gradient.
    absent = np.setdiff1d(np.arange(29), np.asarray(ids))
    np.testing.assert_array_equal(inputs[absent], 0)
    assert bool(jnp.all(jnp.abs(outputs).sum(-1) > 0))


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_and_head_are_what_makes_the_logits(tied):
    model, params = tiny("gpt2", tie_embeddings=tied)
    ids = tokens(1, 4)

    @jax.jit
    def both(params):
        hidden, head = model.apply({"params": params}, ids, method=model.hidden_and_head)
        assert head.tied == tied
        return F.head_logits(hidden, head), model.apply({"params": params}, ids).logits

    np.testing.assert_allclose(*both(params), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("switches", [{"remat": "full"}, {"remat": "dots"}, {"unroll": 2}], ids=str)
def test_performance_choices_keep_the_parameters(switches):
    assert shapes(config_of("gpt2", **switches)) == shapes(config_of("gpt2"))


def test_the_layers_are_stacked():
    layers = shapes(config_of("llama"))["layers"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(layers)} == {2}
    assert layers["attention"]["key"]["kernel"].shape == (2, 18, 3, 4)
    assert layers["attention"]["output"]["kernel"].shape == (2, 6, 4, 18)
    assert layers["feed_forward"]["gate"]["kernel"].shape == (2, 18, 22)


def test_segment_ids_say_what_is_padding():
    model, params = tiny("gpt2")
    ids, segments = tokens(1, 5), jnp.array([[1, 1, 1, 0, 0]])
    run = jax.jit(lambda **batch: model.apply({"params": params}, ids, **batch).logits)
    np.testing.assert_allclose(run(segment_ids=segments)[:, :3], run(attention_mask=segments)[:, :3], atol=1e-5)


def test_an_empty_cache_by_shape():
    cache = init_cache(config_of("llama", dtype="bfloat16"), 5, 9)
    assert cache.layers.key.shape == cache.layers.value.shape == (2, 5, 3, 9, 4)
    assert cache.layers.key.dtype == jnp.bfloat16
    assert cache.valid.shape == cache.positions.shape == (5, 9)
    assert int(cache.length) == 0 and not bool(cache.valid.any())


@pytest.mark.parametrize(
    ("length", "batch", "message"),
    [
        (21, {}, r"input_ids has 21 tokens a row, expected at most 20 \(max_length\); shorten it"),
        (4, {"cache": 3}, r"input_ids has 4 tokens a row, expected at most 3 \(the cache's length\); shorten it"),
        (2, {"cache": 3, "segment_ids": jnp.ones((1, 2), int)}, "segment_ids and a cache are both given, expected one"),
    ],
    ids=["max_length", "cache", "segments"],
)
def test_what_does_not_fit_is_refused(length, batch, message):
    model, params = tiny("gpt2")
    batch = {**batch, "cache": init_cache(model.config, 1, batch["cache"])} if "cache" in batch else batch
    with pytest.raises(ValueError, match=message):
        model.apply({"params": params}, jnp.zeros((1, length), jnp.int32), **batch)


def test_the_convolution_of_the_embedding():
    model, params = tiny("deberta_v3", embedding_conv_size=3, embedding_conv_activation="gelu", max_length=32)
    ids, real = np.asarray(tokens(2, 9)), np.arange(9)[None] < np.array([[9], [6]])
    run = jax.jit(lambda ids, **inputs: model.apply({"params": params}, ids, **inputs).last_hidden_state)
    alone = [run(ids[:1]), run(ids[1:, :6])]
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = textbook_states(model.config, exact, ids[0], causal=False)
    np.testing.assert_allclose(alone[0][0], expected, atol=1e-4)
    np.testing.assert_allclose(run(ids, attention_mask=real)[1, :6], alone[1][0], atol=1e-5)
    left = run(np.roll(ids, 3, axis=1), attention_mask=np.roll(real, 3, axis=1))
    np.testing.assert_allclose(left[1, 3:], alone[1][0], atol=1e-5)
    packed = np.concatenate([ids[:1], ids[1:, :6]], axis=1)
    segments = np.array([[1] * 9 + [2] * 6])
    np.testing.assert_allclose(run(packed, segment_ids=segments)[:, 9:], alone[1], atol=1e-5)
    without, _ = tiny("deberta_v3", max_length=32)
    assert not np.allclose(without.apply({"params": params}, ids[:1]).last_hidden_state, alone[0], atol=1e-2)
    with pytest.raises(ValueError, match="embedding_conv_size is 4, expected an odd number"):
        config_of("deberta_v3", embedding_conv_size=4)
    with pytest.raises(ValueError, match="architecture decoder, layer_norm pre, numerics fast, expected an encoder"):
        config_of("gpt2", embedding_conv_size=3)
