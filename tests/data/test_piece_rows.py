from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data import TokenCache, TrainBatches
from jaxformer.data.piece_rows import SHORTEST_PIECE, PieceRows, pack, split_pieces
from jaxformer.schema import UserError
from jaxformer.tasks.span_corruption import corrupted_lengths

EOS = 60_000


def cache_of(*lengths, ends=False):
    """Documents whose tokens are 0, 1, 2, ... all through; with `ends` each has the end of text behind it."""
    documents = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    if ends:
        documents = [np.append(document, EOS) for document in documents]
    offsets = np.cumsum([0, *map(len, documents)])
    return TokenCache(Path(), np.concatenate(documents).astype(np.uint16), offsets.astype(np.int64))


def rows_of(lengths, limit, extra=0, **settings):
    return PieceRows(cache_of(*lengths), lambda n: (n + extra,), (limit,), None, **settings)


def pieces_of(rows):
    """All pieces, a list of lists of tokens for each row."""
    batch = rows.take(np.arange(rows.num_rows))
    pairs = zip(batch["tokens"], batch["segment_ids"], strict=True)
    return [[piece.tolist() for piece in split_pieces(*pair)] for pair in pairs]


def test_rows_by_hand():
    # Documents: 0 1 2 | 3 4 | 5 | 6 7 8 9 10. Rows of 8 with two special tokens a piece: 5 + 3 = 8 fill the first.
    rows = rows_of((3, 2, 1, 5), 8, extra=2)
    assert (rows.num_rows, rows.num_phases, rows.shortage) == (3, 1, None)
    batch = rows.take(np.arange(3))
    assert batch["tokens"].tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0], [6, 7, 8, 9, 10]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 2, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["row_ids"].tolist() == [0, 1, 2]


def test_a_document_is_cut_where_it_no_longer_fits():
    # 20 tokens, then 30 of which 12 fit behind them, then the other 18 and 5 more in the next row.
    assert [[len(piece) for piece in row] for row in pieces_of(rows_of((20, 30, 5), 32))] == [[20, 12], [18, 5]]


def test_no_cut_leaves_a_scrap_on_either_side():
    # What is left of the row would be a piece of 7: the document goes to the next row.
    assert [[len(p) for p in row] for row in pieces_of(rows_of((25, 30), 32))] == [[25], [30]]
    # What is left of the document would be 3: the cut comes earlier.
    assert [[len(p) for p in row] for row in pieces_of(rows_of((35,), 32))] == [[27], [8]]
    # 10 tokens cannot be cut in two pieces of 8.
    assert [[len(p) for p in row] for row in pieces_of(rows_of((23, 10), 32))] == [[23], [10]]
    # In a row too short for that a last token is kept where the objective needs two.
    assert [[len(p) for p in row] for row in pieces_of(rows_of((5,), 4, smallest=2))] == [[3], [2]]


def test_one_piece_a_row():
    assert pieces_of(rows_of((3, 2), 8, pieces_per_row=1)) == [[[0, 1, 2]], [[3, 4]]]
    assert pieces_of(rows_of((1, 2, 3), 16, pieces_per_row=2)) == [[[0], [1, 2]], [[3, 4, 5]]]


def test_documents_too_short_are_left_out():
    assert pieces_of(rows_of((3, 1, 2, 1), 16, smallest=2)) == [[[0, 1, 2], [4, 5]]]


def test_the_end_of_text_is_left_out():
    cache = cache_of(3, 2, ends=True)
    assert cache.tokens.tolist() == [0, 1, 2, EOS, 3, 4, EOS]
    assert pieces_of(PieceRows(cache, lambda n: (n,), (8,), EOS)) == [[[0, 1, 2], [3, 4]]]
    # A document that is nothing but its end, and one that was cut and has none.
    odd = TokenCache(Path(), np.array([EOS, 7, 8], np.uint16), np.array([0, 1, 3]))
    assert pieces_of(PieceRows(odd, lambda n: (n,), (8,), EOS)) == [[[7, 8]]]
    # The id belongs to the text where the tokenizer has no end of text.
    assert pieces_of(PieceRows(cache, lambda n: (n,), (8,), None)) == [[[0, 1, 2, EOS], [3, 4, EOS]]]


def test_rows_past_the_end_are_padding():
    rows = rows_of((3, 2), 8)
    batch = rows.take(np.array([1, 0, 7]))
    assert batch["tokens"].tolist() == [[0] * 5, [0, 1, 2, 3, 4], [0] * 5]
    assert batch["segment_ids"].tolist() == [[0] * 5, [1, 1, 1, 2, 2], [0] * 5]


