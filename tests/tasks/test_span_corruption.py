import collections
import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.tasks.span_corruption import (
    SpanCorruption,
    SpanCorruptionConfig,
    corrupt_spans,
    corrupted_lengths,
    random_segmentation,
    span_counts,
)
from tests.tasks.tiny import PAD, SENTINEL, SEP, WITH_MASK, cache_of, features

SENTINELS = list(range(5000, 5100))
END = 4999


def make(T=16, **settings):
    return SpanCorruption(SpanCorruptionConfig(**settings), WITH_MASK, T)


def corrupt(length, rate=0.15, mean_span=3.0, seed=0):
    """Of the text 1, 2, ... length."""
    settings = {"sentinel_ids": SENTINELS, "end_id": END, "rate": rate, "mean_span": mean_span}
    return corrupt_spans(np.arange(1, length + 1), np.random.default_rng(seed), **settings)


def spans_of(tokens):
    """What stands behind each sentinel, by sentinel; and what stands before the first."""
    spans = {None: []}
    sentinel = None
    for token in tokens:
        if token in SENTINELS:
            assert token not in spans
            sentinel = token
            spans[sentinel] = []
        else:
            spans[sentinel].append(token)
    return spans


def test_span_counts_by_hand():
    assert span_counts(100, 0.15, 3.0) == (15, 5)
    assert span_counts(20, 0.5, 2.0) == (10, 5)
    assert span_counts(12, 0.15, 3.0) == (2, 1), "1.8 tokens are 2, in 0.67 spans: 1"
    assert span_counts(3, 0.15, 3.0) == (1, 1), "0.45 tokens are at least 1"
    assert span_counts(2, 0.9, 3.0) == (1, 1), "not all"
    assert span_counts(10, 0.9, 1.0) == (9, 1), "one kept token, which stands before one span only"
    assert span_counts(10, 0.7, 1.0) == (7, 3)
    assert span_counts(4000, 0.15, 3.0) == (600, 100), "no more than there are sentinels"


def test_the_lengths_of_t5():
    # Raffel et al. 2020: rows of 512 tokens, of which 15 % in spans of 3; the published targets have 114 tokens.
    assert corrupted_lengths(568, 0.15, 3.0) == (512, 114)
    assert corrupted_lengths(569, 0.15, 3.0)[0] == 513
    assert make(T=512).target_length == 114
    assert make(T=512, target_length=60).target_length == 60


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 400), st.floats(0.01, 0.99), st.floats(1.0, 12.0), st.integers(0, 999))
def test_the_target_put_back_into_the_input_is_the_text(length, rate, mean_span, seed):
    inputs, targets = corrupt(length, rate, mean_span, seed)
    assert (len(inputs), len(targets)) == corrupted_lengths(length, rate, mean_span)
    assert inputs[-1] == targets[-1] == END
    assert inputs[0] == 1 and targets[0] == SENTINELS[0], "the text begins with a kept token"
    kept, cut = spans_of(inputs[:-1].tolist()), spans_of(targets[:-1].tolist())
    noise, spans = span_counts(length, rate, mean_span)
    # The sentinels in order, each once on both sides, and a span behind each.
    assert list(kept) == [None, *SENTINELS[:spans]] == list(cut)
    assert cut[None] == [] and all(cut[sentinel] for sentinel in SENTINELS[:spans])
    assert all(kept[s] for s in [None, *SENTINELS[: spans - 1]]) and kept[SENTINELS[spans - 1]] == []
    text = kept[None] + [t for s in SENTINELS[:spans] for t in cut[s] + kept[s]]
    assert text == list(range(1, length + 1))
    assert sum(map(len, cut.values())) == noise


def test_a_text_of_four_has_three_corruptions():
    # Two tokens are cut out: in one span at the end only, or in two, each behind one kept token.
    end = END
    a, b = SENTINELS[:2]
    one = {tuple(map(tuple, (x.tolist() for x in corrupt(4, 0.5, 2.0, seed)))) for seed in range(20)}
    assert one == {((1, 2, a, end), (a, 3, 4, end))}
    two = {tuple(map(tuple, (x.tolist() for x in corrupt(4, 0.5, 1.0, seed)))) for seed in range(20)}
    assert two == {((1, a, 3, b, end), (a, 2, b, 4, end))}


