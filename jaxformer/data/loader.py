"""Batches of rows: shuffled for training and made ahead of the step by Grain's threads, in order for evaluation."""

import sys
from collections.abc import Callable, Generator, Iterator

import grain
import numpy as np

from jaxformer.data.token_rows import Batch, Rows
from jaxformer.schema import UserError

# The rows of a batch; for what is drawn at random one generator a row; and the table that the rows are from.
Transform = Callable[[Batch, list[np.random.Generator], Rows], Batch]
_SHUFFLE, _PHASE, _EXAMPLE = 1, 2, 3  # what a draw is for


def example_generator(seed: int, epoch: int, example: int) -> np.random.Generator:
    """The random numbers of one example in one epoch: a function of (seed, epoch, example) and of nothing else.

    Whatever corrupts an example draws from it, so that batches, devices, threads and resuming change nothing.
    """
    return np.random.default_rng([_EXAMPLE, seed, epoch, example])


class TrainBatches:
    """Training batches without end; batch n is a pure function of the seed and n.

    The rows of the split are shuffled anew in every epoch and each is used exactly once in it. Batches take them as
    they come, so that a batch may hold the last rows of one epoch and the first of the next.

    Args:
        rows: The training rows.
        batch_size: Rows a batch, over all devices and hosts.
        seed: Seed of the run.
        transform: Makes the features of a batch from its rows; leave out to get the rows.
        keep: Numbers of the rows of each batch that this process reads; leave out to read all.

    Raises:
        UserError: The split has less than one row.
    """

    def __init__(
        self, rows: Rows, batch_size: int, seed: int, transform: Transform | None = None, keep: np.ndarray | None = None
    ) -> None:
        if rows.shortage is not None:
            raise UserError(f"the training data has {rows.shortage}")
        self.rows = rows
        self.batch_size = batch_size
        self._seed = seed
        self._transform = transform
        self._keep = np.arange(batch_size) if keep is None else keep
        # Grain shuffles epoch e with seed + e: unmixed, runs with neighbouring seeds would repeat each other's epochs.
        self._order = grain.MapDataset.range(rows.num_rows).shuffle(seed=_bits(seed, _SHUFFLE) % 2**32).repeat()

    def __getitem__(self, step: int) -> Batch:
        """Batch number `step`, counted from 0, or this process's part of it."""
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        indices = np.array([self._order[int(number)] for number in numbers])
        epochs = numbers // self.rows.num_rows
        different, inverse = np.unique(epochs, return_inverse=True)
        phases = np.array([self.phase(int(epoch)) for epoch in different])[inverse]
        batch = self.rows.take(indices, phases, self._keep)
        if self._transform is None:
            return batch
        pairs = zip(epochs[self._keep].tolist(), indices[self._keep].tolist(), strict=True)
        generators = [example_generator(self._seed, epoch, index) for epoch, index in pairs]
        return self._transform(batch, generators, self.rows)

    def phase(self, epoch: int) -> int:
        """Offset in tokens of the rows of an epoch in the stream layout, a function of seed and epoch."""
        return _bits(self._seed, _PHASE, epoch) % self.rows.num_phases

    @property
    def steps_per_epoch(self) -> float:
        """Batches that read every row once; seldom a whole number."""
        return self.rows.num_rows / self.batch_size

    def epoch(self, step: int) -> float:
        """Number of times the split has been read before batch `step`."""
        return step / self.steps_per_epoch


def _bits(*entropy: int) -> int:
    # The bits of a seed sequence are promised never to change, those of a generator's methods are not.
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def load(
    batches: TrainBatches, start_step: int = 0, num_threads: int = 2, prefetch: int = 8
) -> Generator[Batch, None, None]:
    """Training batches from number `start_step` on, made ahead by threads.

    Nothing here is random and nothing is replayed: the batches alone say what batch n is. The number of threads changes
    only when a batch is ready. Closing the generator ends its threads: `with contextlib.closing(load(...)) as batches`.

    Args:
        batches: What to load.
        start_step: Number of the first batch.
        num_threads: Threads that make batches; 0 makes each when it is asked for.
        prefetch: Batches kept ready ahead.
    """
    # Grain warns of threads that have no place to put a batch.
    options = grain.ReadOptions(num_threads=min(num_threads, prefetch), prefetch_buffer_size=prefetch)
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    iterator = iter(steps.map(batches.__getitem__).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def evaluation_batches(
    rows: Rows, batch_size: int, seed: int = 0, transform: Transform | None = None, keep: np.ndarray | None = None
) -> Iterator[Batch]:
    """The whole split once, in order; what the last batch lacks is filled with rows of nothing but padding.

    So all batches have one shape, and every example counts exactly once. What is drawn at random is the same in every
    evaluation: that of epoch 0. With `keep` only these rows of each batch are read, those of this process.

    Raises:
        UserError: The split has not even a part of a row.
    """
    if rows.num_rows < 1:
        raise UserError(
            "the validation data is too short to evaluate anything: "
            "raise data.validation_fraction or set data.validation_path"
        )
    for start in range(0, rows.num_rows, batch_size):
        indices = np.arange(start, start + batch_size)
        batch = rows.take(indices, keep=keep)
        if transform is not None:
            mine = indices if keep is None else indices[keep]
            batch = transform(batch, [example_generator(seed, 0, index) for index in mine.tolist()], rows)
        yield batch
