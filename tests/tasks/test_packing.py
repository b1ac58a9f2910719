import numpy as np

from jaxformer.tasks.packing import best_fit, packed_pairs


def pair(source, target):
    return np.array(source, np.int32), np.array(target, np.int32)


def test_pairs_by_hand():
    rows = [[pair([5, 6, 9], [7, 9]), pair([8, 9], [3, 4, 9])], [pair([1, 9], [9])], []]
    batch = packed_pairs(rows, 6, 5, start_id=2)
    assert batch["input_ids"].tolist() == [[5, 6, 9, 8, 9, 0], [1, 9, 0, 0, 0, 0], [0] * 6]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0], [0] * 6]
    # Each target begins anew behind the start token; the end of one is never read before the other.
    assert batch["decoder_input_ids"].tolist() == [[2, 7, 2, 3, 4], [2, 0, 0, 0, 0], [0] * 5]
    assert batch["decoder_segment_ids"].tolist() == [[1, 1, 2, 2, 2], [1, 0, 0, 0, 0], [0] * 5]
    assert batch["labels"].tolist() == [[7, 9, 3, 4, 9], [9, -100, -100, -100, -100], [-100] * 5]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_examples_fit_into_rows():
    random = np.random.default_rng(0)
    sizes = [tuple(pair) for pair in random.integers(1, 9, (60, 2)).tolist()]
    rows = best_fit(sizes, (10, 12))
    assert sorted(number for row in rows for number in row) == list(range(60))
    totals = np.array([np.sum([sizes[number] for number in row], axis=0) for row in rows])
    assert (totals <= (10, 12)).all()
    assert len(rows) <= 11 / 9 * max(sum(a for a, _ in sizes) / 10, sum(b for _, b in sizes) / 12) + 4
