"""What a page shows is what the pipeline answers; needs no gradio."""

import itertools
import re
import sys

import numpy as np
import pytest

import jaxformer
from jaxformer.cli import run
from jaxformer.demo import answers as A
from jaxformer.demo.panels import panel_of
from jaxformer.schema import UserError
from tests.demo.models import TEXT, opened
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    made = {}

    def get(task):
        if task not in made:
            made[task] = opened(tmp_path_factory.mktemp(task), task)
        return made[task]

    return get


def test_every_label_has_its_score(pipe):
    classify = pipe("text-classification")
    alone, paired = A.classified(classify, TEXT), A.classified(classify, TEXT, "rain fell")
    assert alone.keys() == set(tiny.LABELS["classes"]) and sum(alone.values()) == pytest.approx(1, abs=1e-5)
    best = classify(TEXT)[0]
    assert alone[best["label"]] == pytest.approx(best["score"], abs=1e-6)
    best = classify({"text": TEXT, "text_pair": "rain fell"})
    assert paired[best["label"]] == pytest.approx(best["score"], abs=1e-6)
    assert panel_of(classify).answer is A.classified
    assert A.measured(classify, TEXT)[0] == [next(iter(alone)), pytest.approx(max(alone.values()), abs=1e-4)]


def test_a_regression_has_numbers_in_place_of_probabilities(tmp_path):
    tiny.save(tmp_path, "number", problem_type="regression")
    pipe = jaxformer.pipeline(model=str(tmp_path))
    score = pipe(TEXT)[0]["score"]
    assert panel_of(pipe).answer(pipe, TEXT) == [["LABEL_0", pytest.approx(score, abs=1e-4)]]
    assert abs(score) > 0.01 and score == pytest.approx(pipe(TEXT, function_to_apply="none")[0]["score"])


def test_a_text_that_is_too_long_is_refused_unless_asked_for(pipe, tmp_path):
    with pytest.raises(UserError, match=r"a text has 3\d\d tokens, expected at most 32"):
        A.classified(pipe("text-classification"), TEXT * 30)
    cut = opened(tmp_path / "cut", "text-classification", truncation=True)
    with pytest.warns(match="was truncated to"):
        A.classified(cut, TEXT * 30)


def test_entities_stand_where_the_text_has_them(pipe):
    tag = pipe("token-classification")
    parts, rows = A.entities(tag, TEXT)
    found = tag(TEXT, aggregation_strategy="simple")
    assert "".join(part for part, _ in parts) == TEXT and len(found) > 1
    expected = [(TEXT[e["start"] : e["end"]], e["entity_group"]) for e in found]
    assert [(part, label) for part, label in parts if label] == expected
    assert [(row[0], row[1]) for row in rows] == expected
    assert [row[2] for row in rows] == pytest.approx([e["score"] for e in found], abs=1e-4)


def test_of_marks_that_overlap_the_first_counts():
    assert A.marked("in Oslo now", [("B", 5, 9), ("A", 3, 7)]) == [("in ", None), ("Oslo", "A"), (" now", None)]
    assert A.marked("Oslo", [("A", 0, 4)]) == [("Oslo", "A")]
    assert A.marked("", []) == []


def test_the_best_answer_is_marked(pipe):
    ask, question = pipe("question-answering"), "who said it?"
    parts, rows = A.answered(ask, TEXT, question)
    best = ask({"question": question, "context": TEXT})
    assert "".join(part for part, _ in parts) == TEXT
    assert [part for part, label in parts if label] == [best["answer"]] == [TEXT[best["start"] : best["end"]]]
    assert rows[0] == [best["answer"], pytest.approx(best["score"], abs=1e-4)]
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)


def test_masks_are_filled(pipe):
    fill = pipe("fill-mask")
    one, two = "the old [MASK] stood.", "the [MASK] mill [MASK]."
    assert A.unmasked(fill, one) == {answer["sequence"]: answer["score"] for answer in fill(one)}
    found = A.unmasked(fill, two)
    for number, mask in enumerate(fill(two), 1):
        assert {found[f"{number}: {answer['token_str']}"] for answer in mask} == {answer["score"] for answer in mask}
    with pytest.raises(UserError, match=r"no \[MASK\]"):
        A.unmasked(fill, "the mill")


