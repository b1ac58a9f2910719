"""Log-probabilities of the reference model on the run's data, computed once and kept in the run's folder."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer.atomic import replacing
from jaxformer.data.example_rows import ExampleRows
from jaxformer.parallel.hosts import is_first
from jaxformer.training.console import Display
from jaxformer.training.initial_state import start_state
from jaxformer.training.run import Run

FILE = "reference.npz"


def fill_reference(run: Run, display: Display | None = None, params: Any = None) -> None:
    """Fills the data's column of the reference model, for objectives that have one.

    A resumed run reads the stored values and does not need the reference model. ``params`` are the initial model's, if
    they are in memory.
    """
    task, column = run.task, run.task.reference_column
    if column is None:
        return
    splits: dict[str, Any] = {"train": run.train_batches.rows, "validation": run.validation_rows}
    splits = {name: rows for name, rows in splits.items() if rows is not None}
    # The settings that the values depend on.
    settings = {"task": run.config.task.model_dump(mode="json"), "T": run.config.sequence_length}
    path, key = run.folder / FILE, json.dumps({**run.facts, **settings})
    found = _read(path, key)
    if any(name not in found or len(found[name]) != rows.num_rows for name, rows in splits.items()):
        if display is not None:
            count = sum(rows.num_rows for rows in splits.values())
            display.say(f"computing log-probabilities of the reference model: {count:,} examples")
        if params is None:
            state, frozen = start_state(run)
            params = run.division.assemble(frozen, state.params)
        compute = run.jit(lambda params, batch: task.reference(run.model, params, batch))
        found = {}
        for name, rows in splits.items():
            parts = [jax.device_get(compute(params, batch)) for batch in run.batches_of(rows)]
            found[name] = np.concatenate(parts)[: rows.num_rows]
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, key=np.array(key), **found)  # type: ignore[arg-type]
    for name, rows in splits.items():
        assert isinstance(rows, ExampleRows), "objectives with a reference read records"
        rows.set_column(column, found[name])


def _read(path: Path, key: str) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files} if str(stored["key"]) == key else {}
