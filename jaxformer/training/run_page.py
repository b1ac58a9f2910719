"""The page of a run, ``report.html``: its contents gathered from the run, and written anew at each evaluation."""

import datetime
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from pydantic import ValidationError

from jaxformer import report as pages
from jaxformer.atomic import write_atomically
from jaxformer.data.loader import evaluation_batches
from jaxformer.parallel.hosts import is_first
from jaxformer.parallel.mesh import batch_devices
from jaxformer.tasks.base import Report
from jaxformer.training.config import differing, dump_config
from jaxformer.training.console import Display, number
from jaxformer.training.metrics import Record
from jaxformer.training.receipt import LIBRARIES
from jaxformer.training.row_preview import passages, pieces, rows_of
from jaxformer.training.run import Run

PAGE, CONTENTS = "report.html", "report.json"
EXAMPLES, LOSS_ROWS, ANSWERS = 3, 2, 3
MOST_CHARACTERS = 2000


def read_contents(folder: Path) -> pages.Contents:
    """The contents of a run's page; empty where there is none, or one of another version."""
    try:
        return pages.Contents.model_validate_json((folder / CONTENTS).read_bytes())
    except (OSError, ValidationError):
        return pages.Contents()


class RunPage:
    """The page of a run that is being trained; of several processes the first writes it."""

    def __init__(self, run: Run, display: Display, step: int, changes: Mapping[str, tuple[Any, Any]]) -> None:
        """Goes on with the page of a run that is resumed at ``step`` with changed keys."""
        self.run, self.display = run, display
        earlier = read_contents(run.folder).until(step)
        new = [pages.Change(step=step, key=key, before=before, after=now) for key, (before, now) in changes.items()]
        begun = {name: fact for name, fact in earlier.facts.items() if name == "begun"}
        self.contents = earlier.model_copy(
            update={
                "facts": {**begun, **facts(run, resumed=bool(begun))},
                "differing": {key: [*map(_plain, pair)] for key, pair in differing(run.config).items()},
                "changes": earlier.changes + new,
                "examples": [_row(run, row) for row in rows_of(run, EXAMPLES)],
            }
        )

    @cached_property
    def loss_batch(self) -> dict[str, np.ndarray]:
        """A small batch with the first rows of the validation data, which there must be."""
        run, rows = self.run, self.run.validation_rows
        assert rows is not None
        devices = batch_devices(run.mesh)
        size = -(-LOSS_ROWS // devices) * devices
        return next(evaluation_batches(rows, size, run.config.seed, run.task.features))

    def add_losses(self, step: int, losses: np.ndarray) -> None:
        """Shows the losses ``[B, M]`` of the labels of ``loss_batch``."""
        batch = {**self.loss_batch, "label_losses": losses}
        assert self.run.validation_rows is not None
        shown = range(min(LOSS_ROWS, self.run.validation_rows.num_rows))
        rows = [{name: array[i] for name, array in batch.items()} for i in shown]
        self._update(losses=[_row(self.run, row) for row in rows], losses_step=step)

    def add_sample(self, step: int, text: str) -> None:
        """Adds a text that the model wrote."""
        self._answer([pages.Answer(step=step, values={"text": text})])

    def add_report(self, step: int, report: Report) -> None:
        """Shows the results of an evaluation: its pictures, and the answers to the first examples."""
        confusion = None if report.confusion is None else report.confusion.tolist()
        scores = [p["score"] for p in report.predictions] if self.run.config.task.generates else None
        found = {"reliability": report.reliability, "entities": report.entities, "scores": scores}
        if confusion is not None or any(found.values()):
            labels = list(report.labels)
            pictures = pages.Pictures.model_validate({"step": step, "labels": labels, "confusion": confusion, **found})
            self._update(pictures=pictures)
        self._answer(
            [
                pages.Answer(step=step, example=place, values={k: _plain(v) for k, v in prediction.items()})
                for place, prediction in enumerate(report.predictions[:ANSWERS])
            ]
        )

    def write(self, records: Sequence[Record], state: str) -> None:
        """Writes the page. A failure is said and nothing more: a run does not end for its page."""
        if not is_first():
            return
        folder = self.run.folder
        try:
            name = folder.resolve().name
            page = pages.run_page(name, state, records, self.contents, dump_config(self.run.config))
            write_atomically(folder / CONTENTS, self.contents.model_dump_json(indent=1) + "\n")
            write_atomically(folder / PAGE, page)
        except Exception as error:
            self.display.warn(f"{folder / PAGE} was not written ({type(error).__name__}: {error}); the run goes on")

    def _answer(self, new: list[pages.Answer]) -> None:
        self.contents = self.contents.with_answers(new)

    def _update(self, **values: Any) -> None:
        self.contents = self.contents.model_copy(update=values)


def facts(run: Run, resumed: bool) -> dict[str, str]:
    """Model, data, devices, versions and the command of a run."""
    c, device = run.config, run.mesh.devices.flat[0]
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    rows = run.train_batches.rows.num_rows
    return {
        "resumed" if resumed else "begun": now,
        "model": f"{c.model.type}, {run.size}",
        "data": f"{run.splits.name}: {run.splits.size}, {rows:,} rows of {c.task.type}",
        "batch": f"{c.training.batch_size} x {c.sequence_length} tokens",
        "FLOPs": f"{number(run.flops_per_step)} a step",
        "devices": f"{run.mesh.size} {device.platform} ({device.device_kind}), {jax.process_count()} process(es)",
        "parallel": ", ".join(f"{name} {size}" for name, size in run.mesh.shape.items()),
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{n} {version(n)}" for n in LIBRARIES)]),
        "command": shlex.join(sys.argv),
    }


def _row(run: Run, row: dict[str, np.ndarray]) -> pages.Row:
    return pages.Row(
        passages=[
            pages.Passage(
                title=passage.title,
                note=passage.note,
                pieces=[
                    pages.Piece(text=text, trained=trained, loss=None if loss is None else round(loss, 4))
                    for text, trained, loss in pieces(passage, run.tokenizer)
                ],
            )
            for passage in passages(run, row)
        ]
    )


def _plain(value: Any) -> Any:
    """A value as one line or text, shortened."""
    if isinstance(value, dict) and value and all(isinstance(share, float) for share in value.values()):
        most = sorted(value.items(), key=lambda pair: -pair[1])
        value = ", ".join(f"{name} {share:.3f}" for name, share in most)
    elif isinstance(value, list | tuple) and value and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    elif isinstance(value, list | dict | tuple):
        value = json.dumps(value, ensure_ascii=False)
    return value[:MOST_CHARACTERS] if isinstance(value, str) else value
