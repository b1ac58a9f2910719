"""``jaxformer check`` on the command line."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxformer import cli
from tests.training.helpers import tiny_keys

QUICK = "schedule;batch n is a function of n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_keys(tmp_path)), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def keep_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # the command sets it for its own process


def run(*arguments):
    return cli.run("check", list(map(str, arguments)))


def test_lines_for_people(config, capsys):
    assert run("--config", config, "--only", QUICK, "--debug") == 0
    said = capsys.readouterr().out
    assert "ok     training  schedule: learning rates of 6 steps | the formula of cosine: " in said
    assert "2 passed, 0 failed, 0 do not apply" in said


def test_the_program_that_calls_it_collects_garbage_as_before(config):
    assert run("--config", config, "--only", "schedule") == 0
    assert gc.isenabled()


def test_json_is_all_there_is_on_standard_output(config, capsys):
    assert run("--config", config, "--only", QUICK, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert [check["name"] for check in found["checks"]] == QUICK.split(";")


def test_a_failure_is_exit_code_1(config, capsys, monkeypatch):
    from jaxformer.check import training

    monkeypatch.setattr(training, "_rate", lambda c, n: 1.0)
    assert run("--config", config, "--only", "schedule") == 1
    said = capsys.readouterr().out
    assert "FAILED training  schedule" in said
    assert "likely: the warm-up or the fall begins or ends at another step" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "expected --config FILE (a training run) or --model NAME"),
        (("--config", "a.yaml", "--model", "b"), "expected --config FILE (a training run) or --model NAME"),
        (("--model", "b", "--only", "schedul"), "expected a group or a check; did you mean schedule?"),
    ],
)
def test_what_cannot_be_checked_is_one_line(arguments, said, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_fault_put_in_is_named_and_its_run_alone_has_no_false_alarm():
    script = Path(__file__).parents[2] / "benchmarks" / "mutants.py"
    found = subprocess.run(
        [sys.executable, str(script), "--only", "the reference is other weights"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "1 of 1 faults named by the right line; 0 false alarms" in found.stdout
