"""From the Hugging Face format into training, and from a run back into it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxformer
from jaxformer.cost.dry_run import plan
from jaxformer.hub.kinds import build
from jaxformer.schema import UserError
from jaxformer.tokenizers import encode, special_id
from jaxformer.training.evaluation import evaluate_checkpoint
from jaxformer.training.export import export, load_run
from jaxformer.training.loop import StopRequest, Trainer
from jaxformer.training.sources import resolve_config
from tests.training.helpers import make_run, quiet, run_training, tiny_keys
from tests.training.test_pretrained import labelled_keys, pretraining_keys

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_bert(folder, kind="masked_lm", labels=(), spare_rows=3):
    """A tiny BERT with the vocabulary of the labelled texts, as others publish it."""
    vocabulary = [*SPECIAL, "cat", "dog", "mat", "hat", *"abcdehmotgn"]
    sizes = {"hidden_size": 16, "num_heads": 2, "num_layers": 2, "max_length": 32, "dropout": 0.0}
    keys = {"type": "bert", **sizes, "attention_dropout": 0.0, "vocab_size": len(vocabulary) + spare_rows}
    model = build(resolve_config({"model": keys}, "a test").model, kind, num_labels=len(labels) or 2, labels=labels)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    import flax.linen as nn

    jaxformer.save_pretrained(folder, model, nn.unbox(params))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


def fine_tuning_keys(folder, source, **training):
    keys = labelled_keys(folder, source, **training)
    return {**keys, "training": keys["training"] | {"sequence_length": 16}}


@pytest.mark.slow
def test_a_published_body_is_fine_tuned(tmp_path):
    source = write_bert(tmp_path / "bert")
    run = make_run(fine_tuning_keys(tmp_path, source))
    assert run.config.model.vocab_size == 23, "spare rows of the table stay"
    assert encode(run.tokenizer, "cat dog") == [5, 6] and special_id(run.tokenizer, "cls") == 2
    trainer = Trainer(run, quiet(), StopRequest())
    _, read = jaxformer.AutoModelForMaskedLM.from_pretrained(source)
    before, after = (flatten_dict(tree, sep="/") for tree in (read, trainer.state.params))
    assert after.keys() - before.keys() == {
        f"{n}/{p}" for n in ("classifier", "pooler/dense") for p in ("kernel", "bias")
    }
    for name in after.keys() & before.keys():
        np.testing.assert_array_equal(after[name], before[name])
    trainer.train()
    trainer.close()
    assert evaluate_checkpoint(run)[3].metrics["accuracy"] > 0.9


@pytest.mark.slow
def test_a_head_of_the_same_classes_comes_along_and_of_others_does_not(tmp_path):
    labels = ("animal", "thing")
    for number, (names, kept) in enumerate([(labels, True), (labels[::-1], False), ((), True)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        source = write_bert(folder / "bert", "sequence_classification", names)
        trainer = Trainer(make_run(fine_tuning_keys(folder, source)), quiet(), StopRequest())
        _, read = jaxformer.AutoModelForSequenceClassification.from_pretrained(source)
        same = np.array_equal(trainer.state.params["classifier"]["kernel"], read["classifier"]["kernel"])
        assert same is kept
        trainer.close()


@pytest.mark.slow
def test_the_plan_needs_no_weights(tmp_path):
    source = write_bert(tmp_path / "bert")
    (source / "model.safetensors").unlink()
    run = make_run(fine_tuning_keys(tmp_path, source))
    assert "bert" in plan(run)["model"]
    with pytest.raises(UserError, match="has no weights, expected model"):
        Trainer(run, quiet(), StopRequest())


def test_what_does_not_go_with_it_is_refused(tmp_path):
    source = write_bert(tmp_path / "bert")
    keys = fine_tuning_keys(tmp_path, source)
    with pytest.raises(UserError, match=r"model\.type is 'gpt2' and model\.pretrained a 'bert', expected the same"):
        make_run(keys | {"model": {**keys["model"], "type": "gpt2"}})
    with pytest.raises(UserError, match="is neither a folder nor a name on the Hub"):
        make_run(keys | {"model": {"pretrained": str(tmp_path / "no/such/folder")}})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    body = run_training(pretraining_keys(folder)).folder
    return run_training(labelled_keys(folder, body)).folder


def test_a_run_is_exported_and_opened(classifier, tmp_path):
    assert export(classifier, tmp_path / "out") == [str(tmp_path / "out")]
    model, params = jaxformer.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = jaxformer.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.labels == ("animal", "thing")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["problem_type"] == "single_label_classification"
    predictions = [json.loads(line) for line in (classifier / "predictions.jsonl").read_text().splitlines()]
    batch = tokenizer([row["text"] for row in predictions], padding=True)
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    logits = model.apply({"params": params}, **batch).logits
    expected = [[row["probabilities"][name] for name in model.labels] for row in predictions]
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-5)
    assert (
        f"| accuracy | {load_run(classifier).metrics['accuracy']:.4g} |" in (tmp_path / "out" / "README.md").read_text()
    )


def test_a_language_model_is_exported_with_its_end_of_text(tmp_path):
    folder = run_training(tiny_keys(tmp_path, steps=2)).folder
    export(folder, tmp_path / "out", dtype="bfloat16")
    model, _ = jaxformer.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = jaxformer.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token_id == model.config.eos_token_id == load_run(folder).model.config.eos_token_id
    assert tokenizer("abc").input_ids == load_run(folder).tokenizer("abc").input_ids


def test_export_of_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.yaml; expected the output_dir of a run"):
        export(tmp_path, tmp_path / "out")


def test_questions_start_from_a_published_body(tmp_path):
    """A task without classes of its own."""
    source = write_bert(tmp_path / "bert")
    path = tmp_path / "questions.jsonl"
    answers = [{"text": "dog", "answer_start": 4}]
    row = {"id": "1", "question": "cat?", "context": "cat dog mat", "answers": answers}
    path.write_text("\n".join(json.dumps(row | {"id": str(i)}) for i in range(16)))
    keys = fine_tuning_keys(tmp_path, source)
    keys["data"] |= {"path": str(path)}
    keys["task"] = {"type": "question_answering", "stride": 2, "max_question_tokens": 4}
    trainer = Trainer(make_run(keys), quiet(), StopRequest())
    assert "span_classifier" in trainer.state.params
    trainer.close()


def test_a_run_is_a_pipeline(classifier):
    """What the run predicted of its validation texts at its end is what its folder predicts."""
    rows = [json.loads(line) for line in (classifier / "predictions.jsonl").read_text().splitlines()]
    pipe = jaxformer.pipeline(model=classifier)
    assert pipe.task == "text-classification" and len(rows) > 4
    for row, found in zip(rows, pipe([row["text"] for row in rows], top_k=None), strict=True):
        assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(row["probabilities"], abs=1e-4)
    with pytest.raises(UserError, match=r"has no trained head token_classification: its head is sequence_class"):
        jaxformer.pipeline("ner", model=classifier)
    assert np.shape(jaxformer.pipeline("feature-extraction", model=classifier)("cat", pooling="mean")) == (16,)


@pytest.mark.parametrize("dense", [{}, {"dense_size": 5}])
@pytest.mark.slow
def test_a_sentence_encoder_is_a_pipeline_as_a_run_as_a_folder_and_trained_further(dense, tmp_path):
    source = write_bert(tmp_path / "bert", "body")
    rows = [{"text": "cat dog"[: 3 + n % 5], "positive": "mat hat"[n % 4 :], "y": n % 3} for n in range(24)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    keys = fine_tuning_keys(tmp_path, source, steps=2)
    keys["data"] |= {"path": str(path)}
    keys["task"] = {"type": "embedding", "label_column": "y", "label_range": [0, 2], "query_prompt": "cat ", **dense}
    keys["task"] |= {"document_prompt": "cat "}
    run = run_training(keys).folder
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    out = export(run, tmp_path / "out")[0]
    assert json.loads((tmp_path / "out" / "sentence_bert_config.json").read_text())["max_seq_length"] == 16
    for opened in (run, out):
        pipe = jaxformer.pipeline("sentence-similarity", opened)
        for row in predictions:
            found = pipe(row["text"], [row["positive"]], prompt_name="query")
            np.testing.assert_allclose(found, [row["cosine"]], atol=1e-4)
        assert np.shape(jaxformer.pipeline(model=opened)("cat")) == (dense.get("dense_size", 16),)
    keys |= {"output_dir": str(tmp_path / "further"), "model": {"pretrained": out}}
    further = Trainer(make_run(keys), quiet(), StopRequest())
    before = flatten_dict(load_run(run).params, sep="/")
    for name, array in flatten_dict(further.state.params, sep="/").items():
        np.testing.assert_array_equal(array, before[name])
    further.close()


@pytest.mark.slow
def test_factors_beside_a_sentence_encoder_train_as_in_the_whole_batch(tmp_path):
    source = write_bert(tmp_path / "bert", "body")
    rows = [{"text": "cat dog"[: 3 + n % 5], "positive": "mat hat"[n % 4 :] + "cat" * (n % 3)} for n in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = []
    for parts in (1, 4):
        keys = fine_tuning_keys(tmp_path, source, steps=3, batch_size=32, accumulate=parts)
        keys["data"] |= {"path": str(path)}
        keys |= {"task": {"type": "embedding", "dense_size": 5}, "output_dir": str(tmp_path / f"run{parts}")}
        keys |= {"lora": {"rank": 2, "dropout": 0.3, "also_train": ["dense_layers_0/*"]}}
        run = run_training(keys | {"optimizer": {"type": "sgd", "learning_rate": 0.1}}).folder
        found.append(flatten_dict(load_run(run).params, sep="/"))
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, atol=1e-5, err_msg=name)
    assert not np.allclose(found[0]["dense_layers_0/kernel"], 0)
