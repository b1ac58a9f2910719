"""Warnings before a run: by hand, at the start of a run and of a resumed one, without compiling its step again."""

import json
import logging
from types import SimpleNamespace

import jax
import pytest

from jaxformer.cli import run as run_command
from jaxformer.training import forecast
from jaxformer.training.forecast import (
    device_memory,
    epochs_warning,
    forewarnings,
    machine_memory,
    memory_warning,
    start_warnings,
)
from jaxformer.training.loop import train
from tests.training.helpers import make_run, quiet, run_training, tiny_keys

GIB = 2**30


def group_files(root, groups, **files):
    """A root folder with the control groups of a process, and files whose names have / as two underscores."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a__b__memory_max": "3000\n", "a__memory_max": "2000\n"}, 2000),
        ("0::/a/b\n", {"a__b__memory_max": "max\n", "a__memory_max": "2000\n"}, 2000),
        # A container sees its own group at the top, whatever its name is on the host.
        ("0::/docker/77\n", {"memory_max": "1000\n"}, 1000),
        ("0::/\n", {"memory_max": "max\n"}, None),
        ("9:memory:/a\n3:cpu,cpuacct:/b\n", {"memory__a__memory.limit_in_bytes": "500\n"}, 500),
        ("9:memory:/\n", {"memory__memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("", {}, None),
    ],
)
def test_the_lowest_limit_of_a_control_group_counts(tmp_path, monkeypatch, groups, files, expected):
    group_files(tmp_path, groups, **files)
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 6 * 2**18, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert machine_memory(tmp_path) == (6 * GIB if expected is None else expected)


def test_a_machine_without_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert machine_memory(tmp_path) == 4_096_000
    monkeypatch.delattr("os.sysconf")
    assert machine_memory(tmp_path) is None


def test_an_accelerator_says_its_limit():
    def device(stats):
        return SimpleNamespace(platform="gpu", memory_stats=lambda: stats)

    assert device_memory(device({"bytes_limit": 24 * GIB, "bytes_in_use": 1})) == 24 * GIB
    assert device_memory(device({})) is device_memory(device(None)) is None
    assert device_memory(jax.devices()[0]) == machine_memory()


def test_memory_by_hand(tmp_path, monkeypatch):
    run = make_run(tiny_keys(tmp_path, batch_size=16, accumulate=2))
    each = forecast.peak_memory(run.lowered().compile())
    # Parameters and Adam's two moments in float32; two rows of 16 tokens with logits over 257 entries.
    count = 257 * 16 + 16 * 16 + 2 * (12 * 256 + 13 * 16) + 2 * 16
    assert each > 3 * 4 * count + 16 * 257 * 4
    assert each < 10 * 4 * count
    monkeypatch.setattr(forecast, "machine_memory", lambda: 8 * each)
    assert memory_warning(run) is None
    monkeypatch.setattr(forecast, "machine_memory", lambda: 8 * each - 1)
    monkeypatch.setattr(forecast, "gib", lambda size: f"{size:,} bytes")
    assert memory_warning(run) == (
        f"the training step needs {8 * each:,} bytes (8 simulated devices of {each:,} bytes) of memory, this machine "
        f"has {8 * each - 1:,} bytes; raise training.accumulate (now 2), set model.remat to full (now none), or lower "
        "training.batch_size (now 16)"
    )


@pytest.mark.parametrize("steps", [4000, 4001])
def test_epochs_by_hand(tmp_path, steps):
    """32 rows and 8 a step: an epoch is 4 steps."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n}", "label": n % 2}) + "\n" for n in range(32)), encoding="utf-8")
    keys = tiny_keys(tmp_path, steps=steps)
    keys["model"] |= {"type": "bert"}
    keys["task"] = {"type": "sequence_classification"}
    keys["data"] |= {"path": str(path), "validation_fraction": 0.0}
    warning = epochs_warning(make_run(keys))
    if steps == 4000:
        assert warning is None
        return
    assert warning == (
        "training.steps is 4,001: with 8 rows a step, each of the 32 rows of data is read 1,000 times; lower it (an "
        "epoch is 4.0 steps), or train on more data"
    )


