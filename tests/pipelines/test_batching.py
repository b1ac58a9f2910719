"""Batches: as little padding as can be, few shapes, everything back in its place."""

from itertools import permutations

import numpy as np
import pytest

from jaxformer.pipelines.batching import Row, bucket, collate, in_batches, run_rows


def test_buckets_are_few_and_near():
    sizes = {bucket(length, 512) for length in range(1, 513)}
    assert sorted(sizes) == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(length <= bucket(length, 512) <= max(8, 1.5 * length) for length in range(1, 513))
    assert [bucket(length, 100) for length in (90, 97, 100)] == [96, 100, 100], "never above the model's length"
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
    rows = [Row({"input_ids": list(range(10 * n, 10 * n + n % 7 + 1))}) for n in range(23)]
    shapes = []

    def forward(batch):
        shapes.append(batch["input_ids"].shape)
        return {"twice": batch["input_ids"] * 2}

    outputs = run_rows(rows, forward, 4, 100, side, 999, per_token=True)
    for row, output in zip(rows, outputs, strict=True):
        np.testing.assert_array_equal(output["twice"], np.multiply(row.inputs["input_ids"], 2))
    assert set(shapes) == {(4, 8), (3, 8)}, "23 rows in five full batches and one of three"
