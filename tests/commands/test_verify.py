"""``jaxformer verify``: a step executed again is equal, or what differs is named."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxformer.check.verify import PROMISE
from jaxformer.cli import run as run_command
from jaxformer.training import receipt
from jaxformer.training.checkpoint import MANIFEST, RECEIPT
from tests.training.helpers import run_training, tiny_keys


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    run_training(tiny_keys(folder, steps=4, save_every=2, keep_last=9))
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of a run, to be changed; its data are those of the copy too."""
    shutil.copytree(original, tmp_path / "copy")
    config = tmp_path / "copy" / "run" / "config.yaml"
    text = config.read_text().replace(str(original), str(tmp_path / "copy"))
    config.write_text(text)
    for path in (tmp_path / "copy" / "run" / "checkpoints").glob(f"*/{RECEIPT}"):
        changed = json.loads(path.read_text()) | {"configuration": hashlib.sha256(text.encode()).hexdigest()}
        path.write_text(json.dumps(changed))
    return tmp_path / "copy" / "run"


def lines(capsys):
    found = json.loads(capsys.readouterr().out)
    return found, {line["name"]: line for line in found["lines"]}


def different(named):
    return {name for name, line in named.items() if not line["equal"]}


def test_equal(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run_command("verify", [str(folder)]) == 0
    out = capsys.readouterr().out
    assert "the checkpoint of step 4 has no next step in its receipt: the run stopped there" in out
    assert (
        "step 2 to 3: equal: the step gives the same loss and parameters, bit for bit" in out and "DIFFERS" not in out
    )
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}, "nothing is written"
    assert run_command("verify", [str(folder), "--step", "2", "--json"]) == 0
    found, named = lines(capsys)
    assert found["equal"] and found["step"] == 2 and not found["notes"] and different(named) == set()


def test_a_changed_data_file(folder, capsys):
    corpus = folder.parent / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("cat", "owl"))
    assert run_command("verify", [str(folder), "--json"]) == 1
    found, named = lines(capsys)
    assert {"data", "loss", "parameters after"} <= different(named) and named["parameters"]["equal"]
    assert "the receipt has" in named["loss"]["said"] and not found["equal"]


def test_a_changed_configuration(folder, capsys):
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.01", "learning_rate: 0.011"))
    assert run_command("verify", [str(folder), "--json"]) == 1
    _, named = lines(capsys)
    # The loss of the step is that before its update.
    assert different(named) == {"configuration", "parameters after"}
    assert "20 of 20 arrays differ, the first is embeddings/position/embedding" in named["parameters after"]["said"]


@pytest.mark.slow
def test_changed_code(folder, capsys, monkeypatch):
    monkeypatch.setattr(receipt, "code_hash", lambda: "other")
    assert run_command("verify", [str(folder), "--json"]) == 0  # it changes nothing here
    assert different(lines(capsys)[1]) == {"code"}
    softened = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, **keys: softened(x, **keys) * np.float32(1.0001))
    assert run_command("verify", [str(folder), "--json"]) == 1
    found, named = lines(capsys)
    assert {"code", "parameters after"} <= different(named) and found["notes"][-1].endswith(PROMISE)


def test_a_flipped_bit(folder, capsys):
    path = folder / "checkpoints" / "2"
    state = ocp.load(path)
    scale = np.array(state["params"]["final_norm"]["scale"])
    scale.view(np.uint32)[3] ^= 1
    state["params"]["final_norm"]["scale"] = scale
    kept = (path / RECEIPT).read_text()
    shutil.rmtree(path)
    ocp.save(path, state)
    (path / RECEIPT).write_text(kept)
    assert run_command("verify", [str(folder), "--step", "2", "--json"]) == 1
    _, named = lines(capsys)
    assert {"state", "parameters"} <= different(named)
    assert named["parameters"]["said"] == "1 of 20 arrays differ, the first is final_norm/scale"


def test_a_damaged_checkpoint_is_an_error(folder, capsys):
    manifest = folder / "checkpoints" / "2" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "state/missing": 3}))
    assert run_command("verify", [str(folder)]) == 2
    assert "missing is missing; expected a whole checkpoint of step 2" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", '{"step": 2, "para'])
def test_without_a_receipt(folder, capsys, content):
    path = folder / "checkpoints" / "2" / RECEIPT
    path.unlink() if not content else path.write_text(content)
    assert run_command("verify", [str(folder)]) == 2
    said = capsys.readouterr().err
    assert "the checkpoint of step 2 has no receipt, or only a part of one" in said and "Traceback" not in said
    assert run_command("verify", [str(folder), "--step", "3"]) == 2
    assert "there is no checkpoint of step 3, expected one of 2, 4" in capsys.readouterr().err


def test_no_run(tmp_path, capsys):
    assert run_command("verify", [str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
def test_a_policy(tmp_path, capsys):
    rows = "".join(json.dumps({"prompt": f"cat {n}"}) + "\n" for n in range(20))
    (tmp_path / "prompts.jsonl").write_text(rows)
    (tmp_path / "rewards.py").write_text(
        "def f(prompts, completions, **c): return [float(len(t)) for t in completions]"
    )
    keys = tiny_keys(tmp_path, steps=2, save_every=1, keep_last=9)
    data = {**keys["data"], "path": str(tmp_path / "prompts.jsonl"), "validation_fraction": 0}
    task = {"type": "grpo", "reward": f"{tmp_path / 'rewards.py'}:f", "max_new_tokens": 4, "group_size": 2}
    run_training({**keys, "data": data, "task": task})
    assert run_command("verify", [str(tmp_path / "run"), "--json"]) == 0
    found, named = lines(capsys)
    assert found["step"] == 1 and named["parameters after"]["equal"]
