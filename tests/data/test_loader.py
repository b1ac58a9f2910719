import itertools
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from jaxformer.data import PackedRows, StreamRows, TokenCache, TrainBatches, evaluation_batches, load
from jaxformer.schema import UserError


def cache_of(num_tokens):
    return TokenCache(Path(), np.arange(num_tokens, dtype=np.uint16), np.array([0, num_tokens]))


def packed(num_tokens=101, T=4):
    return PackedRows(cache_of(num_tokens), T)


def rows_of(batches, steps):
    """Which rows the batches took: with one document of tokens 0, 1, 2, ... the first token is 4 times the row."""
    return np.concatenate([batches[step]["tokens"][:, 0] // 4 for step in steps])


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize("batch_size", [1, 7, 25, 60])
def test_every_epoch_is_another_permutation(batch_size):
    batches = TrainBatches(packed(), batch_size, seed=3)
    steps = -(-75 // batch_size)
    epochs = rows_of(batches, range(steps))[:75].reshape(3, 25)
    assert np.sort(epochs, axis=1).tolist() == [list(range(25))] * 3
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_the_order_does_not_depend_on_the_batch_size():
    small, large = (TrainBatches(packed(), size, seed=3) for size in (5, 20))
    assert rows_of(small, range(16)).tolist() == rows_of(large, range(4)).tolist()


def test_the_order_is_what_it_always_was():
    # A change here changes every run that is resumed.
    expected = [[21, 2, 13, 14, 9, 7, 17, 6], [13, 6, 15, 12, 9, 18, 19, 3]]
    assert [rows_of(TrainBatches(packed(), 8, seed=0), [step]).tolist() for step in (0, 1000)] == expected
    stream = TrainBatches(StreamRows(cache_of(101), 64), 8, seed=0)
    assert [stream.phase(epoch) for epoch in range(5)] == [63, 53, 40, 52, 23]


def test_runs_with_neighbouring_seeds_share_no_epoch():
    epochs = {tuple(rows_of(TrainBatches(packed(), 25, seed), [epoch])) for seed in range(4) for epoch in range(4)}
    assert len(epochs) == 16


def test_fewer_rows_than_a_batch():
    batches = TrainBatches(packed(num_tokens=9), 5, seed=0)
    assert (batches.steps_per_epoch, batches.epoch(2)) == (0.4, 5.0)
    assert np.bincount(rows_of(batches, range(2))).tolist() == [5, 5]
    assert batches[0]["tokens"].shape == (5, 5)


def test_the_stream_is_cut_anew_in_every_epoch():
    rows = StreamRows(cache_of(1001), 10)
    batches = TrainBatches(rows, 100, seed=5)
    phases = [batches.phase(epoch) for epoch in range(8)]
    assert set(phases) <= set(range(10))
    assert len(set(phases)) > 3
    for epoch, phase in enumerate(phases):
        starts = sorted(batches[epoch]["tokens"][:, 0])
        assert starts == sorted(max(0, 10 * row - phase) for row in range(100))
    # A batch across two epochs cuts each of its rows as its own epoch does.
    across = TrainBatches(rows, 150, seed=5)[0]["tokens"]
    assert_equal({"x": across}, {"x": np.concatenate([batches[0]["tokens"], batches[1]["tokens"][:50]])})


@pytest.mark.parametrize("rows", [packed(num_tokens=64, T=64), StreamRows(cache_of(64), 64)])
def test_a_text_shorter_than_one_row(rows):
    with pytest.raises(UserError, match=r"the training data has 64 tokens, expected at least one row of 65"):
        TrainBatches(rows, 8, seed=0)
    TrainBatches(packed(num_tokens=65, T=64), 8, seed=0)


def test_the_draws_of_an_example_belong_to_seed_epoch_and_example():
    def draw(rows, generators, _):
        return {"first": rows["tokens"][:, 0], "draw": np.array([g.integers(2**62) for g in generators])}

    def draws(seed, batch_size, steps):
        batches = TrainBatches(packed(), batch_size, seed, draw)
        assert batches.rows.num_rows == 25
        pairs = [(int(f), int(d)) for step in range(steps) for f, d in zip(*batches[step].values(), strict=True)]
        return pairs[:25], pairs[25:50]

    first, second = draws(0, 5, 10)
    assert (first, second) == draws(0, 10, 5), "the size of a batch changes nothing"
    assert len({d for _, d in first + second}) == 50, "another draw for every example and epoch"
    assert {d for _, d in first}.isdisjoint(d for _, d in draws(1, 5, 10)[0])
    # An evaluation draws the same every time.
    evaluated = [np.concatenate([b["draw"] for b in evaluation_batches(packed(), n, 0, draw)])[:25] for n in (4, 25)]
    np.testing.assert_array_equal(*evaluated)


@pytest.mark.parametrize("start", [0, 10**9])
@pytest.mark.parametrize(("num_threads", "prefetch"), [(0, 1), (4, 2), (3, 8)])
def test_loading_changes_no_batch_whatever_the_threads(start, num_threads, prefetch):
    batches = TrainBatches(packed(), 7, seed=3)
    again = TrainBatches(packed(), 7, seed=3)
    with closing(load(batches, start, num_threads, prefetch)) as loaded:
        for step, batch in zip(range(start, start + 12), loaded, strict=False):
            assert_equal(batch, again[step])


def test_threads_make_batches_ahead_and_end_at_close():
    made = []

    def slow(rows, *_):
        time.sleep(0.01)
        made.append(threading.current_thread())
        return rows

    before = threading.active_count()
    loaded = load(TrainBatches(packed(), 3, seed=0, transform=slow), num_threads=2, prefetch=6)
    next(loaded)
    time.sleep(0.2)
    assert 5 <= len(made) <= 8
    assert threading.main_thread() not in made
    loaded.close()
    for _ in range(100):
        if threading.active_count() <= before:  # a thread of an earlier test may end too
            break
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_an_error_of_a_thread_reaches_the_step():
    def broken(rows, *_):
        raise UserError("no features")

    with closing(load(TrainBatches(packed(), 3, 0, broken))) as loaded, pytest.raises(UserError, match=r"no features"):
        next(loaded)


@pytest.mark.parametrize("rows", [packed(num_tokens=99), StreamRows(cache_of(99), 4)])
@pytest.mark.parametrize("batch_size", [1, 4, 25, 64])
def test_evaluation_covers_every_transition_once(rows, batch_size):
    batches = list(evaluation_batches(rows, batch_size))
    assert len(batches) == -(-rows.num_rows // batch_size)
    assert {batch["tokens"].shape for batch in batches} == {(batch_size, 5)}
    labels = [batch["tokens"][:, 1:][real(batch)[:, 1:]].tolist() for batch in batches]
    assert list(itertools.chain(*labels)) == list(range(1, 99))
    padding = np.concatenate([~real(batch).any(axis=1) for batch in batches])
    assert padding.tolist() == [row >= rows.num_rows for row in range(len(padding))]


def real(batch):
    return batch["segment_ids"] > 0 if "segment_ids" in batch else batch["valid"]


def test_evaluation_makes_features_and_needs_two_tokens():
    features = evaluation_batches(packed(), 3, transform=lambda rows, *_: {"inputs": rows["tokens"][:, :-1]})
    assert next(iter(features))["inputs"].shape == (3, 4)
    with pytest.raises(UserError, match=r"the validation data is too short to evaluate anything"):
        next(evaluation_batches(packed(num_tokens=1), 3))


def noisy(batch, generators, rows):
    """Features that are drawn at random, one draw a row."""
    return {**batch, "noise": np.array([generator.random() for generator in generators])}


@pytest.mark.parametrize("rows", [packed(), StreamRows(cache_of(101), 4)], ids=["packed", "stream"])
@pytest.mark.parametrize("keep", [[0, 1, 2], [5, 3], [6]])
def test_a_part_of_a_batch_is_that_part_of_the_whole(rows, keep):
    keep = np.array(keep)
    whole, part = (TrainBatches(rows, 7, 3, noisy, only) for only in (None, keep))
    for step in (0, 3, 4):  # batch 3 spans two epochs
        assert_equal({name: array[keep] for name, array in whole[step].items()}, part[step])
    every = zip(evaluation_batches(rows, 7, 3, noisy), evaluation_batches(rows, 7, 3, noisy, keep), strict=True)
    for all_rows, some in every:
        assert_equal({name: array[keep] for name, array in all_rows.items()}, some)
