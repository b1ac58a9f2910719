import jax
import numpy as np
import pytest

from jaxformer.tasks.prefix_lm import PrefixLM, PrefixLMConfig
from tests.tasks.tiny import PAD, SEP, WITH_MASK, bytes_of, cache_of, config_of, features, random_params


def make(T=16, architecture="decoder", start="pad", **settings):
    return PrefixLM(PrefixLMConfig(**settings), WITH_MASK, T, architecture, start)


def test_features_of_a_decoder_by_hand():
    # Texts of two tokens can be cut at one place only.
    batch = features(make(T=8), cache_of("ab", "xy"), [0, 4])
    assert set(batch) == {"input_ids", "segment_ids", "prefix_mask", "labels"}
    assert batch["input_ids"].tolist() == [[97, 98, SEP, 120, 121, SEP, 0, 0], [0] * 8]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 0, 0], [0] * 8]
    assert batch["prefix_mask"].tolist() == [[1, 0, 0, 1, 0, 0, 0, 0], [0] * 8]
    # The last token of a prefix is asked for the first of the rest; the end of a text for nothing.
    assert batch["labels"].tolist() == [[98, SEP, -100, 121, SEP, -100, -100, -100], [-100] * 8]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_a_text_is_cut_anywhere():
    task, cuts = make(T=8), []
    for seed in range(500):
        batch = features(task, cache_of("abcde"), seed=seed)
        cut = int(batch["prefix_mask"].sum())
        assert batch["prefix_mask"][0].tolist() == [1] * cut + [0] * (8 - cut)
        labels = [-100] * (cut - 1) + [*bytes_of("abcde")[cut:], SEP] + [-100] * 3
        assert batch["labels"][0].tolist() == labels
        cuts.append(cut)
    counts = np.bincount(cuts, minlength=5)
    assert counts[0] == 0 and len(counts) == 5
    assert (abs(counts[1:] - 125) < 5 * np.sqrt(500 * 3 / 16)).all()


def test_features_of_an_encoder_decoder_by_hand():
    batch = features(make(T=8, architecture="encoder_decoder"), cache_of("ab", "xy"))
    assert batch["input_ids"].tolist() == [[97, SEP, 120, SEP, 0, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 2, 2, 0, 0, 0, 0]]
    assert batch["decoder_input_ids"].tolist() == [[PAD, 98, PAD, 121, 0, 0, 0, 0]]
    assert batch["decoder_segment_ids"].tolist() == [[1, 1, 2, 2, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[98, SEP, 121, SEP, -100, -100, -100, -100]]
    start = features(make(T=8, architecture="encoder_decoder", start="sep"), cache_of("ab"))
    assert start["decoder_input_ids"][0, :3].tolist() == [SEP, 98, 0]


@pytest.mark.parametrize("length", range(2, 16))
def test_prefix_and_rest_of_a_full_row_fit(length):
    text = list(range(1, length + 1))
    for seed in range(5):
        batch = features(make(T=length + 1, architecture="encoder_decoder"), cache_of(text), seed=seed)
        source, labels = batch["input_ids"][batch["segment_ids"] > 0].tolist(), batch["labels"]
        assert source[-1] == SEP
        assert source[:-1] + labels[labels >= 0].tolist() == [*text, SEP]


def scorer(model, params):
    """The logits of a batch."""
    logits = jax.jit(lambda inputs: model.apply({"params": params}, **inputs).logits)
    return lambda batch: logits({name: array for name, array in batch.items() if name != "labels"})


def one_row(cut, tokens):
    """A text of a decoder with a prefix of `cut` tokens."""
    T = len(tokens)
    return {
        "input_ids": np.array([tokens]),
        "segment_ids": np.ones((1, T), np.int32),
        "prefix_mask": (np.arange(T) < cut).astype(np.int32)[None],
    }


def changed(one, other):
    return (np.abs(np.asarray(one - other)[0]).max(axis=-1) > 1e-4).tolist()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bloom"])
def test_a_prefix_is_read_from_both_sides(kind):
    model = make().model(config_of(kind))
    score = scorer(model, random_params(model))
    tokens = [11, 12, 13, 14, 15, 16, 17]

    def after_change(place):
        other = [99 if i == place else token for i, token in enumerate(tokens)]
        return changed(score(one_row(4, tokens)), score(one_row(4, other)))

    assert after_change(3) == [True] * 7, "all see the whole prefix, the tokens before it too"
    assert after_change(4) == [False] * 4 + [True] * 3, "what follows is seen by what follows it"
    assert after_change(6) == [False] * 6 + [True]
    # Without a prefix the model is causal.
    causal = [score(one_row(0, row)) for row in (tokens, [*tokens[:3], 99, *tokens[4:]])]
    assert changed(*causal) == [False] * 3 + [True] * 4


def test_packed_texts_equal_their_texts_one_by_one():
    task = make(T=12, chunk_tokens=5)
    model = task.model(config_of("gpt2"))
    params = random_params(model)
    loss = jax.jit(lambda batch: task.loss(model, params, batch, None))
    texts = ("ab", "xy", "mn")  # with one place to cut
    together, alone = features(task, cache_of(*texts)), [features(task, cache_of(text)) for text in texts]
    sums, each = loss(together), [loss(batch) for batch in alone]
    np.testing.assert_allclose(sums.objective, sum(one.objective for one in each), rtol=1e-5)
    assert sums.weight == sum(one.weight for one in each) == 6
    score = scorer(model, params)
    logits = score(together)[0]
    for number, batch in enumerate(alone):
        single = score(batch)[0, :3]
        np.testing.assert_allclose(logits[3 * number : 3 * number + 3], single, atol=1e-4)
