"""Runs on preference pairs: what they start at, the reference of a resumed run, and that they learn."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxformer.schema import UserError
from jaxformer.training.evaluation import evaluate_checkpoint
from jaxformer.training.export import export
from jaxformer.training.loop import train
from jaxformer.training.reference_log_probs import FILE
from jaxformer.training.run import prepare
from jaxformer.training.sources import resolve_config
from tests.training.helpers import make_run, quiet, run_training, tiny_keys

# Whole runs; what they are made of is tested in tests/lora and tests/tasks.
pytestmark = pytest.mark.slow

WORDS = ("cat", "dog", "mat", "hat", "bat", "rat", "cap", "map")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with pairs of which the kind response is preferred, and a model to start from."""
    folder = tmp_path_factory.mktemp("alignment")
    rows = [{"prompt": f"{a} {b}?", "chosen": " yes", "rejected": " no"} for a in WORDS for b in WORDS[:4]]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run_training(tiny_keys(folder, steps=2))
    return folder


def keys_of(folder, name, task, **training):
    keys = tiny_keys(folder, **training)
    data = {**keys["data"], "path": str(folder / "pairs.jsonl"), "validation_fraction": 0.2}
    model = {"pretrained": str(folder / "run"), "dropout": 0.0}
    return {**keys, "model": model, "task": task, "data": data, "output_dir": str(folder / name)}


def records(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def test_dpo_starts_at_log_2_and_learns(folder):
    display = quiet()
    run_training(keys_of(folder, "dpo", {"type": "dpo"}, steps=12, save_every=6, keep_last=9), display)
    assert "computing log-probabilities of the reference model: 32 examples" in display.console.file.getvalue()
    first, *_, last, evaluated = records(folder, "dpo")
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-5)
    assert first["reward_margin"] == pytest.approx(0, abs=1e-5) and last["pair_accuracy"] == 1
    line = json.loads((folder / "dpo" / "predictions.jsonl").read_text().splitlines()[0])
    assert line["chosen_reward"] > line["rejected_reward"]
    assert evaluated["split"] == "eval" and evaluated["pair_accuracy"] == 1 and evaluated["loss"] < 0.6


def test_a_resumed_run_needs_no_start(folder):
    kept = records(folder, "dpo")
    base = folder / "run"
    shutil.move(folder / "dpo" / "checkpoints" / "12", folder / "12")
    keys = keys_of(folder, "dpo", {"type": "dpo"}, steps=12, save_every=6, keep_last=9)
    config = resolve_config(keys, "the test")  # read while what it started from is there
    shutil.move(base, folder / "away")
    try:
        run_training(config)
        _, values, _, _ = evaluate_checkpoint(make_run(config))
    finally:
        shutil.move(folder / "away", base)
    losses = [[r["loss"] for r in found] for found in (kept, records(folder, "dpo"))]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    np.testing.assert_allclose(values["loss"], kept[-1]["loss"], rtol=1e-6)
    with np.load(folder / "dpo" / FILE) as stored:
        assert stored["train"].shape[1] == 2


def test_factors_compare_with_the_model_they_are_beside(folder):
    keys = keys_of(folder, "lora", {"type": "dpo", "loss": "kto"}, steps=2) | {"lora": {"rank": 2}}
    run_training(keys)
    first = records(folder, "lora")[0]
    np.testing.assert_allclose(first["loss"], 0.5, rtol=1e-5)  # 1 - s(0) of both sides
    assert first["chosen_reward"] == pytest.approx(0, abs=1e-5)


def test_parts_and_devices_change_nothing(folder):
    """Factors and pairs on eight devices, and on one in two parts."""
    found = []
    for name, devices, accumulate in (("eight", 8, 1), ("parts", 1, 2)):
        keys = keys_of(folder, name, {"type": "dpo"}, steps=2, accumulate=accumulate) | {
            "lora": {"rank": 2, "dropout": 0.2}
        }
        run = prepare(resolve_config(keys, "the test"), quiet(), tuple(jax.devices()[:devices]))
        train(run, quiet())
        found.append([[r[key] for key in ("loss", "reward_margin")] for r in records(folder, name)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_factors_lie_as_their_kernels_do(folder):
    keys = keys_of(folder, "mesh", {"type": "dpo"}) | {
        "lora": {"rank": 2},
        "parallel": {"data": 2, "fsdp": 2, "tensor": 2},
    }
    keys["model"] |= {"vocab_size": 258}  # a multiple of the devices it is split over
    run = make_run(keys)
    state, frozen = run.abstract, run.abstract_frozen
    query = state.params["factors"]["layers"]["attention"]["query"]["kernel"]
    kernel = frozen["student"]["layers"]["attention"]["query"]["kernel"].sharding.spec
    assert tuple(kernel) == (None, "fsdp", "tensor", None)
    assert tuple(query["a"].sharding.spec) == (None, "fsdp", None)
    assert tuple(query["b"].sharding.spec) == (None, None, "tensor", None)
    moments = {leaf.sharding.spec for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == query["a"].shape}
    assert query["a"].sharding.spec in moments


def test_a_reward_model_learns_and_is_written(folder, tmp_path):
    run_training(keys_of(folder, "reward", {"type": "reward", "centring": 0.01}, steps=12))
    evaluated = records(folder, "reward")[-1]
    assert evaluated["pair_accuracy"] == 1 and evaluated["score_margin"] > 0
    lines = (folder / "reward" / "predictions.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert "pairs.jsonl, line" in first["where"] and first["chosen_score"] > first["rejected_score"]
    export(folder / "reward", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForSequenceClassification"] and len(config["id2label"]) == 1


def test_a_mean_over_the_batch_is_not_taken_in_parts(folder):
    with pytest.raises(UserError, match=r"task\.loss kto compares with a mean over the whole batch"):
        resolve_config(keys_of(folder, "x", {"type": "dpo", "loss": "kto"}, accumulate=2), "x")
