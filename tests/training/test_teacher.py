"""Runs with a teacher: a step against the naive gradient on every mesh, what is saved, resuming, what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxformer.parallel.batch import put_batch
from jaxformer.schema import UserError
from jaxformer.training.evaluation import evaluate_checkpoint
from jaxformer.training.export import export, load_run
from jaxformer.training.initial_state import start_state
from jaxformer.training.pretrained import read_trained
from tests.training.helpers import make_run, quiet, run_training, tiny_keys

RATE = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a teacher of two steps in it."""
    folder = tmp_path_factory.mktemp("teacher")
    run_training(tiny_keys(folder, steps=2))
    return folder


def keys_of(folder, name="student", task=None, model=None, **training):
    keys = {**tiny_keys(folder, **training), "output_dir": str(folder / name)}
    del keys["tokenizer"]
    # SGD, since Adam's normalisation would hide a gradient that is off by a factor.
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    return {
        **keys,
        "model": {**keys["model"], **still, "hidden_size": 8, "num_layers": 1, **(model or {})},
        "task": {"type": "distillation", "teacher": str(folder / "run"), "temperature": 3.0, **(task or {})},
        "optimizer": {"type": "sgd", "learning_rate": RATE, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": None},
        "schedule": {"type": "constant"},
    }


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def expected(folder):
    """The student's parameters after one step of plain gradient descent, from the logits of both models."""
    run = make_run(keys_of(folder))
    batch = {name: jnp.asarray(array) for name, array in run.train_batches[0].items()}
    teacher = load_run(folder / "run")
    teacher_params = jax.tree.map(jnp.asarray, teacher.params)
    start = jax.device_get(start_state(run)[0].params)
    inputs = {name: array for name, array in batch.items() if name != "labels"}

    @jax.jit
    def mean(params):
        p = jax.nn.softmax(teacher.model.apply({"params": teacher_params}, **inputs).logits / 3)
        logits = run.model.apply({"params": params}, **inputs).logits
        kl = 9 * jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(logits / 3)), -1)
        labels = batch["labels"]
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], -1)[..., 0]
        return jnp.sum((labels >= 0) * (0.5 * kl + 0.5 * nll)) / jnp.sum(labels >= 0)

    loss, gradient = jax.jit(jax.value_and_grad(mean))(start)
    return loss, jax.tree.map(lambda p, g: p - RATE * g, start, gradient)


