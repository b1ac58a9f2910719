import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from jaxformer.schema import UserError
from jaxformer.tasks import EmbeddingConfig, build_task
from tests.tasks.tiny import CLS, FRAMED, PAD, SEP, bytes_of, config_of, random_params

PAIRS = [
    {"text": "ab", "positive": "abc", "no": "x"},
    {"text": "cd", "positive": "c", "no": ["y", "abcdefgh"]},
    {"text": "ab", "positive": "z", "no": None},
    {"text": "e", "positive": "c", "no": "e"},
]
SCORED = [{"a": "ab", "b": "abc", "score": 5}, {"a": "cd", "b": "c", "score": "1.5"}, {"a": "e", "b": "f", "score": 0}]
SCORES = {"text_column": "a", "text_pair_column": "b", "label_column": "score", "label_range": (0, 5)}


def make(length=8, kind="bert", **settings):
    config = config_of(kind)
    task = build_task(EmbeddingConfig(**settings), FRAMED, config, length)
    model = task.model(config)
    return task, model, random_params(model)


def sums_of(task, model, params, data, size):
    batch = jax.tree.map(jnp.asarray, task.rows(data).take(np.arange(size)))

    @jax.jit
    def both(params):
        return task.loss(model, params, batch, None), task.vectors(model, params, batch, None)

    sums, vectors = both(params)
    return sums, np.asarray(vectors, np.float64), batch


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_inputs_by_hand():
    task, _, _ = make(negatives_column="no", query_prompt="q")
    batch = task.rows(PAIRS).take(np.arange(5))
    assert batch["input_ids"].shape == (5, 4, 8)
    assert batch["input_ids"][1, 0].tolist() == [CLS, *bytes_of("qcd"), SEP, PAD, PAD, PAD]
    assert batch["input_ids"][1, 3].tolist() == [CLS, *bytes_of("abcdef"), SEP]
    assert batch["attention_mask"].sum(-1).tolist() == [[5, 5, 3, 0], [5, 3, 3, 8], [5, 3, 0, 0], [4, 3, 3, 0], [0] * 4]
    assert batch["text_numbers"][:, :2].tolist() == [[0, 1], [3, 4], [0, 7], [8, 4], [-1, -1]]
    assert batch["text_numbers"][3].tolist() == [8, 4, 8, -1]  # its prompt does not make the query another text


def test_vectors_are_those_of_each_text_alone():
    task, model, params = make(negatives_column="no")
    _, vectors, _ = sums_of(task, model, params, PAIRS, 5)
    ids = jnp.array([[CLS, *bytes_of("abc"), SEP]])
    np.testing.assert_allclose(vectors[0, 1], jax.jit(model.apply)({"params": params}, ids).embedding[0], atol=1e-5)
    assert not vectors[4].any() and not vectors[2, 2:].any()


def test_ranking_by_hand():
    task, model, params = make(negatives_column="no")
    sums, v, _ = sums_of(task, model, params, PAIRS, 6)
    texts = [(row, place) for row in range(4) for place in range(1, 4)]
    # Not for row 0: z, which belongs to the same query; for rows 1 and 3: the other's c, which is their own; for row 3:
    # its "negative", which is the query itself.
    allowed = {
        0: [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (3, 1), (3, 2)],
        1: [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (2, 1), (3, 2)],
        2: [(0, 2), (1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2)],
        3: [(0, 1), (0, 2), (1, 2), (1, 3), (2, 1), (3, 1)],
    }
    assert all(set(places) <= set(texts) for places in allowed.values())
    expected = 0.0
    for row, places in allowed.items():
        scores = np.array([20 * unit(v[row, 0]) @ unit(v[place]) for place in places])
        expected += np.log(np.exp(scores).sum()) - scores[places.index((row, 1))]
    np.testing.assert_allclose(sums.objective, expected, rtol=1e-4)
    assert sums.weight == 4 and sums.metrics.keys() == {"loss", "accuracy"}


