"""What model files hold and how two of them differ: runs, checkpoints, exports, adapters, files, broken ones."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxformer
from jaxformer.check.contents import aligned, compare, open_contents, parts, statistics
from jaxformer.check.pictures import draw_differences, draw_histograms
from jaxformer.cli import run as run_command
from jaxformer.schema import UserError
from jaxformer.training.checkpoint import Checkpoints
from jaxformer.training.export import export
from tests.hub import tiny
from tests.training.helpers import run_training, tiny_keys


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    result = run_training(tiny_keys(folder, steps=4, save_every=2, keep_last=3))
    export(str(result.folder), str(folder / "export"))
    return result.folder


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {"layers.0.w": np.arange(6, dtype=np.float32).reshape(2, 3), "layers.1.w": np.ones((2, 3), np.float32)}
    save_file({**arrays, "b": np.float16([0, 1, np.inf, np.nan])}, path)
    return path


def test_statistics_of_an_array():
    values = np.float32([[3, 0, -1], [0, np.nan, np.inf]])
    found = statistics("a", values)
    assert found.mean == 0.5 and found.std == np.std([3, 0, -1, 0]) and (found.min, found.max) == (-1, 3)
    assert (found.size, found.bytes, found.zeros, found.bad) == (6, 24, 2 / 6, 2)
    assert statistics("b", np.zeros((0, 2), np.int32)).size == 0
    near = np.float32(1e4) + np.arange(9, dtype=np.float32)
    assert np.isclose(statistics("c", near).std, np.arange(9).std(), rtol=1e-9)


def test_statistics_over_slices(monkeypatch):
    values = np.random.default_rng(0).normal(2, 3, 1000).astype(np.float32)
    monkeypatch.setattr("jaxformer.check.contents.SLICE", 64)
    found = statistics("a", values)
    expected = values.astype(np.float64)
    np.testing.assert_allclose([found.mean, found.std], [expected.mean(), expected.std()], rtol=1e-12)


@pytest.mark.slow
def test_a_run_is_its_newest_checkpoint(trained):
    found = open_contents(str(trained))
    with_state = Checkpoints(trained / "checkpoints").read()
    assert found.step == 4 and found.config["model.hidden_size"] == 16
    assert "opt_state/1/0/mu/final_norm/scale" in found.state and "step" in found.state
    np.testing.assert_array_equal(found.arrays.read("final_norm/scale"), with_state["params"]["final_norm"]["scale"])
    assert found.arrays.read("step") == 4
    assert sum(np.prod(found.arrays.shape(name)) for name in found.parameters) == sum(
        leaf.size for leaf in jax.tree.leaves(with_state["params"])
    )


@pytest.mark.slow
def test_two_checkpoints(trained):
    first, second = open_contents(str(trained)), open_contents(str(trained / "checkpoints" / "2"))
    found = compare(first, second)
    assert not found.equal and not found.here and not found.there and not found.types and not found.config
    change = next(change for change in found.changes if change.name == "final_norm/scale")
    a, b = (c.arrays.read("final_norm/scale").astype(np.float64) for c in (first, second))
    assert change.largest == np.abs(a - b).max() and change.differ == (a != b).sum()
    np.testing.assert_allclose(change.relative, np.linalg.norm(a - b) / np.linalg.norm(b))
    relative = [change.relative for change in found.changes if change.name in first.parameters]
    assert relative == sorted(relative, reverse=True)
    assert compare(first, first).equal


def test_a_run_and_its_export(trained, tmp_path):
    folder = trained.parent / "export"
    assert compare(*aligned(open_contents(str(trained)), open_contents(str(folder)))).equal
    assert open_contents(str(folder)).config["model_type"] == "gpt2"
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.weight"][3] += 1
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in folder.iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    found = compare(*aligned(open_contents(str(changed)), open_contents(str(trained))))
    assert [(change.name, change.differ) for change in found.changes] == [("final_norm/scale", 1)]


def test_names_shapes_types_and_values(file, tmp_path):
    other = tmp_path / "b.safetensors"
    arrays = load_file(file)
    del arrays["layers.1.w"]
    arrays |= {"layers.0.w": arrays["layers.0.w"].astype(np.float16), "b": arrays["b"][:2], "c": np.zeros(2)}
    save_file(arrays, other)
    found = compare(open_contents(str(file)), open_contents(str(other)))
    assert (found.here, found.there, found.same) == (["layers.1.w"], ["c"], 0)
    assert found.types == [("b", "float16[4]", "float16[2]"), ("layers.0.w", "float32", "float16")]


def test_a_zero_and_its_negative_differ_and_nan_equals_itself(tmp_path):
    for name, values in (("a", [0.0, np.nan, 1.0]), ("b", [-0.0, np.nan, 1.0]), ("c", [0.0, 2.0, 1.0])):
        save_file({"w": np.float32(values)}, tmp_path / f"{name}.safetensors")
    a, b, c = (open_contents(str(tmp_path / f"{name}.safetensors")) for name in "abc")
    assert compare(a, a).equal
    assert compare(a, b).changes[0][1:] == (0.0, 0.0, 1)
    assert compare(a, c).changes[0].largest == np.inf


def test_an_adapter_and_a_folder_of_files(file, tmp_path):
    found = open_contents(str(tmp_path))
    assert found.kind == "folder of 1 safetensors files" and {*found.parameters} == {"layers.0.w", "layers.1.w", "b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    file.rename(tmp_path / "adapter_model.safetensors")
    found = open_contents(str(tmp_path))
    assert found.kind == "adapter of peft" and found.config == {"peft_type": "LORA", "r": 4}


def test_a_pickle_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R.")
    with pytest.raises(UserError, match="a pickle is not opened here"):
        open_contents(str(tmp_path))
    with pytest.raises(UserError, match=r"expected model files in a folder or a \.safetensors file"):
        open_contents(str(tmp_path / "pytorch_model.bin"))


def test_a_damaged_checkpoint_is_named(trained, tmp_path):
    folder = tmp_path / "checkpoints" / "2"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="expected a whole checkpoint"):
        open_contents(str(folder))
    (folder / "files.json").write_text('{"state/_METADATA": 5}')
    with pytest.raises(UserError, match="_METADATA is missing"):
        open_contents(str(folder))
    with pytest.raises(UserError, match="has no whole checkpoint"):
        open_contents(str(tmp_path))


def test_layers_of_a_name():
    assert parts("h.10.ln.1.weight", np.zeros(3))[0][:2] == ("h.*.ln.1.weight", 10)
    stacked = parts("encoder/layers/up/kernel", np.arange(6).reshape(2, 3))
    assert [(part.kind, part.layer) for part in stacked] == [("encoder/layers/up/kernel", n) for n in (0, 1)]
    np.testing.assert_array_equal(stacked[1].values, [3, 4, 5])


def test_the_command_shows_what_there_is(file, capsys, tmp_path):
    assert run_command("inspect", [str(file), "--picture", str(tmp_path / "p.png")]) == 0
    out = capsys.readouterr().out
    assert "3 arrays, 16 parameters, 0.0 MB" in out and "NOT FINITE: 2 of 4 values of b are inf or nan" in out
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert run_command("inspect", [str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["not_finite"] == 2 and found["parameters"] == 16
    assert next(row for row in found["arrays"] if row["name"] == "layers.0.w")["mean"] == 2.5


@pytest.mark.slow
def test_the_command_compares(trained, capsys, tmp_path):
    run, other = str(trained), str(trained / "checkpoints" / "2")
    assert run_command("inspect", [run, run]) == 0
    assert "65 arrays are equal, bit for bit" in capsys.readouterr().out
    assert run_command("inspect", [run, other, "--picture", str(tmp_path / "p.png")]) == 1
    out = capsys.readouterr().out
    assert "final_norm/scale" in out and "have other values" in out and (tmp_path / "p.png").exists()
    assert run_command("inspect", [run, other, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["equal"] and found["changes"][0]["relative"] > 0
    assert run_command("inspect", [str(tmp_path / "nothing/here/at/all")]) == 2


def test_the_command_shows_a_run(trained, capsys):
    assert run_command("inspect", [str(trained)]) == 0
    out = capsys.readouterr().out
    assert "checkpoint of step 4" in out and "opt_state/1/0/mu: 20 arrays" in out and "model.hidden_size: 16" in out


@pytest.mark.slow
def test_pictures(trained, tmp_path):
    first, second = open_contents(str(trained)), open_contents(str(trained / "checkpoints" / "2"))
    draw_histograms(first, tmp_path / "a.png")
    draw_differences(first, second, compare(first, second), tmp_path / "b.png")
    draw_differences(first, first, compare(first, first), tmp_path / "c.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 3000 for name in "abc")


def test_a_model_of_several_files(tmp_path):
    model, params = tiny.make("gpt2", "causal_lm", ())
    jaxformer.save_pretrained(tmp_path, model, params, shard_bytes=2000)
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    found = open_contents(str(tmp_path))
    assert found.kind == "model in the Hugging Face format"
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(int(np.prod(found.arrays.shape(name))) for name in found.parameters) == total
