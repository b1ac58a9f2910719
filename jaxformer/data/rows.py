"""Rows of T + 1 tokens cut from a token cache; neighbours share one token, so each transition is in exactly one row."""

from typing import Protocol

import numpy as np

from jaxformer.data.cache import TokenCache

Batch = dict[str, np.ndarray]


class Rows(Protocol):
    """A table of rows that is read many rows at a time.

    Attributes:
        num_tokens: Tokens of the split.
        num_rows: Rows of one epoch.
        row_length: Tokens a row, T + 1: the task shifts them into T inputs and T labels.
    """

    num_tokens: int
    num_rows: int
    row_length: int

    def take(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        """The rows `indices` [B] as int32 and bool arrays [B, T + 1].

        An index of `num_rows` or more gives a row of nothing but padding. `epochs` [B] says in which epoch each row is
        read, for layouts that cut the text anew in every epoch.
        """


class PackedRows:
    """Documents packed one behind the other and cut into rows, with what keeps them apart.

    Row r holds the tokens [r T, r T + T] of the split. Batches have `tokens`, `segment_ids` (the pieces of documents in
    a row numbered from 1; 0 is padding, which only the end of the last row has) and `position_ids` (from 0 in each
    piece).
    """

    def __init__(self, cache: TokenCache, T: int) -> None:
        self._cache = cache
        self._stride = T
        self.num_tokens = cache.num_tokens
        self.num_rows = _rows_of_all(cache.num_tokens, T)
        self.row_length = T + 1

    def take(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        """The rows `indices`; the same in every epoch."""
        starts = np.asarray(indices, np.int64) * self._stride
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


class StreamRows:
    """One contiguous text cut into rows, whatever documents it consists of, as nanoGPT reads it.

    For training (with a seed) batches have `tokens` only. Row r of an epoch starts at phase + r T, where the phase is
    drawn from 0 to T - 1 for every epoch, so that the text is not always cut at the same places; the last row is moved
    back to where it is full. Fewer than T transitions at the beginning are left out of an epoch for that.

    For evaluation (without a seed) the phase is 0, every transition is read once, and `valid` is False on the padding
    at the end of the last row.
    """

    def __init__(self, cache: TokenCache, T: int, seed: int | None = None) -> None:
        self._cache = cache
        self._stride = T
        self._seed = seed
        self.num_tokens = cache.num_tokens
        self.num_rows = _rows_of_all(cache.num_tokens, T) if seed is None else max(0, (cache.num_tokens - 1) // T)
        self.row_length = T + 1

    def phase(self, epoch: int) -> int:
        """Where the first row of a training epoch starts: a pure function of the seed and the epoch."""
        assert self._seed is not None
        # The bits of a seed sequence are promised never to change, those of a generator's methods are not.
        return int(np.random.SeedSequence([self._seed, epoch]).generate_state(1, np.uint64)[0] % self._stride)

    def take(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        """The rows `indices`, each as it is cut in its epoch."""
        starts = np.asarray(indices, np.int64) * self._stride
        if self._seed is None:
            tokens, valid = _read(self._cache.tokens, starts, self.row_length, indices < self.num_rows)
            return {"tokens": tokens, "valid": valid}
        distinct, inverse = np.unique(epochs, return_inverse=True)
        starts += np.array([self.phase(int(epoch)) for epoch in distinct])[inverse]
        starts = np.minimum(starts, self.num_tokens - self.row_length)
        tokens, _ = _read(self._cache.tokens, starts, self.row_length, indices < self.num_rows)
        return {"tokens": tokens}


def _rows_of_all(num_tokens: int, T: int) -> int:
    """How many rows hold all `num_tokens - 1` transitions, the last row perhaps in part."""
    return -(-(num_tokens - 1) // T)


def _read(stored: np.ndarray, starts: np.ndarray, length: int, is_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The `length` tokens from each of `starts`, and which of them are there; the others are 0."""
    tokens = np.zeros((len(starts), length), np.int32)
    counts = np.where(is_row, np.clip(len(stored) - starts, 0, length), 0)
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        tokens[row, :count] = stored[start : start + count]
    return tokens, np.arange(length) < counts[:, None]
