"""Batches: as little padding as can be, few shapes, everything back in its place."""

from itertools import permutations

import numpy as np
import pytest

from jaxformer.pipelines.batching import Row, bucket, by_length, collate, in_batches, padded_length, run_rows


def test_lengths_are_few_and_near():
    sizes = {padded_length(length, 512) for length in range(1, 513)}
    assert sorted(sizes) == [*range(8, 65, 4), *range(72, 129, 8), *range(144, 257, 16), *range(288, 513, 32)]
    assert all(length <= padded_length(length, 512) <= max(8, length + 3, 1.125 * length) for length in range(1, 513))
    assert [padded_length(length, 100) for length in (90, 97, 100)] == [96, 100, 100], "never above the model's length"


def test_short_texts_share_a_batch_and_no_batch_has_more_tokens_than_rows_of_64():
    lengths = [*range(1, 200), *[3] * 100]
    batches = by_length(lengths, 2, 512)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    assert [lengths[number] for batch in batches for number in batch] == sorted(lengths, reverse=True)
    for batch in batches:
        width = padded_length(max(lengths[number] for number in batch), 512)
        assert len(batch) * width <= 2 * max(64, width)
    assert len(batches[-2]) == 16, "two rows of 64 tokens are sixteen of 8"


def test_numbers_of_rows_are_few():
    assert [bucket(rows, 8, 1) for rows in range(1, 9)] == [1, 2, 3, 4, 6, 6, 8, 8]


@pytest.mark.parametrize("lengths", [(9, 2, 3, 8, 8), (1, 5, 2, 6, 3, 4, 4), (7, 7, 1)])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_no_other_batches_pad_less(lengths, batch_size):
    def work(order):
        # In some order the batch that is not full is the last.
        parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        return sum(max(lengths[n] for n in part) * len(part) for part in parts)

    batches = in_batches(lengths, batch_size)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    ours = sum(max(lengths[n] for n in part) * len(part) for part in batches)
    assert ours == min(work(order) for order in permutations(range(len(lengths))))


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_padded_on_their_side(side):
    long = Row({"input_ids": [1, 2, 3, 4]}, places=[1, 3])
    batch = collate([long, Row({"input_ids": [5, 6]}, places=[0])], 4, 100, side, 9)
    first, second = (
        ([1, 2, 3, 4] + [9] * 4, [5, 6] + [9] * 6) if side == "right" else ([9] * 4 + [1, 2, 3, 4], [9] * 6 + [5, 6])
    )
    np.testing.assert_array_equal(batch["input_ids"], [first, second])
    np.testing.assert_array_equal(batch["attention_mask"], np.array([first, second]) != 9)
    np.testing.assert_array_equal(batch["masked_positions"], [[1, 3], [0, 0]] if side == "right" else [[5, 7], [6, 0]])


@pytest.mark.parametrize("side", ["right", "left"])
def test_outputs_come_back_to_their_rows(side):
    rows = [Row({"input_ids": list(range(10 * n, 10 * n + n % 7 + 1))}) for n in range(43)]
    shapes = []

    def forward(batch):
        shapes.append(batch["input_ids"].shape)
        return {"twice": batch["input_ids"] * 2}

    outputs = run_rows(rows, forward, 4, 100, side, 999, per_token=True)
    for row, output in zip(rows, outputs, strict=True):
        np.testing.assert_array_equal(output["twice"], np.multiply(row.inputs["input_ids"], 2))
    assert shapes == [(32, 8), (12, 8)], "43 rows in a full batch and one of eleven"
