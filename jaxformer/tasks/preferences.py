"""Preference pairs: settings, rows and reports of the objectives on them."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxformer.tasks.base import Batch, Report
from jaxformer.tasks.records import Record, rounded, where
from jaxformer.tasks.responses import ResponseConfig
from jaxformer.tasks.row_readers import PairReader


class PreferenceConfig(ResponseConfig):
    """Settings of the objectives on preference pairs."""

    unit = "examples"

    def parts(self, record: Record) -> list[Any]:
        """Prompt, both responses, and what the chat template reads beside them."""
        pair = PairReader(self.columns).read(record)
        return [pair.chosen.prompt, pair.chosen.response, pair.rejected.response, pair.chosen.variables]


def pair_report(name: str, records: Sequence[Record], values: np.ndarray) -> Report:
    """Accuracy and mean margin of the values ``[pairs, 2]`` of the preferred and the other responses."""
    predictions = [
        {"where": where(record), f"chosen_{name}": chosen, f"rejected_{name}": rejected}
        for record, (chosen, rejected) in zip(records, map(rounded, values), strict=True)
    ]
    chosen, rejected = values[:, 0], values[:, 1]
    metrics = {"pair_accuracy": float(np.mean(chosen > rejected)), f"{name}_margin": float(np.mean(chosen - rejected))}
    return Report(metrics, predictions)


def flat_inputs(batch: Batch) -> Batch:
    """``[B, n, T]`` to ``[B n, T]``, with a different example id for each text."""
    B, n = batch["input_ids"].shape[:2]
    examples = jnp.asarray(batch.get("example_ids", jnp.arange(B)))
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    flat = {name: batch[name].reshape(B * n, -1) for name in names if name in batch}
    return {**flat, "example_ids": jnp.ravel(examples[:, None] * n + jnp.arange(n))}
