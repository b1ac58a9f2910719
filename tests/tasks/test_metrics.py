"""Each metric by hand on a few examples."""

import numpy as np
import pytest

from jaxformer.schema import UserError
from jaxformer.tasks import metrics


def test_classification():
    # Class 0: TP 1, FP 1, FN 0; class 1: TP 1, FP 0, FN 1; class 2 nowhere.
    found = metrics.classification(np.array([0, 1, 1]), np.array([0, 1, 0]), 3)
    assert found == {"accuracy": 2 / 3, "f1_macro": pytest.approx(2 / 3), "mcc": pytest.approx(0.5)}


def test_regression():
    found = metrics.regression(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 9.0]))
    # Deviations (-4, -1, 5)/3 and (-10, -4, 14)/3: 114 / sqrt(42 * 312).
    np.testing.assert_allclose(found["pearson"], 114 / np.sqrt(42 * 312))
    assert found["spearman"] == pytest.approx(1)
    assert found["mse"] == 26 / 3
    assert metrics.regression(np.array([1.0, 2.0]), np.array([3.0, 3.0]))["pearson"] == 0


def test_entities_are_right_with_type_and_both_ends():
    tags = [["B-A", "I-A", "O", "B-B"], ["B-A", "O"]]
    ours = [["B-A", "O", "O", "B-B"], ["B-A", "B-B"]]
    # Right: one B-B, one B-A; predicted four; there are three.
    assert metrics.tagging([["DET"]], [["NOUN"]]) == {"accuracy": 0.0}
    found = metrics.tagging(tags, ours)
    assert found["accuracy"] == 4 / 6
    np.testing.assert_allclose([found[f"entity_{n}"] for n in ("precision", "recall", "f1")], [2 / 4, 2 / 3, 4 / 7])


@pytest.mark.parametrize(
    ("predicted", "answers", "expected"),
    [
        ("the Broncos!", ["Broncos"], (1, 1)),
        ("Denver Broncos", ["Broncos", "Denver Nuggets of"], (0, 2 / 3)),
        ("a a b", ["a b b"], (0, 2 / 3)),  # articles go, then b against b b: 2 / 3
        ("", [], (1, 1)),
        ("x", [], (0, 0)),
        ("", ["x"], (0, 0)),
        ("서울 특별시", ["서울"], (0, 2 / 3)),
        ("x", ["!"], (0, 0)),  # an answer of punctuation is none
    ],
)
def test_answers_as_in_squad(predicted, answers, expected):
    assert metrics.answer_scores(predicted, answers) == pytest.approx(expected)


def test_bleu_and_chrf():
    same = ["the quick brown fox jumps"]
    score, signature = metrics.bleu(same, same)
    assert score == pytest.approx(100)
    assert "tok:13a" in signature
    # Precisions 4/5, 3/4, 2/3, 1/2 of 1- to 4-grams and no brevity penalty.
    score, _ = metrics.bleu(["the quick brown fox leaps"], same)
    assert score == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert metrics.chrf(same, same)[0] == pytest.approx(100)
    assert "tok:char" in metrics.bleu(same, same, "char")[1]


def test_rouge_knows_every_script():
    # Two of three words, no pair, longest common subsequence 2.
    found = metrics.rouge(["나는 학교에 간다"], ["나는 집에 간다"])
    assert found == pytest.approx({"rouge1": 2 / 3, "rouge2": 0, "rougeL": 2 / 3})
    assert metrics.rouge(["The cat sat."], ["the cat ran"])["rouge2"] == pytest.approx(1 / 2)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(metrics, "import_module", fail)
    with pytest.raises(UserError, match=r'sacrebleu is needed .* not installed: pip install "jaxformer\[metrics\]"'):
        metrics.bleu(["a"], ["a"])
