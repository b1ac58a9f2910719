"""Runs that learn from what they write: first ratios, resuming, devices, factors, and that they learn."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxformer.models import Decoder
from jaxformer.pipelines.opened_model import open_model
from jaxformer.schema import UserError
from jaxformer.training.evaluation import evaluate_checkpoint
from jaxformer.training.loop import train
from jaxformer.training.run import prepare
from jaxformer.training.sources import resolve_config
from tests.training.helpers import make_run, quiet, run_training, tiny_keys

WORDS = ("cat", "dog", "mat", "hat", "bat", "rat", "cap", "map")
REWARDS = """
def letters(prompts, completions, letter, **columns):
    assert all(prompt.startswith(begins) for prompt, begins in zip(prompts, columns["begins"]))
    return [float(completion.count(which)) for completion, which in zip(completions, letter)]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with prompts, a reward, and a model to start from."""
    folder = tmp_path_factory.mktemp("rollout")
    rows = [{"prompt": f"{a} {b}", "letter": "a", "begins": a} for a in WORDS for b in WORDS]
    rows += [{"prompt": "too long a prompt", "letter": "a", "begins": ""}, {"letter": "a", "begins": ""}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    run_training(tiny_keys(folder, steps=2))
    return folder


def keys_of(folder, name, kind="ppo", task=None, **training):
    keys = tiny_keys(folder, **training)
    data = {**keys["data"], "path": str(folder / "prompts.jsonl"), "validation_fraction": 0.2}
    task = {"type": kind, "reward": f"{folder / 'rewards.py'}:letters", "max_new_tokens": 8, **(task or {})}
    model = {"pretrained": str(folder / "run")}
    return {**keys, "model": model, "task": task, "data": data, "output_dir": str(folder / name)}


def records(folder, name, split="train"):
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


@pytest.fixture(scope="module")
def ppo(folder):
    """A run of four steps with a checkpoint after two, and its keys."""
    task = {"kl_target": 0.5, "minibatches": 2, "epochs": 1}
    keys = keys_of(folder, "ppo", task=task, steps=4, batch_size=16, save_every=2, keep_last=9)
    run_training(keys)
    return keys


def test_begins_at_ratio_1_and_no_kl(folder, ppo):
    first, second, *_ = records(folder, "ppo")
    assert abs(first["kl"]) < 1e-5 and first["kl_coefficient"] == pytest.approx(0.05)
    assert all(0 <= record["sampler_gap"] < 1e-5 for record in records(folder, "ppo"))
    # No KL is far below the target, so it becomes cheaper: a fifth over 10,000 responses.
    assert second["kl_coefficient"] == pytest.approx(0.05 * (1 - 0.2 * 16 / 10_000), rel=1e-6)
    assert {"score", "length", "truncated", "value_loss", "clipped"} <= first.keys()


def test_says_what_it_wrote_to_unseen_prompts(folder, ppo):
    evaluated = records(folder, "ppo", "eval")[-1]
    lines = [json.loads(line) for line in (folder / "ppo" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == evaluated["responses"] and lines[0]["where"].startswith(str(folder / "prompts.jsonl"))
    assert [line["score"] for line in lines] == [line["response"].count("a") for line in lines]
    assert evaluated["score"] == pytest.approx(np.mean([line["score"] for line in lines]))
    assert evaluated["kl"] == pytest.approx(np.mean([line["kl"] for line in lines]))


def test_prompts_without_a_place_are_counted(folder, ppo):
    left = [json.loads(line) for line in (folder / "ppo" / "left_out.jsonl").read_text().splitlines()]
    assert sorted(line["where"].rpartition(" ")[2] for line in left) == ["65", "66"]
    assert any("longer than the context of 8 tokens" in line["reason"] for line in left)


@pytest.mark.slow
def test_resumes_with_the_same_responses(folder, ppo):
    kept = records(folder, "ppo"), records(folder, "ppo", "eval")
    shutil.rmtree(folder / "ppo" / "checkpoints" / "4")
    run_training(ppo)
    again = records(folder, "ppo"), records(folder, "ppo", "eval")
    for before, after in zip([*kept[0], *kept[1]], [*again[0], *again[1]], strict=True):
        for name in {"loss", "score", "kl", "length", "kl_coefficient"} & before.keys():
            assert before[name] == pytest.approx(after[name], rel=1e-5, abs=1e-6), name


def test_what_it_learned_is_a_language_model(folder, ppo):
    opened = open_model(folder / "ppo")
    assert type(opened.model) is Decoder and "value_head" not in opened.params
    _, values, responses, _ = evaluate_checkpoint(make_run(ppo))
    assert values["score"] == pytest.approx(records(folder, "ppo", "eval")[-1]["score"])
    assert responses == records(folder, "ppo", "eval")[-1]["responses"]


@pytest.mark.slow
def test_eight_devices_learn_as_one_does(folder):
    """With SGD, rows split and parameters split, too: the same responses, and the same model after them."""

    def learned(name, devices, **parallel):
        keys = keys_of(folder, name, steps=2, batch_size=16, task={"minibatches": 2, "epochs": 2})
        keys |= {"optimizer": {"type": "sgd", "learning_rate": 0.1}, "parallel": parallel}
        train(prepare(resolve_config(keys, "the test"), quiet(), tuple(jax.devices()[:devices])), quiet())
        return records(folder, name)

    alone = learned("one", 1)
    for name, axes in (("eight", {}), ("split", {"fsdp": 4})):
        for ours, theirs in zip(learned(name, 8, **axes), alone, strict=True):
            for key in ("loss", "score", "kl", "gradient_norm", "value"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), (name, key)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo"])
def test_learns_what_is_rewarded(folder, kind):
    task = {"kl_coefficient": 0.0} | ({"group_size": 8} if kind != "ppo" else {})
    run_training(keys_of(folder, f"learn_{kind}", kind, task=task, steps=30, batch_size=64) | {"seed": 1})
    scores = [record["score"] for record in records(folder, f"learn_{kind}")]
    assert np.mean(scores[-5:]) > 5 * np.mean(scores[:5])


@pytest.mark.slow
def test_factors_are_compared_with_the_model_they_are_beside(folder):
    keys = keys_of(folder, "lora", steps=3, batch_size=16, save_every=2, keep_last=9) | {"lora": {"rank": 2}}
    run_training(keys)
    kept = records(folder, "lora")
    assert abs(kept[0]["kl"]) < 1e-5 and kept[-1]["gradient_norm"] > 0
    shutil.rmtree(folder / "lora" / "checkpoints" / "3")
    run_training(keys)
    np.testing.assert_allclose([r["loss"] for r in records(folder, "lora")], [r["loss"] for r in kept], rtol=1e-5)
    assert type(open_model(folder / "lora").model) is Decoder


@pytest.mark.slow
def test_an_encoder_decoder_writes_too(folder):
    keys = tiny_keys(folder, steps=2)
    base = keys | {
        "model": {**keys["model"], "type": "t5"},
        "task": {"type": "span_corruption"},
        "output_dir": str(folder / "t5"),
    }
    run_training(base)
    keys = keys_of(folder, "t5_ppo", steps=2, batch_size=8) | {"model": {"pretrained": str(folder / "t5")}}
    keys.pop("tokenizer")  # that of the model, which has sentinels
    run_training(keys)
    first = records(folder, "t5_ppo")[0]
    assert abs(first["kl"]) < 1e-5 and first["sampler_gap"] < 1e-5


@pytest.mark.parametrize(
    ("kind", "task", "training", "said"),
    [
        ("grpo", {"group_size": 3}, {}, "training.batch_size is 8 responses, expected a multiple of 3"),
        ("ppo", {"minibatches": 3}, {}, "expected a multiple of 1 responses a prompt and of 3"),
        ("ppo", {"max_new_tokens": 16}, {}, "task.max_new_tokens is 16, expected less than"),
    ],
)
def test_what_cannot_work_is_said(folder, kind, task, training, said):
    with pytest.raises(UserError, match=said):
        resolve_config(keys_of(folder, "bad", kind, task=task, **training), "the test")
