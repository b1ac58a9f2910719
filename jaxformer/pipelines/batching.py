"""Batches of rows of similar length, padded to few shapes, with outputs in the order of the rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

SHORTEST = 8
# Tokens of a batch for each row asked for: of texts shorter than this more are taken together.
TOKENS_A_ROW = 64
Arrays = dict[str, np.ndarray]


@dataclass
class Row:
    """One input of a model."""

    inputs: dict[str, list[int]]  # ``input_ids``, and ``token_type_ids`` where the model reads them
    places: list[int] = field(default_factory=list)  # positions at which the output is wanted; empty for all
    about: Any = None  # what the result needs, such as the tokenizer's ``Encoding``

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])


def bucket(size: int, most: int, least: int = SHORTEST) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 ... from ``least`` on that ``size`` fits in, at most ``most``.

    >>> [bucket(size, 512) for size in (3, 9, 17, 100, 500)]
    [8, 12, 24, 128, 512]
    >>> bucket(100, 110)
    110
    """
    whole = least
    while whole < size:
        if whole + whole // 2 >= size and whole > 1:
            whole += whole // 2
            break
        whole *= 2
    return max(size, min(whole, most))


def padded_length(length: int, longest: int) -> int:
    """The next of 8, 12, 16 ... 64, 72, 80 ... 128, 144 ... that ``length`` fits in, at most ``longest``.

    Every shape is compiled once, and every token of padding costs time: eight shapes for each doubling keep padding
    below an eighth beyond 32 tokens, with 39 programs for a model of 512 tokens. Of 5,000 sentences of 23 tokens in the
    mean it was a sixth with half as many shapes.

    >>> [padded_length(length, 512) for length in (3, 9, 33, 65, 100, 300, 500)]
    [8, 12, 36, 72, 104, 320, 512]
    >>> padded_length(100, 102)
    102
    """
    step = SHORTEST // 2
    while length > 16 * step:
        step *= 2
    return max(length, min(max(SHORTEST, -(-length // step) * step), longest))


def rows_of_length(length: int, batch_size: int) -> int:
    """Rows of a batch of texts of this padded length: more than ``batch_size``, up to eightfold, if they are short.

    >>> [rows_of_length(length, 8) for length in (8, 24, 64, 512)]
    [64, 21, 8, 8]
    """
    return batch_size * max(TOKENS_A_ROW, length) // length


def by_length(lengths: Sequence[int], batch_size: int, longest: int) -> list[list[int]]:
    """The numbers of the rows, the longest first, in batches of as many as ``rows_of_length`` says.

    >>> by_length([60, 5, 3, 70, 8], 1, 512)
    [[3], [0], [4, 1, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    batches = []
    while order:
        count = rows_of_length(padded_length(lengths[order[0]], longest), batch_size)
        batches.append(order[:count])
        order = order[count:]
    return batches


def in_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """The numbers of the rows in batches of ``batch_size``, the longest first; one batch may have fewer.

    Rows are sorted by length, and the incomplete batch is placed where it saves most padding.

    >>> in_batches([3, 9, 2, 8, 7], 2)
    [[1], [3, 4], [0, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    rest = len(order) % batch_size
    if not rest:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def padded(place: int) -> int:
        starts = [*range(0, place, batch_size), *range(place + rest, len(order), batch_size)]
        return lengths[order[place]] * rest + sum(lengths[order[start]] * batch_size for start in starts)

    place = min(range(0, len(order), batch_size), key=padded)
    starts = [*range(0, place + 1, batch_size), *range(place + rest, len(order), batch_size)]
    return [order[start:end] for start, end in zip(starts, [*starts[1:], len(order)], strict=True)]


def place_of(row: Row, length: int, side: str) -> slice:
    """The positions of a row's own tokens in a padded row of this length."""
    return slice(length - len(row), length) if side == "left" else slice(0, len(row))


def collate(rows: Sequence[Row], batch_size: int, longest: int, side: str, pad_id: int) -> Arrays:
    """The rows as arrays ``[B, T]`` with ``attention_mask``, and with ``masked_positions [B, M]`` if they have places.

    ``B`` is rounded up by ``bucket`` and ``T`` by ``padded_length``; added rows attend to one token of padding.
    """
    T = padded_length(max(map(len, rows)), longest)
    B = bucket(len(rows), rows_of_length(T, batch_size), 1)
    arrays = {name: np.full((B, T), pad_id if name == "input_ids" else 0, np.int32) for name in rows[0].inputs}
    arrays["attention_mask"] = np.zeros((B, T), np.int32)
    arrays["attention_mask"][len(rows) :, 0] = 1
    places = max(len(row.places) for row in rows)
    if places:
        arrays["masked_positions"] = np.zeros((B, bucket(places, T, 1)), np.int32)
    for number, row in enumerate(rows):
        own = place_of(row, T, side)
        arrays["attention_mask"][number, own] = 1
        for name, values in row.inputs.items():
            arrays[name][number, own] = values
        if row.places:
            arrays["masked_positions"][number, : len(row.places)] = np.add(row.places, own.start)
    return arrays


def run_rows(
    rows: Sequence[Row],
    forward: Callable[[Arrays], Any],
    batch_size: int,
    longest: int,
    side: str,
    pad_id: int,
    per_token: bool,
) -> list[Any]:
    """The outputs of all rows in their order: a tree of arrays each, without padding.

    ``forward`` gives a tree of arrays ``[B, ...]``; with ``per_token`` ``[B, T, ...]``, of which a row's own tokens are
    kept, or ``[B, M, ...]`` where rows have places.
    """
    outputs: list[Any] = [None] * len(rows)

    def read(numbers: list[int], length: int, found: Any) -> None:
        arrays = jax.tree.map(np.asarray, found)
        for index, number in enumerate(numbers):
            row = rows[number]
            kept = place_of(row, length, side) if not row.places else slice(0, len(row.places))
            outputs[number] = jax.tree.map(lambda x, i=index, k=kept: x[i][k] if per_token else x[i], arrays)

    running: list[tuple[list[int], int, Any]] = []
    for numbers in by_length([len(row) for row in rows], batch_size, longest):
        batch = collate([rows[number] for number in numbers], batch_size, longest, side, pad_id)
        running.append((numbers, batch["input_ids"].shape[1], forward(batch)))
        # The device runs this batch while the outputs of the one before are read.
        if len(running) > 1:
            read(*running.pop(0))
    for last in running:
        read(*last)
    return outputs
