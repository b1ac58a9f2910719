"""A run that trains factors: what is saved, resuming, going on from it, exporting it."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from jaxformer.schema import UserError
from jaxformer.training.evaluation import evaluate_checkpoint
from jaxformer.training.export import export, export_adapter, load_run
from jaxformer.training.initial_state import start_state
from jaxformer.training.loop import train
from jaxformer.training.pretrained import read_params, read_trained
from jaxformer.training.sources import resolve_config
from tests.training.helpers import make_run, quiet, run_training, tiny_keys

# Whole runs; what they are made of is tested in tests/lora and tests/tasks.
pytestmark = pytest.mark.slow

LORA = {"rank": 2, "targets": ["query", "down"], "dropout": 0.1}


def keys_of(folder, base, lora=LORA, name="lora", **training):
    keys = {**tiny_keys(folder, **training), "output_dir": str(folder / name)}
    return {**keys, "model": {"pretrained": str(base), "dropout": 0.1}, "lora": lora}


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"], lines[-1]["loss"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def base(folder):
    """A model to freeze."""
    run_training(tiny_keys(folder, steps=2))
    return folder / "run"


@pytest.fixture(scope="module")
def trained(folder, base):
    """A run of six steps, and what it printed."""
    display = quiet()
    run_training(keys_of(folder, base, save_every=3, keep_last=9), display)
    return folder / "lora", display.console.file.getvalue()


def test_only_factors_are_trained_and_saved(trained, base):
    path, said = trained
    saved = flatten_dict(read_trained(path), sep="/")
    assert set(saved) == {
        f"factors/layers/{name}/kernel/{part}" for name in ("attention/query", "feed_forward/down") for part in "ab"
    }
    assert saved["factors/layers/attention/query/kernel/a"].shape == (2, 16, 2)
    assert all(np.abs(array).max() > 0 for array in saved.values())
    statistics = [
        leaf for leaf in jax.tree.leaves(make_run(keys_of(path.parent, base)).abstract.opt_state) if leaf.ndim
    ]
    assert sum(leaf.size for leaf in statistics) == 2 * sum(array.size for array in saved.values())
    assert "newly initialised" not in said
    # The model is the base and, in two kernels, what was learned.
    before, after = read_params(base), read_params(path)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"layers/attention/query/kernel", "layers/feed_forward/down/kernel"}
    update = np.einsum("ldr,lrnh->ldnh", *(saved[f"factors/layers/attention/query/kernel/{part}"] for part in "ab"))
    np.testing.assert_allclose(
        after["layers/attention/query/kernel"], before["layers/attention/query/kernel"] + 8 * update, atol=1e-6
    )


def test_the_first_loss_is_the_bases(trained, base):
    run = make_run(keys_of(trained[0].parent, base, {**LORA, "dropout": 0.0}, "fresh"))
    keys = {**tiny_keys(trained[0].parent), "model": {"pretrained": str(base), "dropout": 0.1}}
    whole = make_run({**keys, "output_dir": str(trained[0].parent / "whole")})
    first = [train(one, quiet()).folder for one in (run, whole)]
    np.testing.assert_allclose(losses(first[0])[0][0], losses(first[1])[0][0], rtol=1e-6)
    assert losses(first[0])[0][-1] != losses(first[1])[0][-1]


def test_a_resumed_run_repeats_the_uninterrupted_one(trained, base):
    path, _ = trained
    kept = losses(path)
    step = path / "checkpoints" / "6"
    step.rename(path / "6")  # as if it had been stopped after the third step
    run_training(keys_of(path.parent, base, save_every=3, keep_last=9))
    assert losses(path) == kept
    with pytest.raises(UserError, match=r"holds a run with other settings: lora\.rank 2 -> 3"):
        run_training(keys_of(path.parent, base, {**LORA, "rank": 3}))


def test_evaluation_and_export_are_of_the_whole_model(trained, base, tmp_path):
    path, _ = trained
    _, values, _, _ = evaluate_checkpoint(make_run(keys_of(path.parent, base)))
    np.testing.assert_allclose(values["loss"], losses(path)[1], rtol=1e-6)
    export(path, tmp_path / "whole")
    written = load_file(tmp_path / "whole" / "model.safetensors")
    expected = load_run(path).params["layers"]["feed_forward"]["down"]["kernel"]
    np.testing.assert_array_equal(written["transformer.h.1.mlp.c_proj.weight"], expected[1])
    export_adapter(path, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["c_attn", "mlp.c_proj"]
    assert config["base_model_name_or_path"] == str(base)
    with pytest.raises(UserError, match="trained a whole model, expected a run with lora"):
        export_adapter(base, tmp_path / "adapter")


def test_the_next_stage_goes_on_from_the_sum(trained):
    path, _ = trained
    keys = {
        **tiny_keys(path.parent, steps=1),
        "model": {"pretrained": str(path)},
        "output_dir": str(path.parent / "next"),
    }
    display = quiet()
    run_training({**keys, "optimizer": {"learning_rate": 1e-9}}, display)
    assert f"took 20 parameters from {path}" in display.console.file.getvalue()
    after, merged = read_params(path.parent / "next"), read_params(path)
    for name in merged:
        np.testing.assert_allclose(after[name], merged[name], atol=1e-6)


def test_int8_kernels_on_a_mesh_and_in_an_export(trained, base, tmp_path):
    path, _ = trained
    keys = keys_of(path.parent, base, {**LORA, "base": "int8"}, "int8")
    run = make_run({**keys, "parallel": {"fsdp": 4}})
    frozen = flatten_dict(start_state(run)[1]["student"], sep="/")
    kernel = frozen["layers/feed_forward/up/kernel"]
    assert kernel.values.dtype == np.int8 and "fsdp" in str(kernel.values.sharding.spec)
    assert kernel.scale.shape == (2, 1, 64) and frozen["embeddings/token/embedding"].dtype == np.float32
    result = run_training(keys)
    run_training({**keys, "parallel": {"fsdp": 4}, "output_dir": str(tmp_path / "fsdp")})
    np.testing.assert_allclose(losses(tmp_path / "fsdp")[0], losses(path.parent / "int8")[0], rtol=1e-5)
    run_training({**keys, "parallel": {"strategy": "pmap"}, "output_dir": str(tmp_path / "pmap")})
    np.testing.assert_allclose(losses(tmp_path / "pmap")[0], losses(path.parent / "int8")[0], rtol=1e-5)
    # What is exported is what was evaluated.
    export(path.parent / "int8", tmp_path / "whole")
    again = {**tiny_keys(path.parent, steps=1), "model": {"pretrained": str(tmp_path / "whole"), "dropout": 0.0}}
    again |= {"output_dir": str(tmp_path / "again"), "optimizer": {"learning_rate": 1e-9}}
    again["tokenizer"] = {"type": "file", "path": str(base / "tokenizer.json")}
    np.testing.assert_allclose(run_training(again).loss, result.loss, rtol=1e-5)


def test_a_new_head_is_trained_whole(folder, base):
    rows = folder / "rows.jsonl"
    rows.write_text('{"text": "the cat", "label": "a"}\n{"text": "it ran", "label": "b"}\n' * 8)
    keys = keys_of(folder, base, {"rank": 2, "dora": True}, "classifier", steps=1)
    keys |= {"task": {"type": "sequence_classification"}, "data": {"path": str(rows), "validation_fraction": 0}}
    run_training(keys)
    saved = read_trained(folder / "classifier")
    assert list(flatten_dict(saved["whole"], sep="/")) == ["classifier/kernel"]
    start = read_params(base)["layers/feed_forward/up/kernel"]
    # Lengths began at those of the base's kernels and moved by at most a learning rate.
    lengths = saved["factors"]["layers"]["feed_forward"]["up"]["kernel"]["magnitude"]
    np.testing.assert_allclose(lengths, np.sqrt((start**2).sum(axis=1)), atol=0.011)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lora": {}}, "lora is given without model.pretrained, expected a model to freeze"),
        ({"lora": {"ranks": 1}}, "unknown key lora.ranks; did you mean lora.rank"),
        ({"lora": {"rank": 0}}, "lora.rank is 0"),
        ({"lora": {"base": "int4"}}, "lora.base is 'int4', expected 'float32' or 'int8'"),
        ({"lora": {"base": "int8", "dora": True}}, "dora is given with base int8, expected float32"),
    ],
)
def test_configurations_that_cannot_be(keys, message):
    with pytest.raises(UserError, match=message):
        resolve_config(keys, "x")


def test_freezing_by_name_does_not_go_with_factors(folder, base):
    keys = keys_of(folder, base) | {"optimizer": {"freeze": ["embeddings/*"]}}
    with pytest.raises(UserError, match=r"lora is given with optimizer\.freeze or optimizer\.layer_decay"):
        resolve_config(keys, "x")


def test_int8_kernels_learn_as_float32_ones_do_and_resume(tmp_path):
    run_training(tiny_keys(tmp_path, steps=2))
    losses = {}
    for base in ("float32", "int8"):
        keys = tiny_keys(tmp_path, steps=6, save_every=3, keep_last=9)
        keys |= {"model": {"pretrained": str(tmp_path / "run")}, "lora": {"rank": 2, "base": base}}
        run_training(keys | {"output_dir": str(tmp_path / base)})
        losses[base] = [
            json.loads(line)["loss"] for line in (tmp_path / base / "metrics.jsonl").read_text().split("\n")[:-1]
        ]
    np.testing.assert_allclose(losses["int8"], losses["float32"], rtol=1e-4)
    assert losses["int8"] != losses["float32"]
    shutil.rmtree(tmp_path / "int8" / "checkpoints" / "6")
    run_training(keys | {"output_dir": str(tmp_path / "int8")})
    again = [json.loads(line)["loss"] for line in (tmp_path / "int8" / "metrics.jsonl").read_text().split("\n")[:-1]]
    np.testing.assert_allclose(again, losses["int8"], rtol=1e-6)