def test_classes_are_judged_together_or_by_themselves(pipe):
    judge = pipe("zero-shot-classification")
    together, alone = (A.judged(judge, TEXT, "rain, river, Ann", several) for several in (False, True))
    assert sum(together.values()) == pytest.approx(1, abs=1e-5)
    expected = judge(TEXT, ["rain", "river", "Ann"], multi_label=True)
    assert alone == dict(zip(expected["labels"], expected["scores"], strict=True))
    assert sum(alone.values()) != pytest.approx(1, abs=1e-2)


def test_features_are_compared_as_the_mean_of_their_states(pipe):
    features = pipe("feature-extraction")
    rows = A.compared(A.as_similarity(features), "rain fell", "the old mill\n\n bad \n")
    vectors = {text: features(text, pooling="mean", normalize=True) for text in ("rain fell", "the old mill", "bad")}
    cosines = {text: float(np.dot(vectors["rain fell"], vectors[text])) for text in ("the old mill", "bad")}
    expected = [[text, pytest.approx(cosines[text], abs=1e-4)] for text in sorted(cosines, key=lambda t: -cosines[t])]
    assert rows == expected


def test_texts_are_ranked(pipe):
    rank = pipe("text-ranking")
    found = rank("rain fell", ["the old mill", "bad"])
    rows = A.ranked(rank, "rain fell", "the old mill\n\n bad \n")
    assert rows == [[answer["text"], pytest.approx(answer["score"], abs=1e-4)] for answer in found]


def test_the_text_grows_to_what_the_pipeline_writes(pipe):
    write = pipe("text-generation")
    settings = {"temperature": 0.9, "top_p": 0.95, "most": 24, "seed": 3}
    seen = list(A.written(write, "the old mill ", *settings.values()))
    drawn = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "max_new_tokens": 24, "seed": 3}
    assert seen[-1] == write("the old mill ", **drawn)[0]["generated_text"]
    assert len(set(seen)) > 10 and all(b.startswith(a) for a, b in itertools.pairwise(seen))
    greedy = list(A.written(write, "the old mill ", 0, 0.95, 24, 3))[-1]
    assert greedy == write("the old mill ", do_sample=False, max_new_tokens=24)[0]["generated_text"] != seen[-1]


def test_a_reply_follows_the_conversation(tmp_path):
    talk = opened(tmp_path / "chat", "text-generation", chat=True)
    history = [
        {"role": "user", "content": [{"type": "text", "text": "rain?"}]},
        {"role": "assistant", "content": "river"},
    ]
    found = list(A.replied(talk, "why", history, 0.8, 1.0, 12, 1))[-1]
    said = [{"role": "user", "content": "rain?"}, {"role": "assistant", "content": "river"}]
    drawn = {"temperature": 0.8, "top_p": 1.0, "max_new_tokens": 12, "seed": 1}
    expected = talk([*said, {"role": "user", "content": "why"}], **drawn)[0]["generated_text"]
    assert expected[-1] == {"role": "assistant", "content": found} and len(expected) == 4
    assert found != list(A.replied(talk, "why", [], 0.8, 1.0, 12, 1))[-1]


@pytest.mark.slow
def test_a_summary_is_the_pipelines(pipe):
    rewrite = pipe("summarization")
    assert A.rewritten(rewrite, TEXT, 2, 10) == rewrite(TEXT, num_beams=2, max_new_tokens=10)[0]["summary_text"]


@pytest.mark.parametrize(
    ("task", "values", "said"),
    [
        ("text-classification", (" ",), "the text is empty"),
        ("token-classification", ("",), "the text is empty"),
        ("question-answering", (TEXT, ""), "the question is empty"),
        ("zero-shot-classification", (TEXT, "", False), "no candidate_labels"),
        ("feature-extraction", (TEXT, "\n"), "the list of sentences is empty"),
    ],
)
def test_what_is_missing_is_said(pipe, task, values, said):
    function = {
        "text-classification": A.classified,
        "token-classification": A.entities,
        "question-answering": A.answered,
        "zero-shot-classification": A.judged,
        "feature-extraction": lambda pipe, *values: A.compared(A.as_similarity(pipe), *values),
    }[task]
    with pytest.raises(UserError, match=said):
        function(pipe(task), *values)


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("demo", ["--model", "anything"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r'error: gradio is not installed.*; pip install "jaxformer\[demo\]"\n', said)
