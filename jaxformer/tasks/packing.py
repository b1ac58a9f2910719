"""Several texts or examples in one row."""

from collections.abc import Sequence

import numpy as np

from jaxformer import functional as F
from jaxformer.data.piece_rows import pack, split_pieces
from jaxformer.tasks.base import Batch

Pair = tuple[np.ndarray, np.ndarray]


def pieces_of(batch: Batch) -> list[list[np.ndarray]]:
    """The pieces of text in each row of a batch of ``PieceRows``."""
    return [split_pieces(*row) for row in zip(batch["tokens"], batch["segment_ids"], strict=True)]


def packed_pairs(rows: list[list[Pair]], source_length: int, target_length: int, start_id: int) -> Batch:
    """Features of an encoder-decoder from rows of (source, target) pairs.

    The decoder reads ``start_id`` and each target shifted right by one, and predicts the target.

    Returns:
        ``input_ids``, ``segment_ids`` ``[B, source_length]``; ``decoder_input_ids``, ``decoder_segment_ids`` and
        ``labels`` ``[B, target_length]``, -100 at padding. Segments number the pairs of a row from 1; 0 is padding.
    """
    packed = []
    for pairs in rows:
        sources, source_segments = pack([source for source, _ in pairs], source_length)
        targets, target_segments = pack([target for _, target in pairs], target_length)
        shifted = [np.concatenate([[start_id], target[:-1]]) for _, target in pairs]
        decoder_inputs, _ = pack(shifted, target_length)
        labels = np.where(target_segments > 0, targets, F.IGNORE).astype(np.int32)
        packed.append((sources, source_segments, decoder_inputs, target_segments, labels))
    return stacked(packed, ("input_ids", "segment_ids", "decoder_input_ids", "decoder_segment_ids", "labels"))


def stacked(rows: Sequence[tuple[np.ndarray, ...]], names: Sequence[str]) -> Batch:
    """The columns of a batch from rows that have one array per name."""
    return {name: np.stack(arrays) for name, arrays in zip(names, zip(*rows, strict=True), strict=True)}


def best_fit(sizes: Sequence[tuple[int, ...]], limits: tuple[int, ...]) -> list[list[int]]:
    """The examples of each row: the largest first, each in the fullest row with room for it.

    "Best fit decreasing": with one limit, at most 11/9 of the smallest possible number of rows, plus 4 (Johnson 1973).

    >>> best_fit([(3,), (5,), (2,), (4,)], (7,))
    [[1, 2], [3, 0]]

    ``sizes`` has the size of each example for each of ``limits``, the capacity of a row.
    """
    rows: list[list[int]] = []
    room: dict[int, list[tuple[int, tuple[int, ...]]]] = {}  # by the rest of the first limit: row, rest of all limits
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number][0], number)):
        size = sizes[number]
        candidates = (
            (left, i)
            for left in range(size[0], limits[0] + 1)
            for i, (_, rest) in enumerate(room.get(left, ()))
            if all(need <= free for need, free in zip(size, rest, strict=True))
        )
        found = next(candidates, None)
        if found is None:
            row, rest = len(rows), limits
            rows.append([])
        else:
            row, rest = room[found[0]].pop(found[1])
        rows[row].append(number)
        rest = tuple(free - need for need, free in zip(size, rest, strict=True))
        room.setdefault(rest[0], []).append((row, rest))
    return rows
