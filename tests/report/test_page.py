"""The page of a run: what it shows, that it is one file, and that text cannot become markup."""

import re

import numpy as np
import pytest

from jaxformer import report
from jaxformer.report.contents import MOST_ANSWERS, Reliability
from jaxformer.report.figures import curve_keys, points

RECORDS = [
    {"step": 1, "split": "train", "loss": 3.0, "learning_rate": 0.1, "gradient_norm": 1.0, "trained_tokens": 10},
    {"step": 2, "split": "train", "loss": None, "learning_rate": 0.1, "gradient_norm": 2.0, "trained_tokens": 10},
    {"step": 2, "split": "eval", "loss": 2.5, "accuracy": 0.5, "tokens": 7},
]


def page(**contents):
    return report.run_page("a <b>", "training", RECORDS, report.Contents.model_validate(contents), "seed: 0\n")


def body(html):
    """The page without its scripts and styles."""
    return re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)


def test_it_is_one_file_that_asks_for_nothing():
    html = page()
    assert len(html) < 3_000_000
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?!data:)", html)
    assert "bokeh" in html


def test_text_is_text():
    piece = {"text": "<script>alert(1)</script>", "loss": 2.0}
    html = page(
        losses=[{"passages": [{"title": "<i>", "pieces": [piece]}]}],
        losses_step=2,
        answers=[{"step": 2, "values": {"text": "</div><img src=x>"}}],
        facts={"command": "<b>"},
    )
    assert "alert(1)</script>" not in html and "&lt;script&gt;alert(1)" in html
    assert "<img" not in html and "<h1>a &lt;b&gt;</h1>" in html


def test_the_curves_in_their_order():
    assert curve_keys({"a": RECORDS}) == ["loss", "accuracy", "learning_rate", "gradient_norm"]
    train = points(RECORDS, "train", "loss")
    assert train["step"] == [1, 2] and np.array_equal(train["value"], [3.0, np.nan], equal_nan=True)
    assert points(RECORDS, "eval", "accuracy")["value"] == [0.5]


def test_the_loss_of_a_policy_s_evaluation_is_no_curve():
    records = [{"step": 1, "split": "eval", "loss": -0.5, "score": 0.5}, {"step": 1, "split": "train", "loss": 0.1}]
    assert points(records, "eval", "loss")["value"] == [] and points(records, "eval", "score")["value"] == [0.5]
    html = body(report.run_page("a", "training", records, report.Contents(), ""))
    assert "best validation loss" not in html and "0.5000" in html


def test_a_loss_has_its_colour_and_its_number():
    pieces = [{"text": "sure", "loss": 0.0}, {"text": "unsure", "loss": 8.0}, {"text": "given"}]
    html = body(page(losses=[{"passages": [{"title": "text", "pieces": pieces}]}], losses_step=2))
    assert '<i class="l0" title="0.000 nats">sure</i><i class="l16" title="8.000 nats">unsure</i>given</div>' in html


def test_trained_tokens_are_marked():
    pieces = [{"text": "question"}, {"text": "answer", "trained": True, "loss": 1.0}]
    html = body(page(examples=[{"passages": [{"title": "text", "pieces": pieces, "note": "a note"}]}]))
    assert 'question<i class="t">answer</i></div>' in html and "<p>a note</p>" in html


def test_answers_stand_under_what_does_not_change():
    answers = [
        {"step": step, "example": 0, "values": {"prompt": "1+1=", "response": str(step), "score": step}}
        for step in (10, 20)
    ]
    html = body(page(answers=answers))
    assert html.count("1+1=") == 1
    assert html.index("step 20") < html.index("1 earlier") < html.index("step 10")
    assert "<tr><th>prompt</th><td>1+1=</td></tr>" in html


def test_many_answers_are_thinned_and_the_last_stays():
    contents = report.Contents()
    for step in range(1, 101):
        contents = contents.with_answers([report.Answer(step=step, values={"text": "a"})])
    steps = [answer.step for answer in contents.answers]
    assert len(steps) <= MOST_ANSWERS and steps == sorted(steps) and steps[0] == 1 and steps[-1] == 100


def test_steps_that_are_done_again_are_forgotten():
    contents = report.Contents(
        answers=[report.Answer(step=step, values={"text": "a"}) for step in (1, 2, 3)],
        changes=[report.Change(step=step, key="training.steps", before=1, after=2) for step in (2, 3)],
    ).until(2)
    assert [a.step for a in contents.answers] == [1, 2] and [c.step for c in contents.changes] == [2]


def test_configuration_that_differs_and_that_changed():
    html = body(
        page(
            differing={"training.steps": [600, 1000], "data.path": ["a.txt", None]},
            changes=[{"step": 300, "key": "training.steps", "before": 400, "after": 600}],
        )
    )
    assert "<td><code>training.steps</code></td><td>600</td>" in html
    assert "<td>300</td><td><code>training.steps</code></td><td>400</td><td>600</td>" in html
    assert '<td class="quiet">null</td>' in html and "seed: 0" in html


PICTURES = {
    "confusion": {"labels": ["좋음", "나쁨"], "confusion": [[3, 1], [0, 4]]},
    "reliability": {"reliability": {"confidence": [0.6, 0.9], "accuracy": [0.5, 1.0], "count": [2, 2]}},
    "entities": {"entities": {"PER": {"correct": 3, "missed": 1}}},
    "scores": {"scores": [0.0, 1.0, 0.5]},
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_of_an_objective(name):
    html = page(pictures={"step": 2, **PICTURES[name]})
    assert 'id="evaluation"' in html
    drawn = {"confusion": "uc88b", "reliability": "expected calibration error 0.100", "entities": "wrong ends"}
    assert drawn.get(name, "rewards of the last evaluation") in html


def test_the_calibration_error_by_hand():
    found = Reliability(confidence=[0.6, 0.9], accuracy=[0.5, 1.0], count=[1, 3])
    assert found.error == pytest.approx((0.1 + 3 * 0.1) / 4)


def test_runs_beside_each_other():
    other = [{**record, "loss": 1.0} for record in RECORDS]
    rows = [{"run": "first", "step": "2"}, {"run": "second", "step": "2"}]
    html = report.comparison_page({"first": RECORDS, "second": other}, rows, {"seed": {"first": 0, "second": 1}})
    text = body(html)
    assert "<td><code>seed</code></td><td>0</td><td>1</td>" in text and "<h1>2 runs</h1>" in text
    assert html.count("second, validation") >= 1
    assert "The configurations are alike." in body(report.comparison_page({"first": RECORDS}, rows[:1], {}))
