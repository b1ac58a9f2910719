import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.tasks import RankingConfig, build_task, metrics
from tests.tasks.tiny import CLS, FRAMED, SEP, bytes_of, config_of, random_params

LISTS = [
    {"text": "ab", "positive": "c", "no": ["d", "ef"]},
    {"text": "g", "positive": "h", "no": "i"},
    {"text": "j", "positive": "k", "no": None},
]
PAIRS = [{"text": t, "positive": p, "y": y} for t, p, y in (("a", "b", 1), ("a", "c", 0), ("d", "e", 0.25))]


def run(data, size, kind="bert", **settings):
    task = build_task(RankingConfig(**settings), FRAMED, config_of(kind), 8)
    model = task.model(config_of(kind, pad_token_id=257))
    params, batch = random_params(model), jax.tree.map(jnp.asarray, task.rows(data).take(np.arange(size)))

    @jax.jit
    def both(params):
        return task.loss(model, params, batch, None), task.predict(model, params, batch)["logits"]

    return task, batch, *both(params)


def test_listwise_by_hand():
    task, batch, sums, logits = run(LISTS, 4, negatives_column="no")
    assert batch["input_ids"][0, 2, :7].tolist() == [CLS, *bytes_of("ab"), SEP, *bytes_of("ef"), SEP]
    assert batch["token_type_ids"][0, 2].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    x = np.asarray(logits, np.float64)
    # A single text is right for sure.
    expected = np.log(np.exp(x[0]).sum()) - x[0, 0] + np.log(np.exp(x[1, :2]).sum()) - x[1, 0]
    np.testing.assert_allclose(sums.objective, expected, rtol=1e-5)
    assert sums.weight == 3
    report = task.report(LISTS, {"logits": np.array([[1.0, 2, 0], [3, 1, -1e30], [0, -1e30, -1e30]])})
    np.testing.assert_allclose(report.metrics["mrr"], (1 / 2 + 1) / 2)
    assert report.predictions[1]["scores"] == [0.952574, 0.731059]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.default_cases("bert")
def test_binary_by_hand(kind):
    _, _, sums, logits = run(PAIRS, 4, kind, label_column="y")
    p, y = 1 / (1 + np.exp(-np.asarray(logits[:3, 0], np.float64))), np.array([1, 0, 0.25])
    np.testing.assert_allclose(sums.objective, -np.sum(y * np.log(p) + (1 - y) * np.log(1 - p)), rtol=1e-5)
    assert sums.weight == 3


def test_negatives_as_pairs_of_label_0():
    _, _, sums, logits = run(LISTS, 4, negatives_column="no", loss="binary")
    x, real = np.asarray(logits, np.float64)[:3], np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], bool)
    signs = np.where(np.arange(3) == 0, -1, 1) * np.where(real, x, 0)
    np.testing.assert_allclose(sums.objective, np.sum(np.log1p(np.exp(signs)) * real), rtol=1e-5)
    assert sums.weight == 6


def test_reports_of_labels():
    task = build_task(RankingConfig(label_column="y"), FRAMED, config_of("bert"), 8)
    graded = task.report(PAIRS, {"logits": np.array([[2.0], [0], [1]])})
    np.testing.assert_allclose(graded.metrics["spearman"], 1)
    yes_no = task.report(PAIRS[:2], {"logits": np.array([[2.0], [3]])})
    np.testing.assert_allclose(yes_no.metrics["mrr"], 1 / 2)
    assert yes_no.predictions[0] == {"text": "a", "positive": "b", "label": 1.0, "score": 0.880797}


def test_metrics_of_rankings_by_hand():
    right, scores = np.array([0, 1, 0, 1, 0], bool), np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    found = metrics.ranking([(right, scores), (np.array([True]), np.array([1.0]))])
    np.testing.assert_allclose(found["mrr"], 1 / 2)
    np.testing.assert_allclose(found["average_precision"], (1 / 2 + 2 / 4) / 2)
    gains = 1 / np.log2(np.arange(5) + 2)
    np.testing.assert_allclose(found["ndcg"], (gains[1] + gains[3]) / (gains[0] + gains[1]))
    assert metrics.ranking([(~right, np.zeros(5))])["mrr"] == 1 / 3, "equal scores stand in the worst order"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "are missing, expected one of them"), ({"label_column": "y", "loss": "listwise"}, "without task.negatives")],
)
def test_nothing_to_learn_from(settings, message):
    with pytest.raises(ValueError, match=message):
        RankingConfig(**settings).check_run(None)