def test_every_segmentation_is_equally_probable():
    possible = [parts for parts in itertools.product(range(1, 7), repeat=3) if sum(parts) == 6]
    assert len(possible) == math.comb(5, 2) == 10
    generator = np.random.default_rng(0)
    drawn = collections.Counter(tuple(random_segmentation(6, 3, generator).tolist()) for _ in range(5000))
    assert set(drawn) == set(possible)
    chi_square = sum((drawn[parts] - 500) ** 2 / 500 for parts in possible)
    assert chi_square < 33.7, "9 degrees of freedom: exceeded by chance once in 10 000 seeds"


def test_features_of_two_documents_by_hand():
    # 4 tokens with a rate of 1/2 and spans of 2 have one corruption: the second half is cut out. Of 2 tokens the last.
    task = make(T=9, rate=0.5, mean_span=2.0)
    assert task.target_length == 10, "of 11 tokens 6 are cut out in 3 spans: 5 + 3 + 1 = 9 in, 6 + 3 + 1 = 10 out"
    batch = features(task, cache_of("abcd", "xy"))
    s = SENTINEL
    assert batch["input_ids"].tolist() == [[97, 98, s, SEP, 120, s, SEP, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 0, 0]]
    assert batch["labels"].tolist() == [[s, 99, 100, SEP, s, 121, SEP, -100, -100, -100]]
    assert batch["decoder_input_ids"].tolist() == [[PAD, s, 99, 100, PAD, s, 121, 0, 0, 0]]
    assert batch["decoder_segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 0, 0, 0]]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_several_sentinels_and_another_start():
    task = SpanCorruption(SpanCorruptionConfig(rate=0.5, mean_span=1.0), WITH_MASK, 8, "encoder_decoder", "sep")
    batch = features(task, cache_of("abcd"))
    s = SENTINEL
    assert batch["input_ids"].tolist() == [[97, s, 99, s + 1, SEP, 0, 0, 0]]
    assert batch["labels"][0, :5].tolist() == [s, 98, s + 1, 100, SEP]
    assert batch["decoder_input_ids"][0, :5].tolist() == [SEP, s, 98, s + 1, 100]


def test_the_target_length_is_what_a_whole_row_needs():
    for T in (3, 8, 64, 300):
        for rate, mean_span in ((0.15, 3.0), (0.5, 1.0), (0.3, 8.0)):
            task = make(T=T, rate=rate, mean_span=mean_span)
            longest = max(n for n in range(2, 3 * T + 3) if corrupted_lengths(n, rate, mean_span)[0] <= T)
            assert task.target_length == corrupted_lengths(longest, rate, mean_span)[1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.integers(4, 40),
    st.floats(0.05, 0.9),
    st.floats(1.0, 6.0),
    st.one_of(st.none(), st.integers(3, 20)),
    st.integers(0, 99),
)
def test_no_limit_is_ever_exceeded_and_no_text_is_lost(sizes, T, rate, mean_span, target_length, seed):
    task = make(T=T, rate=rate, mean_span=mean_span, target_length=target_length)
    data = cache_of(*[[1 + (i % 200) for i in range(size)] for size in sizes])
    if not task.rows(data).num_rows:
        assert max(sizes) == 1
        return
    batch = features(task, data, seed=seed)
    assert batch["input_ids"].shape[1] == T and batch["labels"].shape[1] == task.target_length
    # A target's tokens and its input's are the text's, counted.
    ids = np.concatenate([batch["input_ids"][batch["segment_ids"] > 0], batch["labels"][batch["labels"] >= 0]])
    text = collections.Counter(ids[ids < 256].tolist())
    lost = collections.Counter(1 + (i % 200) for size in sizes if size > 1 for i in range(size)) - text
    # Rows so short that a piece of 3 does not fit may lose the last token of a document.
    fits = task._lengths(3)[0] <= T and task._lengths(3)[1] <= task.target_length
    assert not fits or not lost
    assert (batch["decoder_segment_ids"] > 0).sum() == (batch["labels"] >= 0).sum()
