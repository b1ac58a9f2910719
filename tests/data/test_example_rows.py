import numpy as np
import pytest

from jaxformer.data import ExampleRows, TrainBatches, evaluation_batches
from jaxformer.schema import UserError

EXAMPLES = [
    {"input_ids": np.array([5, 6, 7]), "labels": 1, "score": 0.5},
    {"input_ids": np.arange(1, 66), "labels": 0, "score": 2.0},
]
FILL = {"input_ids": 9, "labels": -100, "score": 0.0}


def test_a_batch_is_as_long_as_its_longest_example_rounded_up():
    rows = ExampleRows(EXAMPLES, 100, FILL)
    batch = rows.take(np.array([0]))
    assert batch["input_ids"].tolist() == [[5, 6, 7] + [9] * 61]
    assert batch["attention_mask"].tolist() == [[1, 1, 1] + [0] * 61]
    assert batch["labels"].tolist() == [1]
    assert batch["score"].dtype == np.float32
    both = rows.take(np.array([1, 0]))
    assert both["input_ids"].shape == (2, 100), "65 would be 128, but rows are at most 100 long"
    assert both["attention_mask"].sum(1).tolist() == [65, 3]
    assert ExampleRows(EXAMPLES, 512, FILL).take(np.array([1]))["input_ids"].shape == (1, 128)
    assert (rows.num_rows, rows.num_phases, rows.shortage) == (2, 1, None)


def test_rows_past_the_end_count_nothing():
    batches = list(evaluation_batches(ExampleRows(EXAMPLES[:1], 8, FILL), 3))
    assert len(batches) == 1
    assert batches[0]["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [0] * 8, [0] * 8]
    assert batches[0]["labels"].tolist() == [1, -100, -100]
    assert batches[0]["input_ids"][1:].tolist() == [[9] * 8] * 2


def test_choices_are_padded_to_the_most_of_the_split():
    def example(choices, tokens):
        return {
            "input_ids": np.full((choices, tokens), 3),
            "attention_mask": np.ones((choices, tokens), int),
            "labels": 0,
        }

    rows = ExampleRows([example(2, 3), example(4, 2)], 5, {"input_ids": 0, "labels": -100})
    batch = rows.take(np.array([0, 2]))
    assert batch["input_ids"].shape == (2, 4, 5)
    assert batch["attention_mask"].sum(-1).tolist() == [[3, 3, 0, 0], [0, 0, 0, 0]]


def test_stacked_arrays_and_lengths_of_their_own():
    examples = [{"input_ids": np.array([1]), "labels": np.array([0.0, 1.0, 1.0]), "targets": np.array([4, 4])}]
    rows = ExampleRows(examples, 7, {"input_ids": 0, "labels": -100, "targets": -1}, {"targets": 3}, ["labels"])
    batch = rows.take(np.array([0, 1]))
    assert batch["labels"].tolist() == [[0, 1, 1], [-100, -100, -100]]
    assert batch["targets"].tolist() == [[4, 4, -1], [-1, -1, -1]]
    assert batch["input_ids"].shape == (2, 7)


def test_no_examples():
    with pytest.raises(UserError, match="the training data has no example, expected at least one"):
        TrainBatches(ExampleRows([], 4, FILL), 2, 0)


def test_a_part_of_a_batch_is_as_long_as_the_whole():
    rows = ExampleRows(EXAMPLES, 100, FILL)
    whole, part = rows.take(np.array([0, 1])), rows.take(np.array([0, 1]), keep=np.array([0]))
    assert part["input_ids"].shape == (1, 100), "another process holds the long one"
    for name, array in part.items():
        assert array.tolist() == whole[name][:1].tolist()
