import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer.data.formats import Row
from jaxformer.schema import UserError
from jaxformer.tasks import SequenceClassification, SequenceClassificationConfig
from tests.tasks.tiny import CLS, FRAMED, PAD, SEP, TOKENIZER, Scores

DATA = [
    {"text": "ab", "label": "x"},
    {"text": "c", "label": "y"},
    {"text": "abcdefgh", "label": "x"},
    {"text": "d", "label": "x"},
]


def make(records=DATA, length=6, **settings):
    return SequenceClassification(SequenceClassificationConfig(**settings), FRAMED, length, train_records=records)


def batch_of(task, records, rows):
    return jax.tree.map(jnp.asarray, task.rows(records).take(np.arange(rows)))


def run(task, batch, size):
    model = Scores(size, True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    params = model.init(jax.random.key(0), **inputs)["params"]
    return model, params, np.asarray(model.apply({"params": params}, **inputs).logits, np.float64)


def test_inputs_by_hand():
    task = make()
    batch = batch_of(task, DATA, 5)
    assert batch["input_ids"][0:3:2].tolist() == [[CLS, 97, 98, SEP, PAD, PAD], [CLS, 97, 98, 99, 100, SEP]]
    assert batch["attention_mask"].sum(axis=1).tolist() == [4, 3, 6, 3, 0]
    assert batch["labels"].tolist() == [0, 1, 0, 0, -100]
    assert task.labels == ("x", "y")
    assert task.config.texts(DATA[0]) == ["ab"]


def test_pairs():
    task = make([{"a": "p", "b": "qr", "label": 1}], 6, text_column="a", text_pair_column="b", labels=["0", "1"])
    batch = batch_of(task, task.train_records, 1)
    assert batch["input_ids"].tolist() == [[CLS, 112, SEP, 113, 114, SEP]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]
    assert batch["labels"].tolist() == [1]


def test_loss_is_that_of_torch_with_class_weights():
    task = make(class_weights={"x": 0.5, "y": 2.0}, label_smoothing=0.1)
    batch = batch_of(task, DATA, 6)
    model, params, logits = run(task, batch, 2)
    sums = jax.jit(lambda p, b: task.loss(model, p, b, None))(params, batch)
    log_p = logits[:4] - np.log(np.exp(logits[:4]).sum(-1, keepdims=True))
    w = np.array([0.5, 2.0])
    nll = [-w[y] * log_p[i, y] for i, y in enumerate([0, 1, 0, 0])]
    np.testing.assert_allclose(sums.metrics["loss"], np.sum(nll), rtol=1e-5)
    np.testing.assert_allclose(sums.objective, 0.9 * np.sum(nll) - 0.1 * np.sum(w * log_p) / 2, rtol=1e-5)
    assert sums.weight == 0.5 * 3 + 2.0
    np.testing.assert_allclose(sums.metrics["objective"], sums.objective)


def test_balanced_weights():
    # x three times, y once: 4 / (2 * 3) and 4 / (2 * 1)
    np.testing.assert_allclose(make(class_weights="balanced").class_weights, [2 / 3, 2], rtol=1e-6)
    with pytest.raises(UserError, match="'balanced' but no training record has the label 'z'"):
        _ = make(class_weights="balanced", labels=["x", "y", "z"]).class_weights


def test_several_labels_are_binary_cross_entropies():
    data = [{"text": "a", "label": ["p", "q"]}, {"text": "b", "label": []}, {"text": "c", "label": ["q"]}]
    task = make(data, problem="multi_label")
    batch = batch_of(task, data, 4)
    assert batch["labels"].tolist() == [[1, 1], [0, 0], [0, 1], [-100, -100]]
    model, params, logits = run(task, batch, 2)
    sums = task.loss(model, params, batch, None)
    expected = optax.sigmoid_binary_cross_entropy(jnp.asarray(logits[:3]), jnp.asarray(batch["labels"][:3])).sum()
    np.testing.assert_allclose(sums.objective, expected, rtol=1e-5)
    assert sums.weight == 6
    report = task.report(data, {"scores": np.array([[0.9, 0.8], [0.1, 0.6], [0.2, 0.7]])})
    # True positives 3, false positives 1, none missed: F1 6/7; of p 1, of q 4/5.
    np.testing.assert_allclose(report.metrics["f1_micro"], 6 / 7)
    np.testing.assert_allclose(report.metrics["f1_macro"], (1 + 4 / 5) / 2)
    np.testing.assert_allclose(report.metrics["accuracy"], 2 / 3)
    assert report.predictions[1] == {
        "text": "b",
        "label": [],
        "predicted": ["q"],
        "probabilities": {"p": 0.1, "q": 0.6},
    }


def test_regression():
    data = [{"text": "a", "label": 1}, {"text": "b", "label": "2.5"}, {"text": "c", "label": 4.0}]
    task = make(data, problem="regression")
    batch = batch_of(task, data, 4)
    model, params, logits = run(task, batch, 1)
    sums = task.loss(model, params, batch, None)
    np.testing.assert_allclose(sums.objective, np.sum((logits[:3, 0] - [1, 2.5, 4]) ** 2), rtol=1e-5)
    assert sums.weight == 3
    assert not np.isnan(sums.objective)
    report = task.report(data, {"scores": np.array([[1.0], [2.0], [3.0]])})
    np.testing.assert_allclose(report.metrics["mse"], (0.25 + 1) / 3)
    np.testing.assert_allclose([report.metrics["pearson"], report.metrics["spearman"]], 1)
    assert report.predictions[1] == {"text": "b", "label": 2.5, "predicted": 2.0}


def test_report_by_hand():
    task = make()
    batch = batch_of(task, DATA, 4)
    model, params, logits = run(task, batch, 2)
    scores = np.asarray(task.predict(model, params, batch)["scores"])
    np.testing.assert_allclose(scores, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-5)
    report = task.report(DATA, {"scores": np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4]])})
    assert report.metrics["accuracy"] == 0.75
    # F1 of x 4/5, of y 2/3; (2*1 - 0*1) / sqrt(2 * 3 * 1 * 2) by the formula of Matthews.
    np.testing.assert_allclose(report.metrics["f1_macro"], (4 / 5 + 2 / 3) / 2)
    np.testing.assert_allclose(report.metrics["mcc"], 2 / np.sqrt(12))
    assert report.confusion.tolist() == [[2, 1], [0, 1]]
    assert report.labels == ("x", "y")
    assert report.predictions[2] == {
        "text": "abcdefgh",
        "label": "x",
        "predicted": "y",
        "probabilities": {"x": 0.2, "y": 0.8},
    }


