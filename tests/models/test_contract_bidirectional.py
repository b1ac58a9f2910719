"""The correctness contract for encoders and encoder-decoders: padding, packing, masks, caching, dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.models import init_cache
from jaxformer.models.heads import MultipleChoice, QuestionAnswering, SequenceClassifier, TokenClassifier
from jaxformer.models.masked_lm import MaskedLM
from jaxformer.models.stack import Context
from tests.models.test_contract import assert_close, place
from tests.models.tiny import ENCODER_DECODERS, ENCODERS, config_of, random_params, tiny, tokens

# Their switches are also tested one by one, and each model here is compiled for several shapes.
SLOW = {"albert", "transformer"}
EVERY_MODEL = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in (*ENCODERS, *ENCODER_DECODERS)],
)
PAIRS = [(7, 6), (4, 5), (7, 6)]  # lengths of source and target; every other length is compiled anew


def is_encoder(name):
    return config_of(name).architecture == "encoder"


@functools.cache
def run(name, **switches):
    """Jitted ``((loss sum, states), gradients)``; the loss is a sum over real tokens that every state shows in."""
    model, _ = tiny(name, **switches)

    def loss(params, weights, rngs=None, **batch):
        extra = {} if rngs is None else {"deterministic": False, "rngs": {"dropout": rngs}}
        states = model.apply({"params": params}, **batch, **extra).last_hidden_state
        # Weighted and bent, so that no two places or entries can be exchanged.
        return jnp.sum(jnp.sin(states + jnp.arange(states.shape[-1])) * weights[..., None]), states

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def texts(name):
    """Source and, for an encoder-decoder, target of each example."""
    sources = [np.asarray(tokens(s, seed=s)) for s, _ in PAIRS]
    return sources, None if is_encoder(name) else [np.asarray(tokens(t, seed=10 + t)) for _, t in PAIRS]


def alone(name):
    """Loss, states and summed gradients of the examples one by one."""
    _, params = tiny(name)
    sources, targets = texts(name)
    total, states, gradients = 0.0, [], None
    for i, source in enumerate(sources):
        batch = {"input_ids": jnp.asarray(source)[None]}
        if targets is not None:
            batch["decoder_input_ids"] = jnp.asarray(targets[i])[None]
        length = len(source if targets is None else targets[i])
        (loss, found), gradient = run(name)(params, jnp.arange(1.0, length + 1)[None], **batch)
        total, gradients = total + loss, gradient if gradients is None else jax.tree.map(jnp.add, gradients, gradient)
        states.append(found[0])
    return total, states, gradients


@EVERY_MODEL
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.default_cases("*-bert", "right-t5")
def test_padding_changes_no_real_token_no_loss_and_no_gradient(name, side):
    _, params = tiny(name)
    sources, targets = texts(name)
    ids, real = place(sources, 12, side, 3)
    batch = {"input_ids": ids, "attention_mask": real}
    if targets is not None:
        batch["decoder_input_ids"], real = place(targets, 9, side, 3)
        batch["decoder_attention_mask"] = real
    weights = (jnp.cumsum(real, axis=-1) * real).astype(jnp.float32)
    (loss, states), gradient = run(name)(params, weights, **batch)
    expected_loss, expected_states, expected_gradient = alone(name)
    for row, expected in enumerate(expected_states):
        assert_close(states[row][real[row] == 1], expected)
    # A weighted sum over all tokens, whose terms nearly cancel: modernbert's is 0.19 of terms up to 30.
    assert_close(loss, expected_loss, **({"tolerance": 1e-3} if name == "modernbert" else {}))
    assert_gradients_close(gradient, expected_gradient)


def assert_gradients_close(got, expected):
    """To 1e-4 of a parameter's largest gradient: an entry is a sum over tokens, in which large terms cancel."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max() + 1)), got, expected)


def packed(rows):
    """All rows behind one another in one, two places of padding at the end."""
    ids = np.concatenate([*rows, [0, 0]]).astype(np.int32)
    segments = np.concatenate([*(np.full(len(row), i) for i, row in enumerate(rows, 1)), [0, 0]]).astype(np.int32)
    return jnp.asarray(ids)[None], jnp.asarray(segments)[None]


