import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from jaxformer.tasks.masked_lm import MaskedLanguageModelling, MaskedLMConfig, Masking, join, make_masking, mask_tokens
from tests.tasks.tiny import CLS, MASK, SEP, WITH_MASK, cache_of, config_of, features, on_device, random_params

TEXT = np.arange(1000, 1200)


def make(T=16, **settings):
    return MaskedLanguageModelling(MaskedLMConfig(**settings), WITH_MASK, T)


def masking(rate=0.15, mask_share=0.8, random_share=0.1, word_starts=None):
    return Masking(rate, mask_share, random_share, 3, np.arange(10, 20), word_starts)


def hide(tokens, maskable, how, seed=0):
    return mask_tokens(np.asarray(tokens), np.asarray(maskable, bool), how, np.random.default_rng(seed))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, 60), rate=st.floats(0.01, 0.99), seed=st.integers(0, 99), data=st.data())
def test_the_number_of_hidden_tokens_is_exact(length, rate, seed, data):
    tokens = np.arange(1000, 1000 + length)
    maskable = np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)), bool)
    inputs, hidden = hide(tokens, maskable, masking(rate), seed)
    count = int(maskable.sum())
    assert len(hidden) == (max(1, round(rate * count)) if count else 0)
    assert (np.diff(hidden) > 0).all() and maskable[hidden].all()
    untouched = np.setdiff1d(np.arange(length), hidden)
    np.testing.assert_array_equal(inputs[untouched], tokens[untouched])
    # A hidden token is the mask, itself or a random one of those allowed.
    assert all(new in (3, old, *range(10, 20)) for new, old in zip(inputs[hidden], tokens[hidden], strict=True))
    np.testing.assert_array_equal(tokens, np.arange(1000, 1000 + length)), "the text is not written to"


def test_shares_of_mask_random_and_kept():
    # 300 draws of 30 hidden tokens; five standard deviations of the binomial distribution.
    masks = randoms = kept = 0
    places, drawn = np.zeros(200, int), np.zeros(20, int)
    for seed in range(300):
        inputs, hidden = hide(TEXT, np.ones(200), masking(), seed)
        places[hidden] += 1
        new = inputs[hidden]
        masks += (new == 3).sum()
        randoms += (new < 20).sum() - (new == 3).sum()
        kept += (new == TEXT[hidden]).sum()
        drawn += np.bincount(new[(new >= 10) & (new < 20)], minlength=20)
    n = 300 * 30
    assert masks + randoms + kept == n
    for count, share in ((masks, 0.8), (randoms, 0.1), (kept, 0.1)):
        assert abs(count - n * share) < 5 * np.sqrt(n * share * (1 - share))
    # Every place and every random token is as probable as any other.
    assert (abs(places - 300 * 0.15) < 5 * np.sqrt(300 * 0.15 * 0.85)).all()
    assert (abs(drawn[10:] - n * 0.01) < 5 * np.sqrt(n * 0.01)).all() and drawn[:10].sum() == 0


def test_random_tokens_are_never_special():
    masking = make_masking(MaskedLMConfig(), WITH_MASK, 0.0, 1.0)
    assert masking.random_ids.tolist() == list(range(256)), "not <|endoftext|>, <pad>, <s>, <mask> nor a sentinel"
    assert masking.mask_id == MASK


def test_features_of_a_packed_row_by_hand():
    batch = features(make(T=12, mask_share=1.0, random_share=0.0, rate=0.25), cache_of("abcd", "ef"))
    # 6 of 12 places are text, round(0.25 * 6) = 2 are hidden, and there is room for round(0.25 * 12) = 3.
    text = np.array([CLS, 97, 98, 99, 100, SEP, CLS, 101, 102, SEP, 0, 0])
    assert set(batch) == {"input_ids", "segment_ids", "masked_positions", "labels"}
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]]
    positions, labels = batch["masked_positions"][0], batch["labels"][0]
    assert labels[2] == -100 and positions[2] == 0
    assert 0 < positions[0] < positions[1] < 9 and not set(positions[:2]) & {5, 6}
    np.testing.assert_array_equal(labels[:2], text[positions[:2]])
    text[positions[:2]] = MASK
    assert batch["input_ids"].tolist() == [text.tolist()]


