"""The program as a user runs it: a process of its own, its exit code and what it prints."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from jaxformer import cli
from tests.training.helpers import tiny_keys

ROOT = Path(__file__).parent.parent


def command(*arguments):
    return [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]


def start(*arguments):
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments, expect=0):
    result = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240)
    assert result.returncode == expect, result.stdout + result.stderr
    return result


@pytest.fixture
def config(tmp_path):
    """A tiny run's YAML file."""
    return write_config(tmp_path)


def write_config(folder, **training):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_keys(folder, **training)), encoding="utf-8")
    return path


def refused(*arguments):
    """The one line on standard error of a command that ends with code 2."""
    result = run(*arguments, expect=2)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_help_lists_every_key_with_type_default_and_meaning():
    text = run("--help").stdout
    for line in (
        "training.batch_size  (int, 32)",
        "optimizer.type  (adamw | adafactor | lion | muon | sgd, adamw)",
        "data.path  (str or list of str or null, null)",
        "parallel.data  (int, -1)",
        "model.rope_scaling.factor  (float, required)",
    ):
        assert line in text
    keys = [line for line in text.splitlines() if line.startswith("  ") and line.endswith(")") and "  (" in line]
    meanings = [text.splitlines()[text.splitlines().index(key) + 1].strip() for key in keys]
    assert len(keys) > 60
    assert all(meanings), [key for key, meaning in zip(keys, meanings, strict=True) if not meaning]


def test_print_config_is_the_resolved_yaml(config):
    printed = yaml.safe_load(run("--config", config, "--print-config", "training.steps=9").stdout)
    assert printed["training"]["steps"] == 9
    assert printed["model"]["activation"] == "gelu_tanh"


def test_dry_run_says_what_the_run_costs_and_writes_nothing(config, tmp_path):
    text = run("--config", config, "--dry-run").stdout
    for word in ("parameters", "1 x cpu", "8 per device x 1 devices x 1 accumulated", "tokens a step", "MiB", "about"):
        assert word in text, text
    assert not (tmp_path / "run").exists()


def test_train_then_again(config, tmp_path):
    first = run("--config", config)
    assert "step 6/6  loss" in first.stdout
    assert f"everything is in {tmp_path / 'run'}" in first.stdout
    assert first.stderr == ""
    again = run("--config", config, "training.steps=8")
    assert "resuming at step 6 of 8" in again.stdout


def bad_corpus(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return f"data.path={tmp_path / name}"


def test_bad_input_is_one_readable_line_and_code_2(config, tmp_path, capsys):
    line = refused("--config", config, "model.hiden_size=8")
    assert line == "error: the command line: unknown key model.hiden_size; did you mean model.hidden_size?"
    assert "unrecognized arguments: --stpes" in refused("--config", config, "--stpes")

    def refused_here(*arguments):
        """The same without a process of its own."""
        assert cli.run("train", [str(argument) for argument in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    line = refused_here("--config", config, bad_corpus(tmp_path, "bad.jsonl", b'{"text": "a"}\n{"text": \n'))
    assert f"{tmp_path}/bad.jsonl" in line and "2" in line
    line = refused_here("--config", config, bad_corpus(tmp_path, "latin.txt", "caf\xe9".encode("latin-1")))
    assert "latin.txt" in line and "UTF-8" in line
    assert "does not exist" in refused_here("--config", tmp_path / "none.yaml")
    assert "no --config given" in refused_here()


def test_a_failure_of_ours_is_one_line_and_a_traceback_only_in_debug(config, monkeypatch, capsys):
    from jaxformer.commands import train

    def broken(options):
        raise RuntimeError("some\nthing")

    monkeypatch.setattr(train, "run", broken)
    assert cli.run("train", ["--config", str(config)]) == 1
    assert capsys.readouterr().err == ("error: RuntimeError: some thing; run again with --debug for the traceback\n")
    assert cli.run("train", ["--config", str(config), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(r["step"], r["split"], r["loss"]) for r in map(json.loads, lines)]


def final_arrays(folder, step):
    """Every array of a checkpoint, read by Orbax without our code."""
    import jax
    from orbax.checkpoint import v1 as ocp

    tree = ocp.load_checkpointables(folder / "checkpoints" / str(step))["state"]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def wait_for_records(folder, count, process):
    path = folder / "metrics.jsonl"
    while not (path.exists() and len(path.read_text(encoding="utf-8").splitlines()) >= count):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def kill_and_compare(tmp_path, kills, steps):
    """Trains once in one go and once killed again and again with SIGKILL; both must end the same, bit for bit."""
    keys = {"steps": steps, "save_every": 7, "eval_every": 50, "log_every": 10}
    config = write_config(tmp_path, **keys)
    whole = tmp_path / "whole"
    run("--config", config, f"output_dir={whole}")
    draw = random.Random(0)
    killed = 0
    for _ in range(kills):
        process = start("--config", config)
        done = len(losses(tmp_path / "run")) if (tmp_path / "run" / "metrics.jsonl").exists() else 0
        wait_for_records(tmp_path / "run", min(done + draw.randrange(1, 6), steps // 10), process)
        time.sleep(draw.random() * 0.03)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 1
    run("--config", config)
    assert losses(tmp_path / "run") == losses(whole)
    for a, b in zip(final_arrays(tmp_path / "run", steps), final_arrays(whole, steps), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_killed_five_times(tmp_path):
    kill_and_compare(tmp_path, kills=5, steps=300)


@pytest.mark.slow
def test_sigterm_saves_and_says_so(tmp_path):
    config = write_config(tmp_path, steps=1_000_000)
    process = start("--config", config)
    wait_for_records(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, out + err
    step = int(out.split("SIGTERM: saved step ")[1].split()[0])
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    assert "run the same command to resume" in out


@pytest.mark.slow
def test_a_really_full_disk(tmp_path):
    """On a small file system of its own; only root can mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], check=True)
    try:
        config = write_config(tmp_path, steps=400, save_every=5)
        line = refused("--config", config, f"output_dir={disk / 'run'}", "training.keep_last=100")
        assert "the disk is full" in line
        assert "the last good one is step" in line
        good = int(line.split("the last good one is step ")[1].split(";")[0])
        assert len(final_arrays(disk / "run", good)) > 10
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_installed_program_knows_its_commands():
    result = subprocess.run(
        [sys.executable, "-c", "from jaxformer.cli import main; main()", "trian"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "train" in result.stderr


@pytest.mark.slow
def test_a_profile_the_program_as_text_and_compiled_programs_kept(config, tmp_path, monkeypatch):
    cache = tmp_path / "compiled"
    # Also programs that take less than a second to compile.
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    options = ("training.profile=[2,3]", "training.dump_hlo=true", f"training.compilation_cache={cache}")
    printed = run("--config", config, *options).stdout
    assert f"profile: tensorboard --logdir {tmp_path / 'run' / 'profile'}" in printed
    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
    assert "stablehlo.dot_general" in (tmp_path / "run" / "hlo" / "train_step.stablehlo.txt").read_text()
    assert "ENTRY" in (tmp_path / "run" / "hlo" / "train_step.hlo.txt").read_text()
    assert any("train_step" in path.name or "step" in path.name for path in cache.iterdir())
    assert "training.profile: is [3, 2], expected [first, last]" in refused(
        "--config", config, "training.profile=[3,2]"
    )