@EVERY_MODEL
@pytest.mark.default_cases("bert", "t5")
def test_a_packed_row_is_its_examples_one_by_one(name):
    _, params = tiny(name)
    sources, targets = texts(name)
    ids, segments = packed(sources)
    batch = {"input_ids": ids, "segment_ids": segments}
    if targets is not None:
        batch["decoder_input_ids"], segments = packed(targets)
        batch["decoder_segment_ids"] = segments
    weights = jnp.where(segments > 0, F.position_ids_from_segments(segments) + 1.0, 0.0)
    (loss, states), gradient = run(name)(params, weights, **batch)
    expected_loss, expected_states, expected_gradient = alone(name)
    assert_close(states[0][:-2], jnp.concatenate(expected_states))
    assert_close(loss, expected_loss)
    assert_gradients_close(gradient, expected_gradient)


@EVERY_MODEL
@pytest.mark.default_cases("bert", "t5", "modernbert")
def test_poison_in_the_embedding_of_padding_stays_there(name):
    _, params = tiny(name)
    sources, targets = texts(name)
    ids, real = place(sources, 12, "left", 0)
    batch = {"input_ids": ids, "attention_mask": real}
    if targets is not None:
        batch["decoder_input_ids"], real = place(targets, 9, "right", 0)
        batch["decoder_attention_mask"] = real

    def poison(params):
        def spoiled(path, leaf):
            return leaf.at[0].set(jnp.nan) if path[-2].key in ("token", "shared") else leaf

        return jax.tree_util.tree_map_with_path(spoiled, params)

    got, expected = (run(name)(p, real.astype(jnp.float32), **batch) for p in (poison(params), params))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_sees_both_sides(name):
    """Gradient of every output with respect to every token: all of them, or the window's where all layers have it."""
    model, params = tiny(name)
    ids = jnp.arange(7)[None]
    table = params["embeddings"]["token"]["embedding"]

    def outputs(table):
        changed = {**params, "embeddings": {**params["embeddings"], "token": {"embedding": table}}}
        return jnp.sum(jnp.sin(model.apply({"params": changed}, ids).last_hidden_state[0]), axis=-1)

    flows = jnp.abs(jax.jit(jax.jacrev(outputs))(table)).sum(-1)[:, :7]
    assert bool(jnp.all(flows > 0))


def test_local_layers_see_their_window_and_global_ones_everything():
    ids = jnp.arange(7)[None]

    def flows(**switches):
        model, params = tiny("modernbert", **switches)
        table = params["embeddings"]["token"]["embedding"]

        def outputs(table):
            changed = {**params, "embeddings": {**params["embeddings"], "token": {"embedding": table}}}
            return jnp.sum(jnp.sin(model.apply({"params": changed}, ids).last_hidden_state[0]), axis=-1)

        return np.asarray(jnp.abs(jax.jit(jax.jacrev(outputs))(table)).sum(-1)[:, :7]) > 0

    distance = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    # Three layers that look two tokens to each side; one of them without a limit sees everything.
    np.testing.assert_array_equal(flows(global_every=None, local_rope_theta=None), distance <= 6)
    np.testing.assert_array_equal(flows(global_every=None, num_layers=1, local_rope_theta=None), distance <= 2)
    assert flows(num_layers=1).all(), "the first layer is global"


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_changing_a_target_token_changes_no_output_before_it(name):
    model, params = tiny(name)
    source, target = tokens(1, 5), tokens(1, 7, seed=3)
    forward = jax.jit(lambda target: model.apply({"params": params}, source, decoder_input_ids=target).logits[0])
    before = forward(target)
    for t in (0, 3, 6):
        after = forward(target.at[0, t].set(target[0, t] % 28 + 1))
        np.testing.assert_array_equal(after[:t], before[:t])
        assert bool(jnp.any(jnp.abs(after[t] - before[t]) > 1e-3))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_cached_decoding_is_the_full_forward_pass(name):
    model, params = tiny(name)
    sources, _ = texts(name)
    ids, real = place(sources, 10, "left", 3)
    target = tokens(3, 6, seed=4)
    variables = {"params": params}
    full = jax.jit(lambda: model.apply(variables, ids, real, target).logits)()
    context = jax.jit(lambda: model.apply(variables, ids, real, method="encode"))()

    @jax.jit
    def step(cache, new):
        hidden, cache = model.apply(variables, Context(*context), new, cache=cache, method="decode")
        return model.apply(variables, hidden, method="logits"), cache

    cache, found = init_cache(model.config, 3, 6), []
    for t in range(6):
        logits, cache = step(cache, target[:, t : t + 1])
        found.append(logits)
    assert_close(jnp.concatenate(found, axis=1), full)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_dropout_belongs_to_the_example(name):
    _, params = tiny(name, dropout=0.3, attention_dropout=0.2)
    ids, numbers, order = tokens(3, 6, seed=10), jnp.array([10, 11, 12]), jnp.array([2, 0, 1])
    weights = jnp.ones((3, 6))

    def states(ids, numbers, key=1):
        train = run(name, dropout=0.3, attention_dropout=0.2)
        return train(params, weights, rngs=jax.random.key(key), input_ids=ids, example_ids=numbers)[0][1]

    together = states(ids, numbers)
    assert_close(states(ids[order], numbers[order]), together[order])
    same = states(ids.at[1].set(ids[0]), numbers)
    assert float(jnp.abs(same[0] - same[1]).max()) > 1e-2
    assert float(jnp.abs(states(ids, numbers, key=2) - together).max()) > 1e-2


