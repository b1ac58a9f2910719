"""Rows of whole documents or pieces of them, for objectives that change a text before the model sees it."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxformer.data.token_cache import TokenCache
from jaxformer.data.token_rows import Batch, kept
from jaxformer.schema import UserError

# Lengths that a piece of n tokens needs, for instance in the encoder and in the decoder; each number must
# not fall as the piece grows.
Lengths = Callable[[int], tuple[int, ...]]
# A document is not cut so that a piece is shorter than this, if a row holds two such pieces: it would have little
# context.
SHORTEST_PIECE = 8


class PieceRows:
    """Documents cut into pieces, and pieces put together in rows, so that what an objective makes of them fits.

    The objective says by `lengths` what it makes of a piece of n tokens, special tokens included, and by `limits` how
    much of that a row holds. Rows are filled in the order of the text; a document that does not fit in what is left of
    a row is cut there. The end-of-text id after each document is left out.

    Batches have `tokens` [B, R], `segment_ids` [B, R], which numbers the pieces of a row from 1 (0 is padding), and
    `row_ids` [B], the numbers of the rows. Documents of fewer than `smallest` tokens are left out.

    Args:
        cache: The tokens of a split.
        lengths: What a piece becomes.
        limits: What a row holds of each of `lengths`.
        eos_id: The tokenizer's end of text.
        pieces_per_row: Most pieces in a row; None: as many as fit.
        smallest: Tokens the objective needs at least.

    Raises:
        UserError: A row holds no piece of `smallest` tokens.
    """

    num_phases = 1
    records: Sequence[Any] | None = None
    left_out: Sequence[tuple[str, str]] = ()

    def __init__(
        self,
        cache: TokenCache,
        lengths: Lengths,
        limits: tuple[int, ...],
        eos_id: int | None,
        pieces_per_row: int | None = None,
        smallest: int = 1,
    ) -> None:
        self._cache = cache
        pieces = list(_plan(_documents(cache, eos_id), lengths, limits, pieces_per_row, smallest))
        rows, self._starts, self._stops, self._documents = np.array(pieces, np.int64).reshape(-1, 4).T
        self.num_rows = int(rows[-1]) + 1 if len(rows) else 0
        self._first = np.searchsorted(rows, np.arange(self.num_rows + 1))
        self.shortage = None if self.num_rows else "no document long enough, expected at least one: use more text"
        sizes = np.zeros(self.num_rows, np.int64)
        np.add.at(sizes, rows, self._stops - self._starts)
        self._width = int(sizes.max(initial=0))

    def take(self, indices: np.ndarray, phases: np.ndarray | None = None, keep: np.ndarray | None = None) -> Batch:
        """The rows `indices`; documents are put together in the same way in every epoch."""
        indices = kept(indices, keep)
        tokens = np.zeros((len(indices), self._width), np.int32)
        segments = np.zeros_like(tokens)
        for row, index in enumerate(indices.tolist()):
            if index >= self.num_rows:
                continue
            place = 0
            for number, piece in enumerate(range(self._first[index], self._first[index + 1]), 1):
                start, stop = self._starts[piece], self._stops[piece]
                end = place + stop - start
                tokens[row, place:end] = self._cache.tokens[start:stop]
                segments[row, place:end] = number
                place = end
        return {"tokens": tokens, "segment_ids": segments, "row_ids": indices}

    def text_of_another_document(self, row: int, generator: np.random.Generator) -> np.ndarray:
        """A piece of a document that has no piece in this row, drawn evenly from all such pieces.

        If there is only one document it is a piece of that.
        """
        first, last = self._documents[self._first[row]], self._documents[self._first[row + 1] - 1]
        # Pieces are in the order of their documents, so those to be left out are neighbors.
        low, high = np.searchsorted(self._documents, [first, last + 1])
        if high - low == len(self._starts):
            low = high = 0
        piece = int(generator.integers(len(self._starts) - (high - low)))
        piece += (high - low) * (piece >= low)
        return self._cache.tokens[self._starts[piece] : self._stops[piece]].astype(np.int32)


def split_pieces(tokens: np.ndarray, segment_ids: np.ndarray) -> list[np.ndarray]:
    """The pieces of one row of `PieceRows`."""
    return [tokens[segment_ids == number] for number in range(1, int(segment_ids.max(initial=0)) + 1)]


def pack(texts: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts concatenated in a row of `length`, padded with 0, and their numbers from 1 (0 is padding)."""
    tokens, segments = np.zeros(length, np.int32), np.zeros(length, np.int32)
    place = 0
    for number, text in enumerate(texts, 1):
        tokens[place : place + len(text)], segments[place : place + len(text)] = text, number
        place += len(text)
    return tokens, segments


def _documents(cache: TokenCache, eos_id: int | None) -> Iterator[tuple[int, int]]:
    """Start and end of the text of each document."""
    offsets = cache.offsets.tolist()
    for start, stop in itertools.pairwise(offsets):
        ended = stop > start and eos_id is not None and int(cache.tokens[stop - 1]) == eos_id
        yield start, stop - ended


def _plan(
    documents: Iterator[tuple[int, int]],
    lengths: Lengths,
    limits: tuple[int, ...],
    pieces_per_row: int | None,
    smallest: int,
) -> Iterator[tuple[int, int, int, int]]:
    """The pieces in order: row, start, stop, document."""
    table = [lengths(1)]
    while all(length <= limit for length, limit in zip(table[-1], limits, strict=True)):
        table.append(lengths(len(table) + 1))
    # Column k: how much of limit k pieces of 1, 2, ... tokens need.
    columns = np.array(table, np.int64).T
    row, room, pieces = 0, list(limits), 0
    for document, (start, stop) in enumerate(documents):
        while stop - start >= smallest:
            fitting = zip(columns, room, strict=True)
            longest = min(int(np.searchsorted(column, left, side="right")) for column, left in fitting)
            size = _cut(stop - start, longest, max(SHORTEST_PIECE, smallest))
            full = pieces_per_row is not None and pieces >= pieces_per_row
            if pieces and (full or not size):
                row, room, pieces = row + 1, list(limits), 0
                continue
            if longest < smallest:
                raise UserError(
                    f"a row of {' and '.join(map(str, limits))} tokens, special tokens included, holds no piece of "
                    f"{smallest}: raise training.sequence_length (or task.target_length)"
                )
            # In so short a row even the shortest piece is a large part; but no token may be left that fits nowhere.
            size = size or _cut(stop - start, longest, smallest) or longest
            yield row, start, start + size, document
            room = [left - used for left, used in zip(room, table[size - 1], strict=True)]
            start, pieces = start + size, pieces + 1


def _cut(rest: int, longest: int, shortest: int) -> int:
    """Tokens of the next piece of a text of `rest`: all, or as many as leave both parts at least `shortest`, or 0."""
    if rest <= longest:
        return rest
    size = min(longest, rest - shortest)
    return size if size >= shortest else 0