@pytest.mark.parametrize(
    ("settings", "records", "message"),
    [
        ({}, DATA[:1], r"labels \['x'\], expected at least two classes"),
        ({"class_weights": {"x": 1.0}}, DATA, r"class_weights has the labels \['x'\], expected \['x', 'y'\]"),
        ({"problem": "regression", "label_smoothing": 0.1}, DATA, r"without class_weights and label_smoothing"),
        ({"problem": "regression", "labels": ["x"]}, DATA, r"but task.labels is \['x'\]: leave it out"),
        ({"problem": "multi_label"}, DATA, r"is 'x', expected a list of labels"),
    ],
)
def test_what_is_refused(settings, records, message):
    with pytest.raises(UserError, match=message):
        _ = make(records, **settings).labels, make(records, **settings).class_weights


def test_labels_that_validation_brings_are_refused():
    with pytest.raises(UserError, match=r"label 'new' is not one of x, y: add it to task.labels"):
        make().rows([{"text": "a", "label": "new"}])
    with pytest.raises(UserError, match="holds 'many', expected a number"):
        make(problem="regression").rows([{"text": "a", "label": "many"}])
    with pytest.raises(UserError, match="the sequence length is 2, expected at least 3"):
        make(length=2)


NAN = float("nan")


def test_missing_labels_are_left_out_and_said(caplog):
    data = [*DATA, *({"text": "e", "label": label} for label in ("", " ", None, NAN, "nan", np.float32(NAN)))]
    task = make(data)
    assert task.labels == ("x", "y")
    rows = task.rows(data)
    assert rows.num_rows == 4 and rows.records == DATA and len(rows.left_out) == 6
    assert "skipped 2 of 10 rows: column 'label' (task.label_column) holds no label but nan (" in caplog.text
    assert "skipped 1 of 10 rows: column 'label' (task.label_column) holds no label but null" in caplog.text
    with pytest.raises(UserError, match=r"holds no label but ''; fix the row, or set task\.bad_rows to report"):
        make(data, bad_rows="error").rows(data)
    with pytest.raises(UserError, match="none of the 6 rows can be used"):
        task.rows(data[4:])
    np.testing.assert_allclose(make(data, class_weights="balanced").class_weights, [2 / 3, 2], rtol=1e-6)
    assert task.report(rows.records, {"scores": np.eye(2)[[0, 1, 0, 0]]}).metrics["accuracy"] == 1


def test_a_label_that_is_named_is_not_missing():
    # "nan" is the code of Min Nan Chinese.
    data = [{"text": "a", "label": "nan"}, {"text": "b", "label": ""}, {"text": "c", "label": "ko"}]
    task = make(data, labels=["ko", "nan"])
    assert task.rows(data).take(np.arange(2))["labels"].tolist() == [1, 0]


def test_missing_among_several_labels_and_numbers():
    data = [{"text": "a", "label": ["p"]}, {"text": "b", "label": None}, {"text": "c", "label": ["q", None]}]
    task = make([*data, {"text": "d", "label": []}], problem="multi_label")
    assert task.labels == ("p",) and [r["text"] for r in task.rows(task.train_records).records] == ["a", "d"]
    data = [{"text": "a", "label": 0.5}, {"text": "b", "label": NAN}, {"text": "c", "label": ""}]
    rows = make(data, problem="regression").rows(data)
    assert rows.take(np.arange(1))["labels"].tolist() == [0.5] and len(rows.left_out) == 2


@pytest.mark.parametrize("pair", [False, True])
def test_a_text_without_tokens_is_named_where_nothing_is_put_around_it(pair, caplog):
    columns = {"text_pair_column": "b"} if pair else {}
    data = [
        Row({"text": text, "b": "", "label": label}, text, f"a, line {text}")
        for text, label in zip("01", "xy", strict=True)
    ]
    data[1]["text"] = ""
    config = SequenceClassificationConfig(labels=["x", "y"], **columns)
    rows = SequenceClassification(config, TOKENIZER, 6).rows(data)
    reason = "the text has no tokens, and the tokenizer puts none around it"
    assert rows.left_out == [("a, line 1", reason)] and rows.num_rows == 1 and reason in caplog.text
    with pytest.raises(UserError, match=f"a, line 1: {reason}; fix the row"):
        SequenceClassification(config.model_copy(update={"bad_rows": "error"}), TOKENIZER, 6).rows(data)
    # In a frame, as a run gives one, the row is read.
    assert SequenceClassification(config, FRAMED, 6).rows(data).take(np.arange(2))["attention_mask"][1].sum() > 1