def test_join_by_hand():
    text = join([[np.array([5, 6]), np.array([7])], [np.array([8])]], WITH_MASK, 11)
    assert text.tokens.tolist() == [CLS, 5, 6, SEP, 7, SEP, CLS, 8, SEP, 0, 0]
    assert text.segment_ids.tolist() == [1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0]
    assert text.token_types.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert text.special.tolist() == [True, False, False, True, False, True, True, False, True, True, True]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.floats(0.05, 0.9), st.integers(0, 99))
def test_whole_words_are_hidden_whole(sizes, rate, seed):
    starts = np.zeros(2000, bool)
    word = np.repeat(np.arange(len(sizes)), sizes)
    tokens = np.arange(len(word)) + 1000
    starts[1000 + np.cumsum([0, *sizes[:-1]])] = True
    inputs, hidden = hide(tokens, np.ones(len(tokens)), masking(rate, 1.0, 0.0, starts), seed)
    target = max(1, round(rate * len(tokens)))
    assert len(hidden) <= target
    counts = np.bincount(word[hidden], minlength=len(sizes))
    assert all(count in (0, size) for count, size in zip(counts, sizes, strict=True))
    # Words are taken as long as one fits: none of those left would.
    left = [size for count, size in zip(counts, sizes, strict=True) if not count]
    assert all(size > target - len(hidden) for size in left)
    assert (inputs[hidden] == 3).all()


def test_a_word_ends_at_a_special_token():
    # The second text does not begin with a token that begins a word: it is a word by itself all the same.
    starts = np.zeros(2000, bool)
    tokens, maskable = np.array([1, 1000, 1001, 2, 1002, 1003, 2]), [0, 1, 1, 0, 1, 1, 0]
    seen = {tuple(hide(tokens, maskable, masking(0.5, 1.0, 0.0, starts), seed)[1].tolist()) for seed in range(20)}
    assert seen == {(1, 2), (4, 5)}


def test_sentence_pairs_by_hand():
    cache = cache_of("abcdefgh", "QRSTUVWXYZ")
    task = make(sentence_pairs="sentence_order", mask_share=0.0, random_share=0.0)
    rows, seen = task.rows(cache), set()
    assert rows.num_rows == 2, "one pair a row"
    for seed in range(40):
        batch = features(task, cache, [0], seed)
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "masked_positions", "labels"} | {
            "pair_labels"
        }
        row, label = batch["input_ids"][0].tolist(), int(batch["pair_labels"][0])
        cut = row.index(SEP)
        first, second = bytes(row[1:cut]).decode(), bytes(row[cut + 1 : 10]).decode()
        assert row == [CLS, *first.encode(), SEP, *second.encode(), SEP, 0, 0, 0, 0, 0]
        assert first and second
        assert (second + first if label else first + second) == "abcdefgh"
        assert batch["token_type_ids"][0].tolist() == [0] * (cut + 1) + [1] * (10 - cut) + [0] * 5
        assert batch["attention_mask"][0].tolist() == [1] * 11 + [0] * 5
        seen.add((label, len(first)))
    assert {label for label, _ in seen} == {0, 1} and len(seen) > 10, "in either order, cut anywhere"


def test_the_second_text_is_of_another_document():
    cache = cache_of("aaaaaaaaaa", "bbbbbb", "cc")
    task = make(sentence_pairs="next_sentence", mask_share=0.0, random_share=0.0)
    taken = set()
    for seed in range(60):
        batch = features(task, cache, [0, 1, 2, 3], seed)
        assert batch["pair_labels"][3] == -100 and not batch["attention_mask"][3].any(), "padding is no pair"
        for row, letter in enumerate("abc"):
            ids = batch["input_ids"][row].tolist()
            first, second = bytes(i for i in ids if 0 < i < 256).decode(), ids[ids.index(SEP) + 1 :]
            second = bytes(second[: second.index(SEP)]).decode()
            first = first.removesuffix(second)
            whole = {"a": 10, "b": 6, "c": 2}[letter]
            if batch["pair_labels"][row] == 0:
                assert first + second == letter * whole
            else:
                assert set(first) == {letter} and len(set(second)) == 1 and letter not in second
                assert 0 < len(second) <= whole - len(first)
                taken.add((letter, second[0]))
    assert taken == {(x, y) for x in "abc" for y in "abc" if x != y}