def test_a_run_that_fits_is_told_nothing(tmp_path):
    assert forewarnings(make_run(tiny_keys(tmp_path))) == []


@pytest.fixture
def scarce(monkeypatch):
    """A machine that has a mebibyte, and few epochs are many."""
    monkeypatch.setattr(forecast, "machine_memory", lambda: 2**20)
    monkeypatch.setattr(forecast, "MANY_EPOCHS", 0.001)


def warned(display):
    lines = display.console.file.getvalue().splitlines()
    return [line.split()[1:5] for line in lines if line.startswith("warning:")]


MEMORY, EPOCHS = ["the", "training", "step", "needs"], ["training.steps", "is", "2:", "with"]


@pytest.mark.slow
def test_a_run_says_so_before_it_starts_and_a_resumed_one_again(tmp_path, scarce, monkeypatch):
    keys = tiny_keys(tmp_path, steps=2)
    display = quiet()
    monkeypatch.setattr("jaxformer.training.loop.Trainer", lambda *_: pytest.fail("begun"))
    with pytest.raises(pytest.fail.Exception, match="begun"):
        run_training(keys, display)
    assert warned(display) == [MEMORY, EPOCHS]
    monkeypatch.undo()
    run_training(keys)
    display = quiet()
    run_training(keys, display)
    assert warned(display) == [], "all steps are done: nothing is needed any more"


def test_a_dry_run_says_so(tmp_path, scarce, monkeypatch, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(tiny_keys(tmp_path, steps=2)))
    monkeypatch.setattr("jaxformer.training.memory.keep_freed_memory", lambda: True)
    monkeypatch.setattr("jaxformer.training.compilation.keep_compiled", lambda config: None)
    assert run_command("train", ["--config", str(path), "--dry-run"], "train.py") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: the training step needs" in said and "warning: training.steps is 2: with 8 rows a step" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", ["jit", "split", "lora", "grpo", "rows of several lengths"])
@pytest.mark.default_cases("jit")
def test_the_step_is_compiled_once(tmp_path, caplog, case):
    keys = tiny_keys(tmp_path, steps=2)
    if case in ("lora", "grpo"):
        run_training({**keys, "output_dir": str(tmp_path / "base")})
        keys["model"] = {"pretrained": str(tmp_path / "base")}
    if case == "split":
        keys["parallel"] = {"fsdp": 2, "tensor": 2}
        keys["model"]["vocab_size"] = 258
    elif case == "lora":
        keys["lora"] = {"rank": 2}
    elif case == "grpo":
        rows = [{"prompt": f"{n}"} for n in range(40)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (tmp_path / "rewards.py").write_text("def one(prompts, completions, **_):\n    return [1.0] * len(prompts)\n")
        keys["data"] |= {"path": str(tmp_path / "prompts.jsonl")}
        keys["task"] = {"type": "grpo", "reward": f"{tmp_path / 'rewards.py'}:one", "max_new_tokens": 4}
        keys["training"]["batch_size"] = 16
    elif case == "rows of several lengths":
        rows = [{"text": "b" * n, "label": n % 2} for n in range(1, 60)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        keys["data"] |= {"path": str(tmp_path / "rows.jsonl")}
        keys["task"] = {"type": "sequence_classification"}
        keys["model"] |= {"type": "bert", "max_length": 64}
    run = make_run(keys)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        train(run, quiet())
    messages = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("Finished XLA compilation of jit(step)") for line in messages) == 1


def test_pmap_compiles_nothing_ahead(tmp_path, scarce, monkeypatch):
    """It would compile its step again; a dry run tells what it needs."""
    run = make_run({**tiny_keys(tmp_path, steps=2), "parallel": {"strategy": "pmap"}})
    assert [line.split()[:4] for line in forewarnings(run)] == [MEMORY, EPOCHS]
    monkeypatch.setattr(type(run), "lowered", lambda *_: pytest.fail("compiled"))
    assert [line.split()[:4] for line in start_warnings(run, 0)] == [EPOCHS]