@pytest.mark.parametrize(
    ("parallel", "accumulate"),
    [({"fsdp": 4}, 1), ({"strategy": "pmap"}, 1), ({"sequence": 2, "fsdp": 4}, 2)],
    ids=["fsdp", "pmap", "sequence accumulated"],
)
@pytest.mark.slow
def test_a_step_is_the_gradient_of_the_naive_formula(folder, expected, parallel, accumulate):
    run = make_run({**keys_of(folder, accumulate=accumulate), "parallel": parallel})
    state, frozen = start_state(run)
    batch = run.train_batches[0]
    state, metrics, _ = run.device_step(state, run.device_step.put(batch), frozen=frozen)
    np.testing.assert_allclose(metrics.sums["loss"] / metrics.weight, expected[0], rtol=1e-5)
    for ours, theirs in zip(*map(jax.tree.leaves, (jax.device_get(state.params), expected[1])), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_the_teacher_is_an_argument_split_over_devices_and_in_no_checkpoint(folder):
    run = make_run({**keys_of(folder), "parallel": {"fsdp": 8}})
    teacher, abstract = load_run(folder / "run").params, run.abstract_frozen["teacher"]
    assert jax.tree.map(jnp.shape, teacher) == jax.tree.map(lambda leaf: leaf.shape, abstract)
    assert all("fsdp" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(abstract) if leaf.size > 256)
    state, frozen = start_state(run)
    read = flatten_dict(jax.device_get(frozen["teacher"]), sep="/")
    for name, array in flatten_dict(teacher, sep="/").items():
        np.testing.assert_array_equal(read[name], array)
    # No array of it is a constant of the program.
    step = jax.make_jaxpr(run.train_step)(state, put_batch(run.train_batches[0], 8, run.mesh), frozen)
    assert sum(np.size(constant) for constant in step.consts) < 64
    assert jax.tree.structure(run.abstract.params) == jax.tree.structure(state.params)
    assert "and" not in run.size


@pytest.mark.slow
def test_a_resumed_run_repeats_the_uninterrupted_one_and_evaluates(folder, tmp_path):
    display = quiet()
    keys = keys_of(folder, "resumed", model={"dropout": 0.2}, steps=4, save_every=2, keep_last=9, eval_every=2)
    run_training(keys, display)
    kept = losses(folder / "resumed")
    assert "agreement" in (folder / "resumed" / "metrics.jsonl").read_text()
    assert set(read_trained(folder / "resumed")) == set(load_run(folder / "run").params)
    shutil.rmtree(folder / "resumed" / "checkpoints" / "4")  # as if it had been killed after the second step
    run_training(keys)
    assert losses(folder / "resumed") == kept
    _, values, _, _ = evaluate_checkpoint(make_run(keys))
    np.testing.assert_allclose(values["loss"], kept[-1], rtol=1e-6)
    # A student is a model like any other: it needs its teacher no more.
    shutil.move(folder / "run", tmp_path / "away")
    try:
        export(folder / "resumed", tmp_path / "exported")
    finally:
        shutil.move(tmp_path / "away", folder / "run")
    assert (tmp_path / "exported" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_teacher_that_changed_is_not_gone_on_with(folder):
    shutil.copytree(folder / "run", folder / "moved")
    keys = keys_of(folder, "changed", {"teacher": str(folder / "moved")}, steps=1)
    run_training(keys)
    with pytest.raises(UserError, match=r"task\.teacher '.*moved' -> '.*run'"):
        run_training(keys_of(folder, "changed", steps=1))
    (folder / "moved" / "checkpoints" / "2").rename(folder / "moved" / "checkpoints" / "3")
    with pytest.raises(UserError, match=r"holds a run with other settings: teacher \(its content\)"):
        run_training(keys)


@pytest.mark.slow
def test_a_teacher_in_the_hugging_face_format_and_a_student_with_factors(folder, expected):
    export(folder / "run", folder / "hf")
    keys = keys_of(folder, "from_hf", {"teacher": str(folder / "hf")}, steps=1)
    run_training(keys)
    np.testing.assert_allclose(losses(folder / "from_hf")[0], expected[0], rtol=1e-5)
    lora = {**keys_of(folder, "lora", steps=3, save_every=1, keep_last=9), "lora": {"rank": 2}}
    lora["model"] = {"pretrained": str(folder / "from_hf"), "dropout": 0.0}
    run_training(lora)
    kept = losses(folder / "lora")
    assert kept[0] < losses(folder / "from_hf")[0]
    assert set(read_trained(folder / "lora")) == {"factors", "whole"}
    shutil.rmtree(folder / "lora" / "checkpoints" / "3")
    run_training(lora)
    assert losses(folder / "lora") == kept
    assert set(load_run(folder / "lora").params) == set(load_run(folder / "from_hf").params)


def test_teachers_of_other_tokens_are_refused(folder):
    with pytest.raises(UserError, match=r"whose tokenizer is not the student's \(.* there '.*'\), expected the same"):
        make_run({**keys_of(folder), "tokenizer": {"type": "bpe", "vocab_size": 300}})
    with pytest.raises(
        UserError, match=r"a gpt2 \(decoder\), and the student a bert \(encoder\), expected models of one"
    ):
        make_run(keys_of(folder, model={"type": "bert"}))
    with pytest.raises(UserError, match=r"model\.vocab_size is 300 and that of teacher is .* 257, expected at most"):
        make_run(keys_of(folder, model={"vocab_size": 300}))
    with pytest.raises(UserError, match=r"sequence_length is 32 and task\.teacher is .*, which reads 16 tokens"):
        make_run(keys_of(folder, model={"max_length": 32}))
    with pytest.raises(UserError, match=r"task\.teacher is .*, which has no config\.yaml; expected the output_dir"):
        (folder / "empty").mkdir()
        make_run(keys_of(folder, task={"teacher": str(folder / "empty")}))


@pytest.mark.slow
def test_a_teacher_that_cannot_read_the_targets_is_refused(tmp_path):
    keys = tiny_keys(tmp_path, steps=1)
    keys["model"] = {**keys["model"], "type": "t5", "dropout": 0.0}
    run_training({**keys, "task": {"type": "span_corruption"}})
    del keys["tokenizer"]
    student = {"output_dir": str(tmp_path / "student"), "model": {**keys["model"], "max_length": 64}}
    student["training"] = {**keys["training"], "sequence_length": 16}
    for of, target in (
        ({"target_length": 17}, 17),
        ({"rate": 0.8, "mean_span": 8.0}, 48),
        ({"target_length": 16}, None),
    ):
        task = {"type": "distillation", "teacher": str(tmp_path / "run"), "of": {"type": "span_corruption", **of}}
        if target is None:
            assert make_run({**keys, **student, "task": task}).teacher.config.max_length == 16
            continue
        said = (
            rf"may have {target} tokens and task\.teacher is .*, which reads 16, expected at most as many; set task\.of"
        )
        with pytest.raises(UserError, match=said):
            make_run({**keys, **student, "task": task})


@pytest.mark.slow
def test_a_classifier_is_no_teacher(folder):
    rows = folder / "rows.jsonl"
    rows.write_text('{"text": "the cat", "label": "a"}\n{"text": "it ran", "label": "b"}\n' * 8)
    keys = {**tiny_keys(folder, steps=1), "output_dir": str(folder / "classifier")}
    data = {"path": str(rows), "validation_fraction": 0}
    run_training(keys | {"task": {"type": "sequence_classification"}, "data": data})
    student = make_run(
        {
            **keys_of(folder, task={"teacher": str(folder / "classifier")}),
            "tokenizer": {"type": "file"} | file_of(folder),
        }
    )
    with pytest.raises(UserError, match="which has classifier/kernel and is a classifier, expected a model that was"):
        start_state(student)


def file_of(folder):
    return {"path": str(folder / "run" / "tokenizer.json")}