def test_more_than_all_tokens_cannot_be_shared_out():
    with pytest.raises(ValidationError, match=r"mask_share is 0.8 and random_share 0.3, expected at most 1 together"):
        MaskedLMConfig(random_share=0.3)


CACHE = cache_of("abcdefgh", "QRSTUVWXYZ", "hello there", "x", "and so on and on")


def loss_by_full_logits(model, params, batch):
    """The cross-entropy at the hidden places, by optax from the logits of every token."""
    names = ("input_ids", "segment_ids", "attention_mask", "token_type_ids")
    output = model.apply({"params": params}, **{name: batch[name] for name in names if name in batch})
    logits = jnp.take_along_axis(output.logits, batch["masked_positions"][..., None], axis=1)
    kept = batch["labels"] >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(kept, batch["labels"], 0))
    return jnp.sum(losses * kept), output.pair_logits


def loss_and_gradient(task, model, params, batch):
    def objective(p):
        sums = task.loss(model, p, batch, None)
        return sums.objective, sums

    return jax.jit(jax.value_and_grad(objective, has_aux=True))(params)


def assert_gradients_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(b))) + 1e-6)


def test_loss_and_gradient_equal_those_of_full_logits():
    task = make(T=16, rate=0.3, chunk_tokens=4)
    model = task.model(config_of("bert"))
    params = random_params(model)
    batch = on_device(features(task, CACHE, list(range(6))))
    assert batch["labels"].shape == (6, 5)
    (loss, sums), gradient = loss_and_gradient(task, model, params, batch)
    expected, by_hand = jax.jit(jax.value_and_grad(lambda p: loss_by_full_logits(model, p, batch)[0]))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(sums.metrics["loss"], expected, rtol=1e-5)
    assert sums.weight == (batch["labels"] >= 0).sum() > 5
    assert_gradients_equal(gradient, by_hand)


def test_loss_with_pairs_by_hand():
    task = make(T=19, rate=0.25, sentence_pairs="next_sentence")
    model = task.model(config_of("bert"))
    params = random_params(model)
    batch = on_device(features(task, CACHE, [0, 1, 2, 3, 4]))
    assert sorted(batch["pair_labels"].tolist())[0] == -100 and set(batch["pair_labels"].tolist()) == {-100, 0, 1}

    def by_hand(p):
        tokens, pair_logits = loss_by_full_logits(model, p, batch)
        real = batch["pair_labels"] >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(pair_logits, jnp.where(real, batch["pair_labels"], 0))
        # A row has round(0.25 * (19 - 3)) = 4 hidden tokens when it is full; a pair weighs as much.
        return tokens + 4 * jnp.sum(losses * real), (tokens, 4 * jnp.sum(losses * real), pair_logits)

    (expected, (tokens, pairs, logits)), expected_gradient = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(params)
    (_, sums), gradient = loss_and_gradient(task, model, params, batch)
    np.testing.assert_allclose(sums.objective, expected, rtol=1e-5)
    np.testing.assert_allclose(sums.metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(sums.metrics["masked_lm_loss"], tokens, rtol=1e-5)
    np.testing.assert_allclose(sums.metrics["pair_loss"], pairs, rtol=1e-5)
    assert sums.weight == (batch["labels"] >= 0).sum()
    right = sum(int(np.argmax(row)) == int(label) for row, label in zip(logits, batch["pair_labels"], strict=True))
    assert sums.metrics["pair_accuracy"] == 4 * right
    assert_gradients_equal(gradient, expected_gradient)
