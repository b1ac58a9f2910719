from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.data import PackedRows, StreamRows, TokenCache


def cache_of(*lengths):
    """Documents whose tokens are 0, 1, 2, ... all through, so that a token says where it stood."""
    offsets = np.cumsum([0, *lengths])
    return TokenCache(Path(), np.arange(offsets[-1], dtype=np.uint16), offsets.astype(np.int64))


def test_packed_rows_by_hand():
    # Documents: 0 1 2 | 3 4 | 5 | 6 7 8 9 10; rows of 4 + 1 tokens that share one with the next.
    rows = PackedRows(cache_of(3, 2, 1, 5), 4)
    assert (rows.num_rows, rows.row_length, rows.num_phases, rows.shortage) == (3, 5, 1, None)
    batch = rows.take(np.arange(3))
    assert batch["tokens"].tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2], [1, 2, 3, 3, 3], [1, 1, 1, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 1, 2], [0, 1, 2, 0, 0]]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_packed_rows_that_end_with_the_text():
    rows = PackedRows(cache_of(2, 3), 4)
    assert rows.num_rows == 1
    batch = rows.take(np.array([0, 1, 7]))
    assert batch["tokens"].tolist() == [[0, 1, 2, 3, 4], [0] * 5, [0] * 5]
    assert batch["segment_ids"].tolist() == [[1, 1, 2, 2, 2], [0] * 5, [0] * 5]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0] * 5, [0] * 5]


def test_packed_rows_in_any_order_and_twice():
    rows = PackedRows(cache_of(3, 2, 1, 5), 4)
    batch, whole = rows.take(np.array([2, 0, 0]), np.array([1, 2, 3])), rows.take(np.arange(3))
    for name, array in batch.items():
        np.testing.assert_array_equal(array, whole[name][[2, 0, 0]])


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(1, 12))
def test_packed_rows_hold_every_transition_once(lengths, T):
    cache = cache_of(*lengths)
    rows = PackedRows(cache, T)
    batch = rows.take(np.arange(rows.num_rows))
    tokens, segments, positions = (batch[name] for name in ("tokens", "segment_ids", "position_ids"))
    within = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    trained = np.stack([tokens[:, :-1][within], tokens[:, 1:][within]], axis=1).tolist()
    document = np.repeat(np.arange(len(lengths)), lengths)
    expected = [[i, i + 1] for i in range(len(document) - 1) if document[i] == document[i + 1]]
    assert trained == expected
    # The slow way: a piece goes on while the document is the same.
    for row in range(rows.num_rows):
        segment = position = 0
        for column in range(T + 1):
            index = row * T + column
            if index >= len(document):
                assert (segments[row, column], positions[row, column], tokens[row, column]) == (0, 0, 0)
                continue
            new = column == 0 or document[index] != document[index - 1]
            segment, position = (segment + 1, 0) if new else (segment, position + 1)
            assert (segments[row, column], positions[row, column], tokens[row, column]) == (segment, position, index)


def test_stream_rows_for_evaluation_by_hand():
    rows = StreamRows(cache_of(3, 5), 3)
    assert rows.num_rows == 3
    batch = rows.take(np.arange(4))
    assert sorted(batch) == ["tokens", "valid"]
    assert batch["tokens"].tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 0, 0], [0, 0, 0, 0]]
    assert batch["valid"].tolist() == [[True] * 4, [True] * 4, [True, True, False, False], [False] * 4]


def test_stream_rows_for_training_by_hand():
    rows = StreamRows(cache_of(3, 5), 3)
    for phase, starts in {0: [0, 3, 4], 1: [0, 2, 4], 2: [0, 1, 4]}.items():
        batch = rows.take(np.arange(3), np.full(3, phase))
        assert list(batch) == ["tokens"]
        assert batch["tokens"].tolist() == [[start + i for i in range(4)] for start in starts]


@given(st.integers(2, 60), st.integers(1, 12), st.data())
def test_stream_rows_for_training_are_full_distinct_and_leave_out_little(num_tokens, T, data):
    if num_tokens <= T:
        return
    rows = StreamRows(cache_of(num_tokens), T)
    phase = data.draw(st.integers(0, T - 1))
    tokens = rows.take(np.arange(rows.num_rows), np.full(rows.num_rows, phase))["tokens"]
    assert (np.diff(tokens, axis=1) == 1).all()
    assert len(set(tokens[:, 0])) == rows.num_rows
    assert len(set(tokens[:, :-1].ravel())) >= num_tokens - 1 - phase


@given(st.integers(2, 60), st.integers(1, 12))
def test_stream_rows_for_evaluation_hold_every_transition_once(num_tokens, T):
    rows = StreamRows(cache_of(num_tokens), T)
    batch = rows.take(np.arange(rows.num_rows))
    assert batch["tokens"][:, 1:][batch["valid"][:, 1:]].tolist() == list(range(1, num_tokens))
    assert batch["tokens"][:, :-1][batch["valid"][:, 1:]].tolist() == list(range(num_tokens - 1))