def test_symmetric_and_matryoshka_by_hand():
    data = [{"text": a, "positive": b} for a, b in (("ab", "cd"), ("e", "f"), ("gh", "ijk"))]
    task, model, params = make(symmetric=True, matryoshka=[4], scale=5.0, normalize=False)
    sums, v, _ = sums_of(task, model, params, data, 4)

    def loss(size):
        scores = 5 * unit(v[:3, 0, :size]) @ unit(v[:3, 1, :size]).T
        both = [np.log(np.exp(s).sum(-1)) - np.diag(s) for s in (scores, scores.T)]
        return np.sum(both) / 2

    np.testing.assert_allclose(sums.metrics["loss"], loss(8), rtol=1e-4)
    np.testing.assert_allclose(sums.objective, loss(8) + loss(4), rtol=1e-4)


@pytest.mark.parametrize("loss", ["cosine", "cosent"])
def test_losses_of_labels_by_hand(loss):
    task, model, params = make(**SCORES, loss=loss, pooling="last", dense_size=6, kind="gpt2")
    sums, v, batch = sums_of(task, model, params, SCORED, 4)
    assert v.shape == (4, 2, 6)
    cosines, labels = (unit(v[:3, 0]) * unit(v[:3, 1])).sum(-1), np.array([1.0, 0.3, 0.0])
    cost = np.sum((cosines - labels) ** 2)
    if loss == "cosent":
        cost = 3 * np.log(1 + sum(np.exp(20 * (cosines[j] - cosines[i])) for i, j in ((0, 1), (0, 2), (1, 2))))
    np.testing.assert_allclose(sums.objective, cost, rtol=1e-4)
    np.testing.assert_allclose(
        jax.jit(lambda p: task.predict(model, p, batch))(params)["cosines"][:3, 0], cosines, rtol=1e-4
    )
    assert task.joint == (loss == "cosent")


def test_report_of_labels():
    task, _, _ = make(**SCORES, matryoshka=[4])
    report = task.report(SCORED, {"cosines": np.array([[0.9, 0.1], [0.4, 0.2], [0.1, 0.3]])})
    assert report.metrics.keys() == {"spearman", "pearson", "spearman_4", "pearson_4"}
    np.testing.assert_allclose([report.metrics["spearman"], report.metrics["spearman_4"]], [1, -1])
    assert report.predictions[1] == {"a": "cd", "b": "c", "label": 0.3, "cosine": 0.4}


def test_report_of_pairs():
    task, _, _ = make()
    data = [{"text": t, "positive": p} for t, p in (("a", "b"), ("c", "d"), ("e", "d"))]
    # The second query is nearer to the first document than to its own, the third to the copy of its own.
    queries = np.array([[1.0, 0], [0.9, 0.1], [0, 1]])
    documents = np.array([[1.0, 0], [0.5, 0.5], [0.4, 0.6]])
    report = task.report(data, {"vectors": np.stack([queries, documents], axis=1)})
    assert [p["rank"] for p in report.predictions] == [1, 2, 1]
    np.testing.assert_allclose(report.metrics["mrr"], (1 + 1 / 2 + 1) / 3)
    np.testing.assert_allclose([report.metrics["accuracy"], report.metrics["recall_10"]], [2 / 3, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_column": "a", "negatives_column": "b"}, "label_column and negatives_column are given"),
        ({"loss": "cosine"}, "loss is cosine and label_column None, expected ranking without labels"),
        ({"loss": "ranking", "label_column": "a"}, "loss is ranking and label_column a"),
        ({"label_column": "a", "symmetric": True}, "symmetric is true and loss cosine"),
        ({"label_range": (1, 1)}, "expected the least label before the greatest"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValidationError, match=message):
        EmbeddingConfig(**settings)


def test_bad_rows():
    task, _, _ = make(**SCORES)
    rows = task.rows([*SCORED, {"a": "x", "b": "y", "score": None}])
    assert rows.num_rows == 3 and len(rows.left_out) == 1
    with pytest.raises(UserError, match=r"holds 7, expected a number from 0 to 5; fix it, or set task.label_range"):
        task.rows([{"a": "x", "b": "y", "score": 7}])
    with pytest.raises(UserError, match=r"column 'no' \(task.negatives_column\) is 3, expected a list of texts"):
        make(negatives_column="no")[0].rows([{"text": "x", "positive": "y", "no": 3}])
