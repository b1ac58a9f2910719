"""What an objective is: features of a batch, made on the host, and a loss that is a sum and a count."""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import linen as nn

Batch = dict[str, Any]


class LossSums(NamedTuple):
    """Sums over a (micro-)batch; the step divides by ``weight`` once, over all devices and micro-batches.

    Attributes:
        objective: what is minimised.
        weight: what the sums are divided by, for instance the number of trained tokens.
        metrics: further sums; ``loss`` is always there.
    """

    objective: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]


class Task(Protocol):
    """An objective."""

    def features(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Model inputs and labels from rows of the data, in NumPy, batch in front."""

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums of one batch; ``dropout_key`` None is evaluation. ``batch["example_ids"]`` numbers the examples."""
