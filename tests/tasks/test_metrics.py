"""Each metric by hand on a few examples."""

import sys

import numpy as np
import pytest
from seqeval.metrics import f1_score
from seqeval.scheme import BILOU, IOBES

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
    assert metrics.tagging([["DET"]], [["NOUN"]]) == ({"accuracy": 0.0}, {})
    found, notes = metrics.tagging(tags, ours)
    assert not notes
    assert found["accuracy"] == 4 / 6
    np.testing.assert_allclose([found[f"entity_{n}"] for n in ("precision", "recall", "f1")], [2 / 4, 2 / 3, 4 / 7])


ENTITIES = [("B", "I", "E", "S"), ("B", "I", "L", "U"), ("B", "M", "E", "S"), ("B", "M", "E", "W")]


@pytest.mark.parametrize("letters", ENTITIES)
def test_marked_ends_are_scored_strictly(letters):
    b, i, e, s = (f"{letter}-A" for letter in letters)
    tags = [[b, i, e, "O", s], [b, e, "O", "O", "O"]]
    ours = [[b, i, i, "O", s], [b, b, "O", "O", "O"]]
    # Right: the single one; predicted: the single one, since the others do not end; there are three.
    found, notes = metrics.tagging(tags, ours, [b, i, e, s, "O"])
    assert [found[f"entity_{n}"] for n in ("precision", "recall", "f1")] == [1, 1 / 3, 1 / 2]
    assert notes["entities"].endswith("strictly")
    # The beginnings alone were an F1 of 1 as conlleval delimits them.
    assert metrics.tagging([[b, "O"]], [[b, "O"]], [b, i, e, s, "O"])[0]["entity_f1"] == 0


@pytest.mark.parametrize("letters", ENTITIES[:2])
def test_marked_ends_as_in_seqeval(letters):
    scheme = IOBES if "E" in letters else BILOU
    labels = ["O", *(f"{letter}-{kind}" for letter in letters for kind in "AB")]
    random = np.random.default_rng(0)
    for _ in range(100):
        tags = random.choice(labels, (4, 8))
        ours = np.where(random.random((4, 8)) < 0.7, tags, random.choice(labels, (4, 8)))
        expected = f1_score(tags.tolist(), ours.tolist(), mode="strict", scheme=scheme, zero_division=0)
        assert metrics.tagging(tags.tolist(), ours.tolist(), labels)[0]["entity_f1"] == pytest.approx(expected)


@pytest.mark.parametrize("spelling", ["{0}-{1}", "{0}_{1}", "{1}-{0}", "{1}_{0}", "{0}"])
@pytest.mark.parametrize("lower", [False, True])
def test_other_spellings_have_entities(spelling, lower):
    def write(tags):
        found = [spelling.format(*tag.split("-")) if tag != "O" else "O" for tag in tags]
        return [tag.lower() for tag in found] if lower else found

    tags, ours = ["B-PER", "I-PER", "O", "B-PER"], ["B-PER", "O", "O", "B-PER"]
    found, notes = metrics.tagging([write(tags)], [write(ours)], write(["O", "B-PER", "I-PER"]))
    assert (found["entity_precision"], found["entity_recall"], notes) == (1 / 2, 1 / 2, {})


def test_single_entities_alone():
    found, _ = metrics.tagging([["U-A", "O", "U-B"]], [["U-A", "U-A", "O"]])
    assert [found[f"entity_{n}"] for n in ("precision", "recall")] == [1 / 2, 1 / 2]


@pytest.mark.parametrize(
    ("tags", "note"),
    [
        (["PER", "O"], "no entity metrics: 'PER' is not written as in a scheme (B-X, I-X; X-B; B)"),
        (["B-A", "E-A", "L-A"], "no entity metrics: the letters B, E, L of the tags mix schemes"),
    ],
)
def test_why_there_are_no_entities(tags, note):
    assert metrics.tagging([tags], [tags]) == ({"accuracy": 1}, {"entities": note})


def test_a_tag_of_no_scheme_is_in_no_entity():
    found, notes = metrics.tagging([["B-A", "X"]], [["B-A", "O"]])
    assert found["entity_f1"] == 1 and notes == {"entities": "of no entity: X"}


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
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r'sacrebleu is needed .* not installed: pip install "jaxformer\[metrics\]"'):
        metrics.bleu(["a"], ["a"])


def test_what_becomes_of_entities_by_hand():
    tags = ["B-A", "I-A", "O", "B-B", "O", "B-A", "O", "B-B", "O"]
    ours = ["B-A", "I-A", "O", "B-A", "O", "B-A", "I-A", "O", "B-B"]
    found = metrics.entity_errors([tags], [ours])
    assert found == {"A": {"correct": 1, "wrong ends": 1}, "B": {"wrong kind": 1, "missed": 1, "invented": 1}}
    assert metrics.entity_errors([["NN", "VB"]], [["NN", "NN"]]) is None


@pytest.mark.parametrize("ours", [["B-A", "E-A", "S-B"], ["B-A", "I-A", "S-B"], ["S-A", "O", "O"], ["O", "E-A", "S-A"]])
def test_correct_entities_are_those_of_the_recall(ours):
    """Also in a scheme with marked ends, whose entities must be whole."""
    tags = ["B-A", "E-A", "S-B"]
    found = metrics.entity_errors([tags], [ours])
    recall = metrics.tagging([tags], [ours])[0]["entity_recall"]
    assert sum(errors.get("correct", 0) for errors in found.values()) == round(2 * recall)


def test_reliability_bins_by_hand():
    found = metrics.reliability(np.array([0.05, 0.62, 0.68, 1.0]), np.array([False, True, False, True]))
    assert found["accuracy"] == [0.0, 0.5, 1.0] and found["count"] == [1, 2, 1]
    assert found["confidence"] == pytest.approx([0.05, 0.65, 1.0])
