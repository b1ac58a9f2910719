import json
import math
import sys
from types import SimpleNamespace

import pytest

from jaxformer.schema import UserError
from jaxformer.training.config import LoggingConfig
from jaxformer.training.metrics import MetricsLog, read_records

PLAIN = LoggingConfig(tensorboard=False)


def test_going_on_after_a_step_drops_what_lies_beyond_it_and_a_cut_off_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "split": "train", "loss": 1.0 * step}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "spl')
    assert [record["step"] for record in read_records(path)] == [1, 2, 3]
    log = MetricsLog(tmp_path, PLAIN, step=2, run_config={})
    log.write({"step": 3, "split": "eval", "loss": 9.0})
    log.close()
    assert [(r["step"], r["split"]) for r in read_records(path)] == [(1, "train"), (2, "train"), (3, "eval")]
    assert log.losses("train") == [1.0, 2.0]


def test_values_that_json_lacks_are_null(tmp_path):
    log = MetricsLog(tmp_path, PLAIN, step=0, run_config={})
    log.write({"step": 1, "split": "eval", "loss": math.nan})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "split": "eval", "loss": null}\n'
    assert log.losses("eval") == [math.inf]


def test_tensorboard_files_hold_the_values(tmp_path):
    log = MetricsLog(tmp_path, LoggingConfig(), step=0, run_config={})
    log.write({"step": 5, "split": "train", "loss": 2.5})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in file.read_bytes()


def test_wandb_gets_the_same_values(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append("end"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **keys: calls.append(keys) or run))
    log = MetricsLog(tmp_path, LoggingConfig(tensorboard=False, wandb=True), step=0, run_config={"seed": 1})
    log.write({"step": 5, "split": "train", "loss": 2.5})
    log.close()
    assert calls[0]["config"] == {"seed": 1}
    assert calls[1:] == [({"train/loss": 2.5}, 5), "end"]


def test_wandb_asked_for_and_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed; pip install"):
        MetricsLog(tmp_path, LoggingConfig(tensorboard=False, wandb=True), step=0, run_config={})
