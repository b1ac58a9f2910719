"""Evaluation: the mean loss over the whole validation set and, where the objective has one, its report."""

import json
from collections.abc import Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer.atomic import write_atomically
from jaxformer.parallel.batch import local_rows, put_batch
from jaxformer.plot import confusion_matrix
from jaxformer.schema import UserError
from jaxformer.tasks.base import Report, TaskSchema
from jaxformer.training.checkpoint import Checkpoints
from jaxformer.training.initial_state import start_frozen
from jaxformer.training.reference_log_probs import fill_reference
from jaxformer.training.rollout import PolicyEvaluator, Rollouts
from jaxformer.training.run import Run
from jaxformer.training.sources import CHECKPOINTS
from jaxformer.training.state import TrainState

PREDICTIONS, CONFUSION = "predictions.jsonl", "confusion_matrix.png"


class Evaluator:
    """Evaluates states of one run on its validation data; whatever the strategy of training, jitted over a mesh."""

    def __init__(self, run: Run, frozen: Any) -> None:
        self.run, self._frozen = run, frozen
        self._step = run.jit_sums(lambda params, batch: run.task.loss(run.model, params, batch, None)[1:])

    @cached_property
    def _predict(self) -> Any:
        run = self.run
        return run.jit(lambda params, batch: run.task.predict(run.model, params, batch))

    @cached_property
    def _label_losses(self) -> Any:
        run = self.run
        return run.jit(lambda params, batch: run.task.label_losses(run.model, params, batch))

    def losses(self, state: TrainState) -> tuple[dict[str, float], float]:
        """Means over the validation set, ``loss`` among them, and the weight they were divided by."""
        params, rows = self.run.division.assemble(self._frozen, state.evaluation_params), self.run.validation_rows
        assert rows is not None
        sums: dict[str, float] = {}
        weight = 0.0
        for batch in self.run.batches_of(rows):
            part, values = jax.device_get(self._step(params, batch))
            weight += float(part)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {name: total / (weight or 1.0) for name, total in sums.items()}, weight

    def label_losses(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Loss of each label ``[B, M]``, nats, of a batch for all devices; None where labels are not tokens."""
        run, size = self.run, len(batch["input_ids"])
        params = run.division.assemble(self._frozen, state.evaluation_params)
        mine = local_rows(size, run.mesh)
        placed = put_batch({name: array[mine] for name, array in batch.items()}, size, run.mesh)
        found = self._label_losses(params, placed)
        return None if found is None else np.asarray(found)

    def report(self, state: TrainState) -> Report | None:
        """The objective's report on its predictions; None for objectives with a loss alone."""
        params, rows = self.run.division.assemble(self._frozen, state.evaluation_params), self.run.validation_rows
        if not self.run.task.reports:
            return None
        assert rows is not None
        parts: dict[str, list[np.ndarray]] = {}
        for batch in self.run.batches_of(rows):
            for name, array in jax.device_get(self._predict(params, batch)).items():
                parts.setdefault(name, []).append(array)
        outputs = {name: np.concatenate(arrays)[: rows.num_rows] for name, arrays in parts.items()}
        return self.run.task.report(self.run.splits.validation if rows.records is None else rows.records, outputs)


def evaluate_checkpoint(run: Run) -> tuple[int, dict[str, float], float, Report | None]:
    """Evaluates the newest whole checkpoint of a run: its step, mean losses, their weight and the report.

    The validation data may be other than the run's; model and tokenizer may not. Raises ``UserError`` if there is no
    checkpoint or no validation data.
    """
    if run.validation_rows is None:
        raise UserError("there is no validation data: set data.validation_path or data.validation_fraction")
    if not (run.folder / CHECKPOINTS).exists():
        raise UserError(f"{run.folder} has no checkpoints, expected a trained run; train it first, without --evaluate")
    with closing(Checkpoints(run.folder / CHECKPOINTS, read_only=True)) as checkpoints:
        restored = checkpoints.restore(run.abstract)
    assert restored is not None, "restore returns nothing only where there is no folder"
    step, state = restored
    fill_reference(run)
    evaluator = make_evaluator(run, start_frozen(run))
    values, weight = evaluator.losses(state)
    return step, values, weight, evaluator.report(state)


def make_evaluator(run: Run, frozen: Any, rollouts: Rollouts | None = None) -> Evaluator | PolicyEvaluator:
    """The evaluator of a run: the loss, or for a policy its responses to unseen prompts."""
    if run.config.task.generates:
        return PolicyEvaluator(run, Rollouts(run, frozen) if rollouts is None else rollouts)
    return Evaluator(run, frozen)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes the predictions, one JSON object a line, and the picture of the confusion matrix; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / PREDICTIONS]
    lines = (json.dumps(prediction, ensure_ascii=False) for prediction in report.predictions)
    write_atomically(files[0], "".join(line + "\n" for line in lines))
    if report.confusion is not None:
        files.append(folder / CONFUSION)
        figure = confusion_matrix(report.labels, report.confusion)
        figure.savefig(files[1], dpi=150, format="png", bbox_inches="tight")
    return files


def headline(values: dict[str, float], weight: float, task: TaskSchema) -> str:
    """The loss and what it is averaged over; a policy has no loss, and its report says how good it is."""
    over = f"over {weight:,.0f} {task.unit}{task.weighting}"
    return over if task.generates else f"loss {values['loss']:.4f} {over}"


def in_words(report: Report) -> str:
    """The metrics on one line, with notes on how they were computed."""
    values = ", ".join(f"{name} {value:.4f}" for name, value in report.metrics.items())
    return values + "".join(f" ({note})" for note in report.notes.values())
