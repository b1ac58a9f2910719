"""Rows of T + 1 tokens cut from a token cache; neighbours share one token, so each transition is in exactly one row."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from jaxformer.data.token_cache import TokenCache

Batch = dict[str, np.ndarray]


class Rows(Protocol):
    """A table of rows that is read many rows at a time.

    Attributes:
        num_rows: Rows that hold the whole split, the last perhaps in part.
        num_phases: In how many ways an epoch may cut the split into rows; 1 if there is only one.
        shortage: What a split without a single whole row lacks, for an error; None if it has one.
        records: The records of the rows in their order, where some of the split were left out; else None.
        left_out: File and line of each record that was left out, and why.
    """

    num_rows: int
    num_phases: int
    shortage: str | None
    records: Sequence[Any] | None
    left_out: Sequence[tuple[str, str]]

    def take(self, indices: np.ndarray, phases: np.ndarray | None = None, keep: np.ndarray | None = None) -> Batch:
        """The rows `indices` [B], arrays with the batch in front.

        An index of `num_rows` or more gives a row of nothing but padding. Training gives `phases` [B], each below
        `num_phases`, for layouts that cut the text at other places in every epoch; evaluation gives none. With `keep`
        it is only the rows `indices[keep]`, as long as they would be among all: each process of a run reads a part of
        the batch, and all parts must have one shape.
        """


def make_rows(cache: TokenCache, layout: Literal["packed", "stream"], T: int) -> Rows:
    """The rows of a split in the layout that the configuration names."""
    return PackedRows(cache, T) if layout == "packed" else StreamRows(cache, T)


class _CacheRows:
    """Rows of T + 1 tokens of a token cache."""

    num_phases = 1
    records: Sequence[Any] | None = None
    left_out: Sequence[tuple[str, str]] = ()

    def __init__(self, cache: TokenCache, T: int) -> None:
        self._cache, self._stride, self.row_length = cache, T, T + 1
        # Enough for all `num_tokens - 1` transitions; the last row may be incomplete.
        self.num_rows = -(-(cache.num_tokens - 1) // T)
        self.shortage: str | None = None
        if cache.num_tokens <= T:
            need = f"expected at least one row of {T + 1}: use more text or shorter sequences"
            self.shortage = f"{cache.num_tokens} tokens, {need}"


class PackedRows(_CacheRows):
    """Documents packed one after the other and cut into rows, with segment ids that separate them.

    Row r holds the tokens [r T, r T + T] of the split. Batches have `tokens`, `segment_ids` (the pieces of documents in
    a row numbered from 1; 0 is padding, which only the end of the last row has) and `position_ids` (from 0 in each
    piece).
    """

    def take(self, indices: np.ndarray, phases: np.ndarray | None = None, keep: np.ndarray | None = None) -> Batch:
        """The rows `indices`; documents are packed the same way in every epoch, whatever `phases` says."""
        indices = kept(indices, keep)
        starts = indices * self._stride
        tokens, valid = _read(self._cache.tokens, starts, self.row_length, indices < self.num_rows)
        # 1 where a document begins; its running sum numbers the pieces. Searching once a row, not once a token.
        begins = np.zeros(tokens.shape, np.int32)
        begins[:, 0] = 1
        offsets = self._cache.offsets
        first, last = np.searchsorted(offsets, [starts, starts + self.row_length])
        for row, (start, low, high) in enumerate(zip(starts, first, last, strict=True)):
            begins[row, offsets[low:high] - start] = 1
        columns = np.arange(self.row_length, dtype=np.int32)
        positions = columns - np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
        return {
            "tokens": tokens,
            "segment_ids": np.where(valid, np.cumsum(begins, axis=1, dtype=np.int32), 0),
            "position_ids": np.where(valid, positions, 0),
        }


class StreamRows(_CacheRows):
    """One contiguous text cut into rows, whatever documents it consists of, as nanoGPT reads it.

    In evaluation row r holds the tokens [r T, r T + T]; `valid` is False on the padding at the end of the last row. In
    training the rows begin `phase` tokens earlier, so that the text is not always cut at the same places; the first and
    the last are moved inside the text, so that all are full and batches have `tokens` only. At most `phase` transitions
    at the end are left out of an epoch for that.
    """

    def __init__(self, cache: TokenCache, T: int) -> None:
        super().__init__(cache, T)
        self.num_phases = T

    def take(self, indices: np.ndarray, phases: np.ndarray | None = None, keep: np.ndarray | None = None) -> Batch:
        """The rows `indices`, each shifted by its phase in training."""
        indices, phases = kept(indices, keep), None if phases is None else kept(phases, keep)
        starts = indices * self._stride
        is_row = indices < self.num_rows
        if phases is None:
            tokens, valid = _read(self._cache.tokens, starts, self.row_length, is_row)
            return {"tokens": tokens, "valid": valid}
        starts = np.clip(starts - phases, 0, self._cache.num_tokens - self.row_length)
        return {"tokens": _read(self._cache.tokens, starts, self.row_length, is_row)[0]}


def kept(indices: np.ndarray, keep: np.ndarray | None) -> np.ndarray:
    """``indices[keep]``; all of them if `keep` is None."""
    indices = np.asarray(indices, np.int64)
    return indices if keep is None else indices[keep]


def _read(stored: np.ndarray, starts: np.ndarray, length: int, is_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The `length` tokens from each of `starts`, and which of them are there; the others are 0."""
    tokens = np.zeros((len(starts), length), np.int32)
    counts = np.where(is_row, np.clip(len(stored) - starts, 0, length), 0)
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        tokens[row, :count] = stored[start : start + count]
    return tokens, np.arange(length) < counts[:, None]