lengths_of = {
    "plain": lambda n: (n,),
    "two special tokens": lambda n: (n + 2,),
    "three limits": lambda n: (n + 1, n // 2 + 2, 4),
    "spans": lambda n: corrupted_lengths(n, 0.15, 3.0),
}


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.integers(1, 70), min_size=1, max_size=12),
    kind=st.sampled_from(sorted(lengths_of)),
    limits=st.tuples(st.integers(6, 50), st.integers(6, 50), st.integers(4, 20)),
    pieces_per_row=st.sampled_from([None, 1, 2]),
    smallest=st.integers(1, 3),
    ends=st.booleans(),
)
def test_every_token_is_in_one_piece_and_every_row_fits(documents, kind, limits, pieces_per_row, smallest, ends):
    lengths = lengths_of[kind]
    limits = limits[: len(lengths(1))]
    if any(used > limit for used, limit in zip(lengths(2 * smallest), limits, strict=True)):
        return
    cache = cache_of(*documents, ends=ends)
    rows = PieceRows(cache, lengths, limits, EOS if ends else None, pieces_per_row, smallest)
    pieces = pieces_of(rows) if rows.num_rows else []
    number = np.repeat(np.arange(len(documents)), documents)
    expected = [token for token in range(len(number)) if documents[number[token]] >= smallest]
    assert [token for row in pieces for piece in row for token in piece] == expected
    for row in pieces:
        assert 1 <= len(row) <= (pieces_per_row or len(row))
        used = np.sum([lengths(len(piece)) for piece in row], axis=0)
        assert (used <= limits).all()
        for piece in row:
            assert len(piece) >= smallest
            assert len(set(number[piece])) == 1, "a piece is of one document"
    # Where a row holds two of the shortest pieces, no cut makes a shorter one.
    if all(used <= limit for used, limit in zip(lengths(2 * SHORTEST_PIECE), limits, strict=True)):
        assert all(len(p) >= min(SHORTEST_PIECE, documents[number[p[0]]]) for row in pieces for p in row)


def test_text_of_another_document():
    # One document makes nearly all pieces: only luck would draw one of the other two.
    rows = rows_of((4000, 9, 10), 20, pieces_per_row=1)
    generator = np.random.default_rng(0)
    texts = [tuple(rows.text_of_another_document(5, generator).tolist()) for _ in range(200)]
    assert set(texts) == {tuple(range(4000, 4009)), tuple(range(4009, 4019))}
    assert 100 - 5 * 50**0.5 < texts.count(texts[0]) < 100 + 5 * 50**0.5, "evenly"
    # Of the row of the second document every piece of the first and of the third.
    last = rows.num_rows - 1
    firsts = [int(rows.text_of_another_document(last - 1, generator)[0]) for _ in range(3000)]
    assert all(first < 4000 or first == 4009 for first in firsts)
    assert len(set(firsts)) == last


def test_text_of_another_document_than_all_of_a_row():
    rows = rows_of((5, 6, 7, 8), 18)
    assert [len(row) for row in pieces_of(rows)] == [3, 1]
    generator = np.random.default_rng(0)
    assert {int(rows.text_of_another_document(0, generator)[0]) for _ in range(50)} == {18}
    assert {int(rows.text_of_another_document(1, generator)[0]) for _ in range(50)} == {0, 5, 11}


def test_text_of_the_only_document_is_all_there_is():
    text = rows_of((5,), 8).text_of_another_document(0, np.random.default_rng(0))
    assert text.tolist() == [0, 1, 2, 3, 4] and text.dtype == np.int32


def test_nothing_long_enough():
    rows = rows_of((1, 1), 8, smallest=2)
    assert rows.num_rows == 0
    with pytest.raises(UserError, match=r"the training data has no document long enough, expected at least one: use"):
        TrainBatches(rows, 2, seed=0)


def test_a_row_too_short_for_any_piece():
    with pytest.raises(UserError, match=r"a row of 4 tokens, special tokens included, holds no piece of 3: raise"):
        rows_of((9,), 4, extra=2, smallest=3)


def test_pack_and_split_by_hand():
    tokens, segments = pack([np.array([5, 6]), np.array([7])], 5)
    assert tokens.tolist() == [5, 6, 7, 0, 0]
    assert segments.tolist() == [1, 1, 2, 0, 0]
    assert [piece.tolist() for piece in split_pieces(tokens, segments)] == [[5, 6], [7]]
    assert split_pieces(np.zeros(3, np.int32), np.zeros(3, np.int32)) == []
