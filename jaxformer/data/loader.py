"""Batches of rows: shuffled for training, in order for evaluation, made ahead of the step by Grain's threads."""

import sys
from collections.abc import Callable, Generator
from typing import Protocol

import grain
import numpy as np

from jaxformer.data.rows import Batch, Rows
from jaxformer.schema import UserError

Transform = Callable[[Batch], dict[str, np.ndarray]]


class Batches(Protocol):
    """Batches by number."""

    @property
    def num_batches(self) -> int | None:
        """How many there are; None if there is no last one."""

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, always the same."""


class TrainBatches:
    """Training batches without end; batch n is a pure function of the seed and n.

    The rows of the split are shuffled anew in every epoch and each is used exactly once in it. Batches take them as
    they come, so that a batch may hold the last rows of one epoch and the first of the next.

    Args:
        rows: The training rows.
        batch_size: Rows a batch, over all devices and hosts.
        seed: Seed of the run.
        transform: Makes the features of a batch from its rows; leave out to get the rows.

    Raises:
        UserError: The split is shorter than one row.
    """

    num_batches = None

    def __init__(self, rows: Rows, batch_size: int, seed: int, transform: Transform | None = None) -> None:
        if rows.num_tokens < rows.row_length:
            raise UserError(
                f"the training text has {rows.num_tokens} tokens, but one row needs {rows.row_length}: "
                "use more text, or a smaller max_length"
            )
        self._rows = rows
        self._transform = transform
        self.batch_size = batch_size
        # Grain shuffles epoch e with seed + e: unmixed, runs with neighbouring seeds would repeat each other's epochs.
        mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._order = grain.MapDataset.range(rows.num_rows).shuffle(seed=mixed).repeat()

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, counted from 0."""
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        indices = np.array([self._order[int(number)] for number in numbers])
        rows = self._rows.take(indices, numbers // self._rows.num_rows)
        return rows if self._transform is None else self._transform(rows)

    @property
    def steps_per_epoch(self) -> float:
        """Batches that read every row once; seldom a whole number."""
        return self._rows.num_rows / self.batch_size

    def epoch(self, step: int) -> float:
        """How many times the split has been read when batch `step` is about to be."""
        return step / self.steps_per_epoch


class EvaluationBatches:
    """The whole split once, in order; what is missing in the last batch is filled with rows of nothing but padding.

    So all batches have one shape, and every token counts exactly once.

    Args:
        rows: The validation rows.
        batch_size: Rows a batch, over all devices and hosts.
        transform: Makes the features of a batch from its rows; leave out to get the rows.

    Raises:
        UserError: The split has no two tokens.
    """

    def __init__(self, rows: Rows, batch_size: int, transform: Transform | None = None) -> None:
        if rows.num_rows < 1:
            raise UserError(
                f"the validation text has {rows.num_tokens} token, but a prediction needs two: "
                "raise data.validation_fraction or set data.validation_path"
            )
        self._rows = rows
        self._transform = transform
        self.batch_size = batch_size
        self.num_batches = -(-rows.num_rows // batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, counted from 0."""
        if not 0 <= step < self.num_batches:
            raise IndexError(f"batch {step} of {self.num_batches}")
        indices = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        rows = self._rows.take(indices, np.zeros_like(indices))
        return rows if self._transform is None else self._transform(rows)


def load(
    batches: Batches, start_step: int = 0, num_threads: int = 2, prefetch: int = 8
) -> Generator[dict[str, np.ndarray], None, None]:
    """Batches from number `start_step` on, made ahead by threads.

    Nothing here is random and nothing is replayed: the batches alone say what batch n is. The number of threads changes
    only when a batch is ready. Closing the generator ends its threads: `with contextlib.closing(load(...)) as batches`.

    Args:
        batches: `TrainBatches` or `EvaluationBatches`.
        start_step: Number of the first batch.
        num_threads: Threads that make batches; 0 makes each when it is asked for.
        prefetch: Batches kept ready ahead.
    """
    end = sys.maxsize if batches.num_batches is None else batches.num_batches
    # Grain warns of threads that have no place to put a batch.
    options = grain.ReadOptions(num_threads=min(num_threads, prefetch), prefetch_buffer_size=prefetch)
    iterator = iter(grain.MapDataset.range(start_step, end).map(batches.__getitem__).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
