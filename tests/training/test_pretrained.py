import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxformer.schema import UserError
from jaxformer.training.evaluation import evaluate_checkpoint
from jaxformer.training.loop import StopRequest, Trainer
from jaxformer.training.pretrained import read_params
from jaxformer.training.transfer import transfer
from tests.training.helpers import make_run, quiet, run_training, tiny_keys


def write_labelled(folder, rows=64):
    """Texts of two kinds of word, and which: a task that a few steps learn."""
    path = folder / "labelled.jsonl"
    draw = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            label = int(draw.integers(2))
            words = draw.choice([["cat", "dog"], ["mat", "hat"]][label], 3)
            file.write(json.dumps({"text": " ".join(words), "label": ["animal", "thing"][label]}) + "\n")
    return path


def pretraining_keys(folder):
    keys = tiny_keys(folder, steps=3)
    keys["model"] |= {"type": "bert", "dropout": 0.0, "attention_dropout": 0.0}
    return keys


def labelled_keys(folder, pretrained=None, **training):
    keys = tiny_keys(folder, **{"steps": 30, "log_every": 10, **training})
    keys["output_dir"] = str(folder / "fine")
    model = {"pretrained": str(pretrained)} if pretrained else {**keys["model"], "type": "bert"}
    keys["data"] |= {"path": str(write_labelled(folder)), "validation_fraction": 0.25}
    keys["task"] = {"type": "sequence_classification"}
    if pretrained:
        del keys["tokenizer"]
    return keys | {"model": model}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return run_training(pretraining_keys(folder)).folder


def test_the_body_is_taken_and_the_head_is_new(pretrained, tmp_path):
    display = quiet()
    run = make_run(labelled_keys(tmp_path, pretrained))
    assert (run.config.model.type, run.config.model.hidden_size) == ("bert", 16)
    trainer = Trainer(run, display, StopRequest())
    before = read_params(pretrained)
    after = flatten_dict(trainer.state.params, sep="/")
    for name, array in after.items():
        if not name.startswith(("classifier", "pooler")):
            np.testing.assert_array_equal(array, before[name])
    trainer.close()
    said = display.console.file.getvalue()
    assert "newly initialised, train before use: classifier/bias, classifier/kernel, pooler/dense/bias" in said
    assert "left there: mlm_head/bias, mlm_head/dense/bias" in said


def test_fine_tuning_learns_and_writes_predictions_and_a_picture(pretrained, tmp_path):
    result = run_training(labelled_keys(tmp_path, pretrained))
    assert result.report.metrics["accuracy"] == 1.0
    lines = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == result.report.confusion.sum()
    assert all(line["label"] == line["predicted"] for line in lines)
    assert (result.folder / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["accuracy"] == 1.0 and records[-1]["examples"] == len(lines)


@pytest.mark.slow
def test_a_run_goes_on_when_what_it_started_from_is_gone(pretrained, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in pretrained.iterdir():
        (source / path.name).symlink_to(path)
    keys = labelled_keys(tmp_path, source, steps=2)
    folder = run_training(keys).folder
    config = (folder / "config.yaml").read_text()
    assert f"pretrained: {source}" in config
    # The sizes stand in the run's own configuration now.
    from jaxformer.training.config import read_yaml
    from jaxformer.training.sources import resolve_config

    resumed = read_yaml(folder / "config.yaml")
    resumed["model"].pop("pretrained")
    resumed["training"]["steps"] = 3
    for path in source.iterdir():
        path.unlink()
    assert run_training(resolve_config(resumed, "the test")).step == 3


@pytest.mark.slow
def test_other_data_can_be_evaluated(tmp_path):
    keys = labelled_keys(tmp_path)
    result = run_training(keys)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "cat cat dog", "label": "animal"}\n{"text": "dog dog", "label": "thing"}\n')
    keys["data"] |= {"validation_path": str(other)}
    # The whole of the file is then there to train on; only what is validated may differ from the run.
    step, values, weight, report = evaluate_checkpoint(make_run(keys))
    assert (step, weight) == (30, 2)
    assert report.metrics["accuracy"] == 0.5
    np.testing.assert_array_equal(report.confusion, [[1, 0], [1, 0]])
    assert values["loss"] > result.loss


def test_evaluating_needs_a_trained_run_and_data(tmp_path):
    keys = labelled_keys(tmp_path)
    with pytest.raises(UserError, match="has no checkpoints, expected a trained run; train it first"):
        evaluate_checkpoint(make_run(keys))
    keys["data"]["validation_fraction"] = 0
    with pytest.raises(UserError, match=r"there is no validation data: set data\.validation_path"):
        evaluate_checkpoint(make_run(keys))


def test_a_vocabulary_that_grew_keeps_its_rows():
    old = {"embeddings/token/embedding": np.ones((3, 2), np.float32), "mlm_head/bias": np.ones(3, np.float32)}
    new = {"embeddings": {"token": {"embedding": jax.numpy.zeros((5, 2))}}, "mlm_head": {"bias": jax.numpy.zeros(4)}}
    params, done = transfer(new, old)
    np.testing.assert_array_equal(params["embeddings"]["token"]["embedding"], [[1, 1]] * 3 + [[0, 0]] * 2)
    np.testing.assert_array_equal(params["mlm_head"]["bias"], [1, 1, 1, 0])
    assert done.grown == done.taken == ["embeddings/token/embedding", "mlm_head/bias"]


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ({"norm/scale": np.ones(4)}, r"norm/scale of model\.pretrained is \[4\], expected \[3\]; leave out the model"),
        ({"other": np.ones(3)}, r"no parameter of model\.pretrained has a place in this model"),
    ],
)
def test_what_does_not_fit_is_refused(old, message):
    with pytest.raises(UserError, match=message):
        transfer({"norm": {"scale": jax.numpy.ones(3)}}, old)


def test_a_folder_without_a_run_and_another_type_are_named(pretrained, tmp_path):
    with pytest.raises(UserError, match=r"model\.pretrained is .*, which has no config\.yaml; expected the output_dir"):
        make_run(labelled_keys(tmp_path, tmp_path))
    keys = labelled_keys(tmp_path, pretrained)
    keys["model"]["type"] = "roberta"
    with pytest.raises(UserError, match=r"model\.type is 'roberta' and model\.pretrained a 'bert', expected the same"):
        make_run(keys)


@pytest.mark.parametrize(
    "task",
    ["token_classification", "seq2seq", "question_answering", "multiple_choice"],
)
@pytest.mark.slow
def test_every_supervised_task_trains_from_records(task, tmp_path):
    """Two steps and a report, on a body of the architecture it is for."""
    rows = {
        "token_classification": {"words": ["cat", "sat"], "tags": ["B-A", "O"]},
        "question_answering": {"question": "who", "context": "a cat sat", "answers": [{"text": "cat", "start": 2}]},
        "multiple_choice": {"question": "who", "choices": ["cat", "mat"], "label": 0},
        "seq2seq": {"source": "a cat", "target": "cat a"},
    }
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(rows[task]) + "\n" for _ in range(8)), encoding="utf-8")
    keys = tiny_keys(tmp_path, steps=2)
    keys["model"] |= {"type": "t5" if task == "seq2seq" else "bert", "max_length": 24}
    keys["data"] |= {"path": str(path), "validation_path": str(path)}
    extra = {"question_answering": {"stride": 2, "max_question_tokens": 4}, "seq2seq": {"target_length": 8}}
    keys["task"] = {"type": task, **extra.get(task, {})}
    report = run_training(keys).report
    assert len(report.predictions) == 8
    assert all(np.isfinite(value) for value in report.metrics.values())
