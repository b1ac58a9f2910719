"""Receipts: what they hold, the next step in them, and that interruption at any place leaves a plain state."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.training import receipt
from jaxformer.training.checkpoint import MANIFEST, RECEIPT, Checkpoints, find_damage
from jaxformer.training.receipt import circumstances, code_hash, hashes, joined, read_receipt
from tests.training.helpers import make_run, run_training, tiny_keys


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    keys = tiny_keys(tmp_path_factory.mktemp("receipts"), steps=5, save_every=2, keep_last=9)
    return keys, run_training(keys).folder


def receipt_of(folder, step):
    return read_receipt(folder / "checkpoints" / str(step))


def state_of(folder, step):
    with_all = Checkpoints(folder / "checkpoints", keep_last=9)
    try:
        return with_all._read(step)
    finally:
        with_all.close()


def test_hashes_of_arrays():
    tree = {"a": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "b": {"c": jnp.int32(3)}}
    found = hashes(tree)
    assert found["a"] == hashlib.sha256(b"float32[2, 3]" + np.arange(6, dtype=np.float32).tobytes()).hexdigest()
    assert found["b/c"] == hashlib.sha256(b"int32[]" + np.int32(3).tobytes()).hexdigest()
    # The type, the shape, one bit and a transposed layout all tell.
    others = [
        tree["a"].astype(jnp.int32),
        tree["a"].reshape(3, 2),
        tree["a"].at[1, 2].set(np.nextafter(np.float32(5), np.float32(6))),
        -0.0 * tree["a"],
    ]
    assert len({found["a"], *(hashes({"a": other})["a"] for other in others)}) == 5
    assert hashes({"a": np.asfortranarray(tree["a"])})["a"] == found["a"]
    assert hashes({"a": jnp.zeros((0, 2), jnp.bfloat16)})


def test_hashes_are_those_of_any_sharding():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    array = np.arange(24, dtype=np.float32).reshape(8, 3)
    assert hashes([jax.device_put(array, spread)]) == hashes([array])


def test_a_receipt_holds_what_the_checkpoint_holds(run):
    _, folder = run
    found, state = receipt_of(folder, 2), state_of(folder, 2)
    assert found["parameters"] == hashes(state["params"])
    assert found["configuration"] == hashlib.sha256((folder / "config.yaml").read_bytes()).hexdigest()
    facts = json.loads((folder / "data.json").read_text())
    assert {name: found[name] for name in facts} == facts and found["devices"] == 8 and found["step"] == 2
    assert found["code"] == code_hash() and found["jax"] == jax.__version__
    for step in (2, 4):
        assert find_damage(folder / "checkpoints" / str(step)) is None
        assert RECEIPT not in json.loads((folder / "checkpoints" / str(step) / MANIFEST).read_text())


def test_the_next_step_is_that_of_the_run(run):
    _, folder = run
    # The last two checkpoints are those of neighbouring steps.
    assert receipt_of(folder, 4)["next"]["parameters"] == receipt_of(folder, 5)["parameters"]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["loss"] for line in lines if line["split"] == "train"}
    assert receipt_of(folder, 2)["next"]["loss"] == losses[3] and receipt_of(folder, 4)["next"]["loss"] == losses[5]
    assert "next" not in receipt_of(folder, 5)


def test_the_state_of_a_receipt_is_the_whole_one(run):
    _, folder = run
    state = state_of(folder, 4)
    assert receipt_of(folder, 4)["state"] == joined(hashes(state))
    state["opt_state"] = jax.tree.map(lambda leaf: leaf + np.array(1, leaf.dtype), state["opt_state"])
    assert receipt_of(folder, 4)["state"] != joined(hashes(state))


def test_a_run_that_goes_on_completes_the_receipt(run, tmp_path):
    keys, folder = run
    copy = {**keys, "output_dir": str(tmp_path / "copy")}
    shutil.copytree(folder, tmp_path / "copy")
    config = (tmp_path / "copy" / "config.yaml").read_text().replace(str(folder), copy["output_dir"])
    (tmp_path / "copy" / "config.yaml").write_text(config)
    shutil.rmtree(tmp_path / "copy" / "checkpoints" / "5")
    path = tmp_path / "copy" / "checkpoints" / "4" / RECEIPT
    whole = json.loads(path.read_text())
    stopped = {key: value for key, value in whole.items() if key != "next"}
    path.write_text(json.dumps({**stopped, "configuration": hashlib.sha256(config.encode()).hexdigest()}))
    run_training(copy)
    assert json.loads(path.read_text())["next"] == whole["next"]


def test_a_changed_run_does_not_complete_an_older_receipt(run, tmp_path, monkeypatch):
    keys, folder = run
    copy = {**keys, "output_dir": str(tmp_path / "copy")}
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints" / "5")
    path = tmp_path / "copy" / "checkpoints" / "4" / RECEIPT
    stopped = {key: value for key, value in json.loads(path.read_text()).items() if key != "next"}
    path.write_text(json.dumps(stopped))
    monkeypatch.setattr(receipt, "code_hash", lambda: "other code")
    run_training(copy)
    assert json.loads(path.read_text()) == stopped


@pytest.mark.parametrize("content", ["", '{"step": 4, "param', "[]", "{}"])
@pytest.mark.default_cases("")
def test_a_missing_or_half_written_receipt(run, tmp_path, content):
    keys, folder = run
    copy = {**keys, "output_dir": str(tmp_path / "copy")}
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints" / "5")
    path = tmp_path / "copy" / "checkpoints" / "4" / RECEIPT
    path.unlink() if not content else path.write_text(content)
    assert read_receipt(path.parent) is None
    result = run_training(copy)  # resumes from step 4 as ever
    assert result.step == 5 and read_receipt(path.parent) is None
    assert receipt_of(tmp_path / "copy", 5)["parameters"] == receipt_of(folder, 5)["parameters"]


@pytest.mark.slow
def test_a_kill_between_checkpoint_and_receipt(tmp_path, monkeypatch):
    keys = tiny_keys(tmp_path, steps=4, save_every=2, keep_last=9)

    class KilledError(Exception):
        pass

    def killed(self, step, state):
        self._checkpoints.wait()
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(receipt.Receipts, "begin", killed)
        with pytest.raises(KilledError):
            run_training(keys)
    folder = tmp_path / "run"
    assert receipt_of(folder, 2) is None and (folder / "checkpoints" / "2").exists()
    assert run_training(keys).step == 4
    assert receipt_of(folder, 2) is None and receipt_of(folder, 4)["step"] == 4


@pytest.mark.slow
def test_receipts_go_with_their_checkpoints(tmp_path):
    folder = run_training(tiny_keys(tmp_path, steps=6, save_every=1, keep_last=2)).folder
    kept = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert kept == [5, 6] and "next" in receipt_of(folder, 5)
    assert not list(folder.rglob("*.partial"))


def test_a_receipt_waits_for_its_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.attach(1, "early")
    assert not (tmp_path / "checkpoints" / "1").exists()
    checkpoints.save(1, {"a": jnp.zeros(3)})
    checkpoints.attach(1, "late")
    checkpoints.wait()
    assert (tmp_path / "checkpoints" / "1" / RECEIPT).read_text() == "late"
    assert find_damage(tmp_path / "checkpoints" / "1") is None
    checkpoints.close()


def test_circumstances_name_what_changed(run, tmp_path):
    keys, folder = run
    now = circumstances(make_run(keys), folder)
    assert all(receipt_of(folder, 2)[key] == value for key, value in now.items())
    assert circumstances(make_run(keys), tmp_path)["configuration"] is None