@pytest.mark.parametrize(("name", "remat"), [("modernbert", "full"), ("t5", "dots"), ("albert", "full")])
@pytest.mark.default_cases("t5-dots")
def test_remat_and_unroll_change_no_number(name, remat):
    _, params = tiny(name)
    ids = tokens(2, 6, seed=8)
    expected = run(name)(params, jnp.ones((2, 6)), input_ids=ids)
    assert_close(run(name, remat=remat, unroll=2)(params, jnp.ones((2, 6)), input_ids=ids), expected)


HEADS = {
    "sequence": lambda config: SequenceClassifier(config, 4),
    "token": lambda config: TokenClassifier(config, 4),
    "question": QuestionAnswering,
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["bert", "gpt2", "bart"])
@pytest.mark.default_cases("bart-sequence", "bert-token", "gpt2-question")
def test_heads_do_not_see_padding(name, head):
    config = config_of(name)
    model = HEADS[head](config)
    params = random_params(config, model)
    rows = [np.asarray(row) for row in (tokens(5, seed=1), tokens(3, seed=2))]

    @functools.partial(jax.jit, static_argnums=2)
    def outputs(ids, real, deterministic=True):
        found = model.apply({"params": params}, ids, real)
        return found.start_logits + 2 * found.end_logits if head == "question" else found.logits

    for side in ("left", "right"):
        ids, real = place(rows, 7, side, 3)
        got = outputs(ids, real)
        for i, row in enumerate(rows):
            expected = outputs(jnp.asarray(row)[None], jnp.ones((1, len(row)), jnp.int32))[0]
            assert_close(got[i] if head == "sequence" else got[i][real[i] == 1], expected)


def test_a_choice_is_a_text_of_its_own():
    config = config_of("bert")
    model, classifier = MultipleChoice(config), SequenceClassifier(config, 1)
    params = random_params(config, model)
    ids = tokens(2, 3, 5)
    real = jnp.ones((2, 3, 5), jnp.int32).at[1, 2, 3:].set(0)
    together = model.apply({"params": params}, ids, real).logits
    one_by_one = classifier.apply({"params": params}, ids.reshape(6, 5), real.reshape(6, 5)).logits.reshape(2, 3)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-5)


def test_a_body_has_the_same_names_under_every_head():
    config = config_of("bert")
    body = random_params(config)
    for model in (MaskedLM(config), SequenceClassifier(config, 3), TokenClassifier(config), QuestionAnswering(config)):
        params = random_params(config, model)
        assert set(body) < set(params)
        assert jax.tree.map(jnp.shape, {name: params[name] for name in body}) == jax.tree.map(jnp.shape, body)


@pytest.mark.slow
def test_the_masked_head_at_places_is_the_head_at_all_of_them():
    config = config_of("albert")
    model = MaskedLM(config, sentence_pairs=True)
    params = random_params(config, model)
    ids, places = tokens(2, 6), jnp.array([[1, 4], [0, 5]])
    hidden, head = model.apply({"params": params}, ids, masked_positions=places, method="hidden_and_head")
    everywhere = model.apply({"params": params}, ids)
    picked = jnp.take_along_axis(everywhere.logits, places[..., None], axis=1)
    np.testing.assert_allclose(F.head_logits(hidden, head), picked, rtol=1e-4, atol=1e-4)
    pairs = model.apply({"params": params}, ids, masked_positions=places, method="hidden_head_and_pairs")[2]
    np.testing.assert_allclose(pairs, everywhere.pair_logits, rtol=1e-5)
