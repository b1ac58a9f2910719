"""Sweeps: the combinations, what is refused before any run, and that finished runs are not run again."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from scipy import stats

from jaxformer.cli import run as run_command
from jaxformer.runs import sweep
from jaxformer.runs.sweep import combinations, mean, table
from jaxformer.schema import UserError
from tests.training.helpers import tiny_keys


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_keys(tmp_path, steps=2)), encoding="utf-8")
    return str(path)


def test_all_combinations(config, tmp_path):
    top, runs = combinations(config, ["optimizer.learning_rate=1e-3,3e-4", "training.steps=5", "seed=0,1"])
    assert top == tmp_path / "run_sweep"
    assert [run.folder.name for run in runs] == [
        f"learning_rate={rate},seed={seed}" for rate in ("1e-3", "3e-4") for seed in (0, 1)
    ]
    assert runs[0].overrides[:1] == ("training.steps=5",) and len({run.fingerprint for run in runs}) == 4
    assert combinations(config, ["output_dir=elsewhere", "seed=0,1"])[0].name == "elsewhere"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=0"], "no key has several values"),
        (["seed=0,0"], "repeats a key or a value"),
        (["seed=0,1", "seed=2,3"], "repeats a key or a value"),
        (["seed=0,"], "or has an empty one"),
        (["output_dir=a,b"], "output_dir has several values"),
        (["optimizer.learning_rat=1,2"], "unknown key optimizer.learning_rat; did you mean optimizer.learning_rate?"),
        (["seed=0,1", "training.steps=many"], "training.steps is 'many'"),
        (["seed=0,x"], "seed is 'x'"),
    ],
)
def test_refused_before_any_run(config, tmp_path, overrides, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        combinations(config, overrides)
    assert not (tmp_path / "run_sweep").exists()


def test_the_interval_is_student_s():
    values = [1.0, 2.5, 3.0, 2.0]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert mean(values).value == pytest.approx((low + high) / 2)
    assert mean(values).half == pytest.approx((high - low) / 2)
    assert mean([2.0]).half is None


def test_runs_are_trained_once_and_a_failure_ends_no_other(config, tmp_path, monkeypatch, capsys):
    trained = []

    def stand_in(arguments):
        """Writes what a run with this seed would; that of seed 1 fails."""
        folder = next(a for a in arguments if a.startswith("output_dir=")).partition("=")[2]
        seed = int(next(a for a in arguments if a.startswith("seed=")).partition("=")[2])
        trained.append(seed)
        if seed == 1:
            return 2, None
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(yaml.safe_dump({"training": {"steps": 2}, "seed": seed}))
        record = {"step": 2, "split": "eval", "loss": 1.0 + seed, "accuracy": 0.5}
        (path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        return 0, None

    monkeypatch.setattr(sweep, "train_alone", stand_in)
    arguments = ["--config", config, "seed=0,1,2"]
    assert run_command("sweep", arguments) == 1
    text = capsys.readouterr().out
    assert trained == [0, 1, 2] and "seed=1 failed with exit code 2" in text
    assert "2.0000 ± 12.7062" in text and "0.5000 ± 0.0000" in text  # t(0.975, 1) / sqrt(2) * sqrt(2)
    assert (tmp_path / "run_sweep" / "sweep.html").exists()
    assert run_command("sweep", arguments) == 1
    assert trained == [0, 1, 2, 1] and capsys.readouterr().out.count("finished before") == 2
    # Another configuration is another run.
    assert run_command("sweep", [*arguments, "optimizer.learning_rate=0.5"]) in (1, 2)
    assert trained[4:] != []


def test_the_table_has_a_line_for_all_seeds(config):
    _, runs = combinations(config, ["optimizer.learning_rate=1,2", "seed=0,1"])

    class Found:
        results = {}
        training_loss = None

        def __init__(self, loss):
            self.loss = loss

    lines = table(runs, {run.folder: Found(loss) for run, loss in zip(runs, (4.0, 4.0, 1.0, 3.0), strict=True)})
    assert [line["optimizer.learning_rate"] for line in lines] == ["2", "1"]
    assert lines[1] == {"optimizer.learning_rate": "1", "runs": "2", "best loss": "4.0000 ± 0.0000"}


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on(config, tmp_path):
    command = [sys.executable, "-m", "jaxformer", "sweep", "--config", config, "seed=0,1", "training.steps=60"]
    first = tmp_path / "run_sweep" / "seed=0"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (first / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert "of 2 runs are finished; run the same command to go on" in text
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " ± " in result.stdout and "curves of all" in result.stdout
