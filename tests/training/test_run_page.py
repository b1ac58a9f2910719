"""The page that a run writes: its contents are those of the run, and it goes on with the run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.training.config import differing
from jaxformer.training.row_preview import passages, pieces
from jaxformer.training.run_page import CONTENTS, PAGE, read_contents
from tests.training.helpers import make_run, quiet, run_training, tiny_keys


def keys_with_page(tmp_path, **training):
    keys = tiny_keys(tmp_path, **{"steps": 4, "eval_every": 2, "save_every": 2, "batch_size": 8, **training})
    return {**keys, "logging": {"tensorboard": False}, "sample": {"max_new_tokens": 5, "prompt": "a"}}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run with a page, and what it was at the end."""
    folder = tmp_path_factory.mktemp("page")
    result = run_training(keys_with_page(folder))
    return folder, result, read_contents(result.folder), (result.folder / PAGE).read_text(encoding="utf-8")


def test_a_run_writes_its_page(first):
    _, result, contents, html = first
    assert "finished at step 4 of 4" in html and "validation" in html
    assert {answer.step for answer in contents.answers} == {2, 4} and contents.losses_step == 4
    assert contents.answers[-1].values["text"] == result.sample
    assert contents.facts["model"].startswith("gpt2, ") and "begun" in contents.facts
    assert contents.differing["training.steps"] == [4, 1000] and "seed" not in contents.differing
    assert any(piece.trained for row in contents.examples for passage in row.passages for piece in passage.pieces)


def test_the_losses_of_tokens_are_those_of_the_model(first):
    """The mean over the tokens of rows is the loss that the objective itself gives these rows."""
    folder, result, _, _ = first
    run = make_run(keys_with_page(folder))
    from jaxformer.data.loader import evaluation_batches
    from jaxformer.training.export import load_run

    params = jax.tree.map(jnp.asarray, load_run(result.folder).params)
    batch = next(evaluation_batches(run.validation_rows, 4, 0, run.task.features))
    losses = np.asarray(run.task.label_losses(run.model, params, {k: jnp.asarray(v) for k, v in batch.items()}))
    total = run.task.loss(run.model, params, {k: jnp.asarray(v) for k, v in batch.items()}, None)
    assert float(total.metrics["loss"]) == pytest.approx(losses.sum(), rel=1e-5)
    shown = 0.0
    for row in range(4):
        found = passages(run, {**{name: array[row] for name, array in batch.items()}, "label_losses": losses[row]})
        for passage in found:
            for text, trained, loss in pieces(passage, run.tokenizer):
                assert text and (loss is None or trained)
                shown += loss or 0.0
    assert shown == pytest.approx(losses.sum(), rel=1e-4)


@pytest.mark.slow
def test_a_longer_run_says_what_changed(first):
    folder, result, before, _ = first
    display = quiet()
    keys = keys_with_page(folder, steps=6)
    run_training(keys, display)
    contents = read_contents(result.folder)
    assert [(c.step, c.key, c.before, c.after) for c in contents.changes] == [(4, "training.steps", 4, 6)]
    assert {answer.step for answer in contents.answers} == {2, 4, 6} and contents.facts["begun"] == before.facts[
        "begun"
    ]
    said = display.console.file.getvalue()
    assert "the learning rate at step 4 jumps from" in said and "schedule.type cosine spans all training.steps" in said


@pytest.mark.parametrize("schedule", ["constant", "inverse_sqrt"])
@pytest.mark.slow
def test_schedules_that_go_on_without_a_jump(tmp_path, schedule):
    keys = {**tiny_keys(tmp_path, steps=2), "schedule": {"type": schedule, "warmup_steps": 1}}
    run_training(keys)
    display = quiet()
    run_training({**keys, "training": {**keys["training"], "steps": 3}}, display)
    assert "jumps" not in display.console.file.getvalue()


@pytest.mark.slow
def test_a_page_that_cannot_be_written_does_not_end_a_run(tmp_path, monkeypatch):
    from jaxformer.training import run_page

    def broken(*_):
        raise RuntimeError("no page today")

    monkeypatch.setattr(run_page.pages, "run_page", broken)
    display = quiet()
    result = run_training(keys_with_page(tmp_path, eval_every=4), display)
    assert result.step == 4 and "was not written (RuntimeError: no page today)" in display.console.file.getvalue()


def test_contents_of_another_version_are_begun_anew(tmp_path):
    (tmp_path / CONTENTS).write_text(json.dumps({"unknown": 1}))
    assert read_contents(tmp_path).facts == {}


def test_without_a_page(tmp_path):
    result = run_training(tiny_keys(tmp_path))
    assert not (result.folder / PAGE).exists()


def test_values_that_are_the_family_s_own_are_no_difference(tmp_path):
    keys = tiny_keys(tmp_path)
    run = make_run({**keys, "model": {**keys["model"], "type": "llama"}})
    found = differing(run.config)
    assert "model.norm" not in found and found["model.hidden_size"][0] == 16
