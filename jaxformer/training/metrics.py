"""Records of the run: metrics.jsonl always, TensorBoard and Weights & Biases beside it."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from jaxformer.atomic import write_atomically
from jaxformer.parallel.hosts import from_first, is_first
from jaxformer.schema import UserError
from jaxformer.training.config import LoggingConfig

Record = dict[str, Any]
RECORDS = "metrics.jsonl"


def read_records(path: Path) -> list[Record]:
    """The records of a metrics.jsonl; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def losses_of(records: Iterable[Record], split: str) -> list[float]:
    """The losses of a split, in order; inf where one was not finite."""
    losses = (record.get("loss") for record in records if record["split"] == split)
    return [math.inf if loss is None else loss for loss in losses]


def best_is_old(losses: Sequence[float], patience: int) -> bool:
    """True if the last ``patience`` losses brought no new lowest one."""
    return len(losses) > patience and min(losses[:-patience]) <= min(losses[-patience:])


class MetricsLog:
    """Writes each record to every place that was asked for."""

    def __init__(self, output_dir: Path, config: LoggingConfig, step: int, run_config: dict[str, Any]) -> None:
        """Opens the logs to go on after ``step``: records beyond it belong to steps that will be done again.

        Of several processes only the first writes; all know the records, since early stopping goes by them.
        """
        self.path = output_dir / RECORDS
        text = from_first(lambda: json.dumps(read_records(self.path)).encode())
        self.records = [record for record in json.loads(text) if record["step"] <= step]
        self._file: TextIO | None = None
        self._tensorboard = self._wandb = None
        if not is_first():
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file = self.path.open("a", encoding="utf-8")
        if config.tensorboard:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(output_dir / "tensorboard"), purge_step=step + 1)
        if config.wandb:
            self._wandb = _start_wandb(output_dir, config, run_config)

    def write(self, record: Record) -> None:
        """Appends one record: ``step``, ``split`` and values."""
        # JSON has no inf and nan.
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self.records.append(record)
        if self._file is None:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        values = {
            f"{record['split']}/{name}": value
            for name, value in record.items()
            if name not in ("step", "split") and isinstance(value, int | float)
        }
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, record["step"])
        if self._wandb is not None:
            self._wandb.log(values, step=record["step"])

    def losses(self, split: str) -> list[float]:
        """The losses of a split so far, in order; inf where one was not finite."""
        return losses_of(self.records, split)

    def close(self) -> None:
        """Makes sure everything is on disk."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(output_dir: Path, config: LoggingConfig, run_config: dict[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError(
            "logging.wandb is true and wandb is not installed; pip install 'jaxformer[wandb]' or set it to false"
        ) from None
    # One folder is one run there too, however often it was resumed.
    return wandb.init(
        project=config.project, dir=str(output_dir), name=output_dir.name, config=run_config, resume="allow"
    )
