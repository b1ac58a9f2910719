"""A run in a few words, from the files in its folder."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from flax.traverse_util import flatten_dict

from jaxformer.schema import UserError, local_path
from jaxformer.training.config import read_yaml
from jaxformer.training.console import duration, number
from jaxformer.training.metrics import RECORDS, Record, best_is_old, losses_of, read_records
from jaxformer.training.run_folder import LOCK
from jaxformer.training.sources import CONFIG_FILE

RUNNING, FINISHED, STOPPED_EARLY, STOPPED = "running", "finished", "stopped early", "stopped"
# Folders between the one that is given and a run, at most.
DEEPEST = 3
# Values of an evaluation's record that are no results.
NO_RESULTS = {"step", "split", "loss", "objective"}


@dataclass(frozen=True)
class Summary:
    """A run: its state, and its results.

    Attributes:
        name: of its folder; with the folders above it where several are looked at.
        state: ``running`` (a process holds its lock), ``finished``, ``stopped early``, or ``stopped``.
        step: of the last record.
        steps: ``training.steps``.
        loss: the lowest validation loss, None without any.
        training_loss: of the last training record.
        results: of the last evaluation, beside the loss.
        speed: tokens or responses per second, in words.
        age_s: seconds since the last record.
        config: the resolved configuration, keys as dotted paths.
        records: of ``metrics.jsonl``.
    """

    name: str
    folder: Path
    state: str
    step: int
    steps: int
    loss: float | None
    training_loss: float | None
    results: Mapping[str, float]
    speed: str
    age_s: float | None
    config: Mapping[str, Any]
    records: Sequence[Record]

    @property
    def row(self) -> dict[str, str]:
        """The line of a table."""
        key, value = next(iter(self.results.items()), ("", None))
        # The loss of a policy's evaluation is its negative reward.
        rewarded = "score" in self.results
        loss = f"{self.loss:.4f}" if self.loss is not None and not rewarded else ""
        if self.loss is None and self.training_loss is not None:
            loss = f"{self.training_loss:.4f} (training)"
        return {
            "run": self.name,
            "state": self.state,
            "step": f"{self.step:,} of {self.steps:,}",
            "best loss": loss,
            "metric": f"{key.replace('_', ' ')} {value:.4f}" if value is not None else "",
            "speed": self.speed,
            "last record": "" if self.age_s is None else f"{duration(self.age_s)} ago",
        }


def find_runs(folder: str | Path) -> list[Path]:
    """The folders of the runs in a folder, itself among them, those with the newest records first.

    Raises:
        UserError: if there is no such folder, or no run in it.
    """
    top = local_path(folder)
    if not top.is_dir():
        raise UserError(f"{folder} is no folder, expected one with runs, for example runs/")
    levels = ["/".join([*["*"] * depth, CONFIG_FILE]) for depth in range(DEEPEST + 1)]
    found = [path.parent for level in levels for path in top.glob(level) if is_run(path.parent)]
    if not found:
        raise UserError(
            f"{folder} has no runs, expected folders with {CONFIG_FILE} and {RECORDS}, which train.py writes"
        )
    return sorted(found, key=lambda run: -_written(run))


def is_run(folder: Path) -> bool:
    """True if a run has begun in a folder."""
    return (folder / CONFIG_FILE).exists() and (folder / RECORDS).exists()


def _written(folder: Path) -> float:
    return (folder / RECORDS).stat().st_mtime


def summarise(folder: Path, name: str = "") -> Summary:
    """The summary of a run; its data and its weights are not read.

    Raises:
        UserError: if no run has begun in the folder.
    """
    if not is_run(folder):
        raise UserError(f"{folder} is no run, expected the output_dir of one, with {CONFIG_FILE} and {RECORDS}")
    config = flatten_dict(read_yaml(folder / CONFIG_FILE), sep=".")
    records = read_records(folder / RECORDS)
    losses = losses_of(records, "eval")
    last = {split: next((r for r in reversed(records) if r["split"] == split), {}) for split in ("eval", "train")}
    steps, step = int(config.get("training.steps") or 0), records[-1]["step"] if records else 0
    patience = config.get("training.early_stopping")
    state = STOPPED
    if is_running(folder):
        state = RUNNING
    elif steps and step >= steps:
        state = FINISHED
    elif patience is not None and best_is_old(losses, patience):
        state = STOPPED_EARLY
    results = {
        key: float(value) for key, value in last["eval"].items() if key not in NO_RESULTS and isinstance(value, float)
    }
    speeds = [(name, last["train"].get(f"{name}_per_second")) for name in ("tokens", "responses")]
    return Summary(
        name=name or folder.resolve().name,
        folder=folder,
        state=state,
        step=step,
        steps=steps,
        loss=min(losses, default=None),
        training_loss=last["train"].get("loss"),
        results=results,
        speed=next((f"{number(value)} {unit}/s" for unit, value in speeds if value), ""),
        age_s=max(0.0, time.time() - _written(folder)) if records else None,
        config=config,
        records=records,
    )


def is_running(folder: Path) -> bool:
    """True if a process holds the lock of a run's folder; False where the lock cannot be tried (a read-only folder)."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def summaries(folders: Sequence[str | Path], above: Path | None = None) -> list[Summary]:
    """The summaries of runs, each with a name that no other has: its path below ``above``, or from where it begins to
    differ from the others."""
    paths = [local_path(folder) for folder in folders]
    if above is not None:
        names = [str(path.relative_to(above)) if path != above else path.resolve().name for path in paths]
    else:
        names = _short_names([path.resolve() for path in paths])
    return [summarise(path, name) for path, name in zip(paths, names, strict=True)]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The ends of paths, as many parts of each as tell them apart."""
    longest = max((len(path.parts) for path in paths), default=1)
    for count in range(1, longest):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(path) for path in paths]
