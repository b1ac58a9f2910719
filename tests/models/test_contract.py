"""The correctness contract: what must hold for every decoder, whatever its switches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.models import Inputs, init_cache
from tests.models.tiny import CONFIGS, tiny, tokens

TOLERANCE = 1e-4
EVERY_MODEL = pytest.mark.parametrize("name", CONFIGS)
EVERY_BLOCK = pytest.mark.parametrize(
    "name", ["gpt2", "llama", "post_norm", "alibi"]
)  # the rest differ in attention only


def assert_close(got, expected, tolerance=TOLERANCE):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected)


@functools.cache
def forward(name):
    """Jitted logits of one model; the batch is what a user passes."""
    model, _ = tiny(name)
    return jax.jit(lambda params, **batch: model.apply({"params": params}, **batch).logits)


@functools.cache
def loss_and_gradient(name, **switches):
    """Jitted ``((loss sum, (token count, hidden states)), gradients)`` of one model."""
    model, _ = tiny(name, **switches)

    def loss(params, labels, rngs=None, **batch):
        variables = {"params": params}
        rngs = None if rngs is None else {"dropout": rngs}
        hidden, head = model.apply(
            variables, **batch, deterministic=rngs is None, rngs=rngs, method=model.hidden_and_head
        )
        loss = F.chunked_cross_entropy(hidden, head, labels, chunk_tokens=8)
        return loss.total, (loss.tokens, hidden)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def shifted(input_ids):
    """Labels of the next token; the last place of a row has none."""
    return jnp.pad(input_ids[:, 1:], ((0, 0), (0, 1)), constant_values=F.IGNORE)


def place(rows, length, side, fill):
    """Rows of different lengths in one array, padded on one side, and which places are real."""
    array, real = np.full((len(rows), length), fill), np.zeros((len(rows), length), np.int32)
    for b, row in enumerate(rows):
        where = slice(length - len(row), None) if side == "left" else slice(len(row))
        array[b, where], real[b, where] = row, 1
    return jnp.asarray(array), jnp.asarray(real)


@EVERY_MODEL
@pytest.mark.default_cases("alibi", "gpt2", "llama", "offset")
def test_padding_changes_no_real_token(name):
    _, params = tiny(name)
    whole = tokens(1, 9)
    alone = forward(name)(params, input_ids=whole)[0]
    rows = [np.asarray(whole[0]), np.asarray(whole[0, :4])]
    # The causal prefix of the row is the shorter row: both must give its outputs on either side of any padding.
    for side, fill in (("left", 3), ("right", 3), ("right", 0)):
        ids, real = place(rows, 12, side, fill)
        padded = forward(name)(params, input_ids=ids, attention_mask=real)
        assert_close(padded[0][real[0] == 1], alone)
        assert_close(padded[1][real[1] == 1], alone[:4])


@EVERY_MODEL
@pytest.mark.default_cases("alibi", "gpt2")
def test_a_packed_row_is_its_documents_one_by_one(name):
    _, params = tiny(name)
    documents = tokens(4, 5, seed=1)  # 0 and 1 go into the first row, 2 and 3 into the second
    packed = jnp.pad(documents.reshape(2, 10), ((0, 0), (0, 1)))
    labels = jnp.pad(shifted(documents).reshape(2, 10), ((0, 0), (0, 1)), constant_values=F.IGNORE)
    segments = jnp.array([[1] * 5 + [2] * 5 + [0]] * 2)
    positions = jnp.array([[*range(5), *range(5), 0]] * 2)

    run = loss_and_gradient(name)
    (total, (count, hidden)), gradient = run(
        params, labels, input_ids=packed, segment_ids=segments, position_ids=positions
    )
    (total_apart, (count_apart, hidden_apart)), gradient_apart = run(params, shifted(documents), input_ids=documents)
    assert_close(hidden[:, :10].reshape(hidden_apart.shape), hidden_apart)
    assert float(count) == float(count_apart) == 16
    assert_close(total, total_apart)
    assert_close(gradient, gradient_apart)


@EVERY_MODEL
def test_changing_a_token_changes_no_output_before_it(name):
    _, params = tiny(name)
    ids = tokens(1, 9, seed=3)
    before = forward(name)(params, input_ids=ids)[0]
    for t in (1, 4, 8):
        after = forward(name)(params, input_ids=ids.at[0, t].set(ids[0, t] % 28 + 1))[0]
        np.testing.assert_array_equal(after[:t], before[:t])
        assert bool(jnp.any(jnp.abs(after[t] - before[t]) > 1e-3))


@EVERY_MODEL
@pytest.mark.default_cases("alibi", "gpt2", "llama", "window")
def test_no_gradient_comes_from_a_later_token(name):
    model, params = tiny(name)
    T = 7
    ids = jnp.arange(T)[None]  # every token has a row of the embedding of its own

    def hidden(table):
        changed = {**params, "embeddings": {**params["embeddings"], "token": {"embedding": table}}}
        states = model.apply({"params": changed}, Inputs(ids), method=model.hidden_states)[0][0]
        return jnp.sum(jnp.sin(3 * states), axis=-1)

    table = params["embeddings"]["token"]["embedding"]
    flows = jnp.abs(jax.jit(jax.jacrev(hidden))(table)).sum(-1)[:, :T]  # [output t, token s]
    np.testing.assert_array_equal(jnp.triu(flows, 1), 0)
    reach = model.config.num_layers * ((model.config.window or T) - 1)  # each layer looks so many tokens back
    distance = np.subtract.outer(np.arange(T), np.arange(T))
    seen = (distance >= 0) & (distance <= reach)
    np.testing.assert_array_equal(np.asarray(flows) > 0, seen)


@functools.cache
def cached_forward(name):
    model, _ = tiny(name)

    def run(params, cache, **batch):
        output = model.apply({"params": params}, cache=cache, **batch)
        return output.logits, output.cache

    return jax.jit(run)


@EVERY_MODEL
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.default_cases("*alibi", "*gpt2", "*llama", "*window")
def test_cached_decoding_is_the_full_forward_pass(name, side):
    model, params = tiny(name)
    rows = tokens(3, 9, seed=4)
    # Prompts of 5, 2 and 4 tokens in five places; each row then goes on with its own next tokens, one by one.
    prompts = [5, 2, 4]
    full = forward(name)(params, input_ids=rows)
    ids, real = place([np.asarray(row[:n]) for row, n in zip(rows, prompts, strict=True)], 5, side, 7)
    step = cached_forward(name)
    logits, cache = step(params, init_cache(model.config, 3, 10), input_ids=ids, attention_mask=real)
    for b, n in enumerate(prompts):
        assert_close(logits[b][real[b] == 1], full[b, :n])
    for i in range(4):
        following = jnp.array([[int(rows[b, n + i])] for b, n in enumerate(prompts)])
        logits, cache = step(params, cache, input_ids=following)
        assert_close(logits[:, 0], jnp.stack([full[b, n + i] for b, n in enumerate(prompts)]))
    assert int(cache.length) == 9
    np.testing.assert_array_equal(cache.valid.sum(-1), [9, 6, 8])


@pytest.mark.parametrize("prefill", [1, 3, 8])
def test_any_prefill_length_is_the_full_forward_pass(prefill):
    model, params = tiny("window")
    ids = tokens(2, 9, seed=5)
    step, full = cached_forward("window"), forward("window")(params, input_ids=ids)
    first, cache = step(params, init_cache(model.config, 2, 9), input_ids=ids[:, :prefill])
    rest, _ = step(params, cache, input_ids=ids[:, prefill:])
    assert_close(jnp.concatenate([first, rest], axis=1), full)


@EVERY_BLOCK
def test_poison_in_the_embedding_of_padding_stays_there(name):
    _, params = tiny(name)
    ids, real = place([np.asarray(row) for row in (tokens(9, seed=6), tokens(4, seed=7))], 9, "left", 0)
    labels = jnp.where(real == 1, shifted(ids), F.IGNORE)
    table = params["embeddings"]["token"]["embedding"]
    # The loss is taken on the hidden states: with a tied head the padding's row is an output like any other.
    poisoned = {**params, "embeddings": {**params["embeddings"], "token": {"embedding": table.at[0].set(jnp.nan)}}}
    model, _ = tiny(name)

    def loss(params):
        hidden, _ = model.apply({"params": params}, ids, real, method=model.hidden_and_head)
        return jnp.sum(jnp.sin(hidden) * (labels != F.IGNORE)[..., None])

    run = jax.jit(jax.value_and_grad(loss))
    expected, got = run(params), run(poisoned)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    np.testing.assert_array_equal(got[1]["embeddings"]["token"]["embedding"][0], 0)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize(
    ("name", "switches", "choices"),
    [
        ("gpt2", {"num_layers": 3}, [("none", None), ("dots", 2), ("full", 1)]),
        # With dropout, what is recomputed must be dropped as it was the first time.
        ("llama", {"dropout": 0.2}, [("full", 2)]),
    ],
)
@pytest.mark.default_cases("llama-*")
def test_remat_and_unroll_change_no_number(name, switches, choices):
    _, params = tiny(name, **switches)
    ids = tokens(2, 6, seed=8)
    batch = {"labels": shifted(ids), "input_ids": ids, "rngs": jax.random.key(0), "example_ids": jnp.array([4, 9])}
    expected = loss_and_gradient(name, **switches, remat="none", unroll=1)(params, **batch)
    for remat, unroll in choices:
        assert_close(loss_and_gradient(name, **switches, remat=remat, unroll=unroll)(params, **batch), expected)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_an_explicit_implementation_survives_remat(remat):
    """Inside remat every array argument is traced; whether queries start at an offset must still be known."""
    ids = tokens(1, 70, seed=9)
    plain, params = tiny("llama", max_length=70)
    model, _ = tiny("llama", max_length=70, attention_implementation="blocked", remat=remat)
    got = jax.jit(lambda params: model.apply({"params": params}, ids).logits)(params)
    assert_close(got, jax.jit(lambda params: plain.apply({"params": params}, ids).logits)(params))


@pytest.mark.parametrize("switches", [{"dropout": 0.3}, {"attention_dropout": 0.3}], ids=str)
def test_dropout_belongs_to_the_example(switches):
    model, params = tiny("gpt2", **switches)
    ids = tokens(3, 6, seed=10)

    @jax.jit
    def train(ids, example_ids, key):
        return model.apply(
            {"params": params}, ids, example_ids=example_ids, deterministic=False, rngs={"dropout": key}
        ).logits

    key, numbers, order = jax.random.key(1), jnp.array([10, 11, 12]), jnp.array([2, 0, 1])
    together = train(ids, numbers, key)
    assert_close(train(ids[order], numbers[order], key), together[order])
    # The same text under another number, or under another key, is dropped otherwise.
    same = train(ids.at[1].set(ids[0]), numbers, key)
    assert float(jnp.abs(same[0] - same[1]).max()) > 1e-2
    assert float(jnp.abs(train(ids, numbers, jax.random.key(2)) - together).max()) > 1e-2
    # Evaluation is the default and needs no key.
    np.testing.assert_allclose(
        jax.jit(lambda: model.apply({"params": params}, ids).logits)(),
        forward("gpt2")(params, input_ids=ids),
        atol=1e-5,
    )


def test_rows_without_numbers_are_numbered_in_order():
    model, params = tiny("gpt2", dropout=0.3)
    ids, options = tokens(2, 6, seed=11), {"deterministic": False, "rngs": {"dropout": jax.random.key(1)}}

    def hidden(example_ids):
        return model.apply({"params": params}, ids, example_ids=example_ids, **options).last_hidden_state

    np.testing.assert_array_equal(*jax.jit(lambda: (hidden(None), hidden(jnp.arange(2))))())


@EVERY_BLOCK
def test_bfloat16_is_close_to_float32(name):
    model, params = tiny(name, dtype="bfloat16")
    ids = tokens(2, 9, seed=12)
    output = jax.jit(lambda: model.apply({"params": params}, ids))()
    assert output.logits.dtype == jnp.float32 and output.last_hidden_state.dtype == jnp.bfloat16
    expected = forward(name)(params, input_ids=ids)
    # bfloat16 keeps 8 bits: one rounding is 0.4 %, and a few dozen of them lie one behind another.
    error = jnp.sqrt(jnp.mean((output.logits - expected) ** 2) / jnp.mean(expected**2))
    assert float(error) < 0.03


@EVERY_MODEL
@pytest.mark.default_cases("gpt2", "llama", "alibi", "offset")
def test_positions_of_a_packed_row_follow_from_its_segments(name):
    model, params = tiny(name)
    ids, segments = tokens(2, 9), jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 0], [1, 2, 2, 2, 2, 2, 2, 0, 0]])
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 3, 0, 0], [0, 0, 1, 2, 3, 4, 5, 0, 0]])
    given = model.apply({"params": params}, ids, segment_ids=segments, position_ids=positions).logits
    derived = model.apply({"params": params}, ids, segment_ids=segments).logits
    np.testing.assert_array_equal(derived, given)
