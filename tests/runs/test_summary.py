"""Summaries of runs, from nothing but the files in their folders."""

import json

import pytest
import yaml
from filelock import FileLock

from jaxformer.cli import run as run_command
from jaxformer.runs.compare import differences
from jaxformer.runs.summary import find_runs, summaries, summarise
from jaxformer.schema import UserError


def write_run(folder, losses, steps=3, **config):
    folder.mkdir(parents=True)
    keys = {"training": {"steps": steps, "early_stopping": None}, "seed": 0, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(keys))
    records = [{"step": 1, "split": "train", "loss": 9.0, "tokens_per_second": 1500.0}]
    records += [{"step": n, "split": "eval", "loss": loss, "accuracy": 0.5} for n, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9, "cut')
    return folder


def test_a_run_in_a_few_words(tmp_path):
    found = summarise(write_run(tmp_path / "a", [2.0, None, 1.5]))
    assert (found.state, found.step, found.loss, found.training_loss) == ("finished", 3, 1.5, 9.0)
    row = found.row
    assert row["run"] == "a" and row["step"] == "3 of 3" and row["best loss"] == "1.5000"
    assert row["metric"] == "accuracy 0.5000" and row["speed"] == "1.50k tokens/s"
    assert row["last record"].endswith("s ago")


@pytest.mark.parametrize(
    ("losses", "patience", "state"),
    [([2.0], None, "stopped"), ([1.0, 2.0, 2.0], 2, "stopped early"), ([3.0, 2.0, 1.0], 2, "stopped")],
)
def test_states(tmp_path, losses, patience, state):
    training = {"steps": 10, "early_stopping": patience}
    assert summarise(write_run(tmp_path / "a", losses, training=training)).state == state


def test_a_run_is_running_while_a_process_holds_its_lock(tmp_path):
    folder = write_run(tmp_path / "a", [2.0])
    with FileLock(folder / ".lock"):
        assert summarise(folder).state == "running"
    assert summarise(folder).state == "stopped"


def test_without_validation_the_loss_is_that_of_training(tmp_path):
    assert summarise(write_run(tmp_path / "a", [])).row["best loss"] == "9.0000 (training)"


def test_a_folder_of_runs(tmp_path, capsys):
    write_run(tmp_path / "a", [2.0])
    write_run(tmp_path / "sweep" / "lr=1,seed=0", [1.0])
    (tmp_path / "no_run").mkdir()
    (tmp_path / "no_run" / "config.yaml").write_text("a: 1\n")
    names = {summary.name for summary in summaries(find_runs(tmp_path), tmp_path)}
    assert names == {"a", "sweep/lr=1,seed=0"}
    assert run_command("runs", [str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "sweep/lr=1,seed=0" in text and "best loss" in text and "stopped" in text
    assert run_command("runs", [str(tmp_path), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["loss"] for line in lines} == {1.0, 2.0}


def test_no_runs_and_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"has no runs, expected folders with config\.yaml and metrics\.jsonl"):
        find_runs(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no run"):
        summarise(tmp_path)


def test_what_differs_and_one_page(tmp_path, capsys):
    a = write_run(tmp_path / "x" / "run", [2.0], optimizer={"learning_rate": 0.1}, output_dir="x")
    b = write_run(tmp_path / "y" / "run", [1.0], optimizer={"learning_rate": 0.2}, output_dir="y")
    found = summaries([a, b])
    assert [run.name for run in found] == ["x/run", "y/run"]
    assert differences(found) == {"optimizer.learning_rate": {"x/run": 0.1, "y/run": 0.2}}
    page = tmp_path / "both.html"
    assert run_command("compare", [str(a), str(b), "--out", str(page)]) == 0
    text = capsys.readouterr().out
    assert "optimizer.learning_rate" in text and f"written: {page}" in text
    assert "x/run, validation" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["a"], "expected two or more"), (["a", "a"], "expected two or more"), (["a", "b"], "is no run")],
)
def test_comparisons_that_are_refused(tmp_path, capsys, arguments, said):
    assert run_command("compare", [str(tmp_path / name) for name in arguments]) == 2
    assert said in capsys.readouterr().err
    assert run_command("compare", ["a", "b", "--out", "page.pdf"]) == 2
    assert "expected a file that ends with .html" in capsys.readouterr().err
