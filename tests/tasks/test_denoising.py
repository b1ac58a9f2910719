import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.tasks.denoising import Denoising, DenoisingConfig, infill_text, permute_sentences, span_lengths
from tests.tasks.tiny import CLS, MASK, PAD, SEP, WITH_MASK, bytes_of, cache_of, features


def make(T=16, start="sep", **settings):
    return Denoising(DenoisingConfig(**settings), WITH_MASK, T, "encoder_decoder", start)


def infill(length, rate=0.3, mean_span=3.0, seed=0):
    """Of the text 1, 2, ... length; 0 is the mask."""
    generator = np.random.default_rng(seed)
    return infill_text(np.arange(1, length + 1), generator, mask_id=0, rate=rate, mean_span=mean_span)


def test_span_lengths_have_the_distribution_of_poisson():
    # All but the last are as they were drawn; the sum is reached after some 20 000 of them.
    lengths = span_lengths(60_000, 3.0, np.random.default_rng(0))
    assert lengths.sum() == 60_000
    drawn = lengths[:-1]
    n = len(drawn)
    for k in range(8):
        share = math.exp(-3) * 3**k / math.factorial(k)
        assert abs((drawn == k).sum() - n * share) < 5 * math.sqrt(n * share * (1 - share))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 80), st.floats(0.0, 0.95), st.floats(0.2, 8.0), st.integers(0, 999))
def test_what_is_not_masked_is_kept_in_order(length, rate, mean_span, seed):
    got = infill(length, rate, mean_span, seed).tolist()
    assert len(got) <= length
    kept = [token for token in got if token]
    assert kept == sorted(set(kept)) and set(kept) <= set(range(1, length + 1))
    assert len(kept) == length - round(rate * length), "the masked share is exact"
    # Wherever a token is gone there is a mask token.
    places = [0, *[got.index(token) + 1 for token in kept], len(got) + 1]
    tokens = itertools.pairwise([0, *kept, length + 1])
    for (one, other), (i, j) in zip(tokens, itertools.pairwise(places), strict=True):
        assert j > i + 1 or other == one + 1


def test_spans_of_no_tokens_are_holes_between_tokens():
    # 0.4 * 5 tokens are 2, in a span of 2, two of 1, or one of 2 and a hole; more holes would make the text grow.
    seen = {tuple(infill(5, 0.4, 1.0, seed).tolist()) for seed in range(4000)}
    assert {len(text) for text in seen} == {4, 5}
    one = {(*range(1, i), 0, *range(i + 2, 6)) for i in range(1, 5)}
    assert {text for text in seen if len(text) == 4} == one
    # Two mask tokens among three kept ones, C(5, 2) = 10 places, and spans of (1, 1), (2, 0) or (0, 2) in them.
    expected = set()
    for first in range(4):
        for second in range(first, 4):
            for sizes in ((1, 1), (2, 0), (0, 2)):
                text, token = [], 1
                for place in range(4):
                    for at, size in zip((first, second), sizes, strict=True):
                        if at == place:
                            text.append(0)
                            token += size
                    if place < 3:
                        text.append(token)
                        token += 1
                expected.add(tuple(text))
    assert {text for text in seen if len(text) == 5} == expected
    assert (1, 0, 2, 0, 5) in expected, "a hole was added between 1 and 2"


def test_a_span_is_anywhere():
    # One token of ten is masked, by a span of 1 or with a zero before it: then the zero is left out.
    starts = np.array([int(np.flatnonzero(infill(10, 0.1, 3.0, seed) == 0)[0]) for seed in range(2000)])
    counts = np.bincount(starts, minlength=10)
    assert (abs(counts - 200) < 5 * math.sqrt(200 * 0.9)).all()


def test_sentences_by_hand():
    tokens, ends = np.array([1, 2, 3, 4, 5, 6]), np.array([0, 1, 0, 1, 0, 0], bool)
    a, b, c = (1, 2), (3, 4), (5, 6)
    seen = [tuple(permute_sentences(tokens, ends, np.random.default_rng(seed)).tolist()) for seed in range(1200)]
    orders = [a + b + c, a + c + b, b + a + c, b + c + a, c + a + b, c + b + a]
    assert set(seen) == set(orders)
    assert all(abs(seen.count(order) - 200) < 5 * math.sqrt(1200 * 5 / 36) for order in orders)
    # An end at the end of the text makes no empty sentence; a text without any is one sentence.
    ends = np.array([1, 0, 0, 0, 0, 1], bool)
    seen = {tuple(permute_sentences(tokens, ends, np.random.default_rng(seed)).tolist()) for seed in range(40)}
    assert seen == {(1, 2, 3, 4, 5, 6), (2, 3, 4, 5, 6, 1)}
    assert permute_sentences(tokens, np.zeros(6, bool), np.random.default_rng(0)).tolist() == [1, 2, 3, 4, 5, 6]


def test_features_by_hand():
    batch = features(make(T=12, rate=0.0, permute_sentences=False), cache_of("abc", "xy"), [0, 3])
    text = [CLS, 97, 98, 99, SEP, CLS, 120, 121, SEP]
    assert batch["input_ids"].tolist() == [[*text, 0, 0, 0], [0] * 12]
    assert batch["segment_ids"].tolist() == [[1] * 5 + [2] * 4 + [0] * 3, [0] * 12]
    # BART's decoder begins with </s> in every text.
    assert batch["decoder_input_ids"][0].tolist() == [SEP, CLS, 97, 98, 99, SEP, CLS, 120, 121, 0, 0, 0]
    assert batch["decoder_segment_ids"].tolist() == batch["segment_ids"].tolist()
    assert batch["labels"].tolist() == [[*text, -100, -100, -100], [-100] * 12]
    start = features(make(T=12, start="pad", rate=0.0, permute_sentences=False), cache_of("abc"))
    assert start["decoder_input_ids"][0, :6].tolist() == [PAD, CLS, 97, 98, 99, 0]


def test_the_text_is_told_as_it_was():
    task = make(T=24, rate=0.4)
    cache = cache_of("Is it? No. Yes! Why", "one.two")
    inputs = set()
    for seed in range(30):
        batch = features(task, cache, seed=seed)
        assert batch["labels"][0, :21].tolist() == [CLS, *bytes_of("Is it? No. Yes! Why"), SEP]
        row = batch["input_ids"][0][batch["segment_ids"][0] == 1].tolist()
        assert row[0] == CLS and row[-1] == SEP and MASK in row and len(row) <= 21
        assert sum(i < 256 for i in row) == 19 - round(0.4 * 19)
        inputs.add(tuple(row))
    assert len(inputs) == 30
    # Sentences are shuffled whole, by the ends the tokenizer knows.
    task = make(T=24, rate=0.0)
    seen = {bytes(features(task, cache, [1], seed)["input_ids"][0, 1:8].tolist()).decode() for seed in range(20)}
    assert seen == {"one.two", "twoone."}
