"""Decomposed text (NFD) under tokenizers that compose it, whose answers are those of the composed text."""

import unicodedata
from functools import partial

import pytest
from tokenizers import normalizers

import jaxformer
from tests.pipelines import tiny

COMPOSED = "한국의 각 뷁 café ǭ"
TEXT = unicodedata.normalize("NFD", COMPOSED)
composed = partial(unicodedata.normalize, "NFC")


def opened(folder, what, family="roberta", normalizer=None, **options):
    pipe = jaxformer.pipeline(model=str(tiny.save(folder, what, family)), **options)
    pipe.tokenizer.backend_tokenizer.normalizer = normalizer or normalizers.NFC()
    return pipe


@pytest.mark.parametrize("stride", [None, 4])
@pytest.mark.parametrize("strategy", ["none", "simple", "first"])
def test_entities_end_with_whole_characters(tmp_path, strategy, stride):
    pipe = opened(tmp_path, "tags", aggregation_strategy=strategy, ignore_labels=[], stride=stride)
    for times in (1, 12):  # 12: several windows
        text, decomposed = (" ".join([text] * times) for text in (COMPOSED, TEXT))
        expected, found = pipe(text), pipe(decomposed)
        assert [composed(decomposed[one["start"] : one["end"]]) for one in found] == [
            text[one["start"] : one["end"]] for one in expected
        ]
        assert [one["score"] for one in found] == [one["score"] for one in expected]
        assert found[-1]["end"] == len(decomposed)


def test_entities_of_words_end_with_whole_characters(tmp_path):
    pipe = opened(tmp_path, "tags", aggregation_strategy="simple", ignore_labels=[], is_split_into_words=True)
    [found], [expected] = pipe(TEXT.split()), pipe(COMPOSED.split())
    assert [composed(TEXT[one["start"] : one["end"]]) for one in found] == [
        COMPOSED[one["start"] : one["end"]] for one in expected
    ]


def test_an_unknown_word_is_whole_where_accents_are_removed(tmp_path):
    pipe = opened(tmp_path, "tags", "bert", normalizers.BertNormalizer(strip_accents=True), ignore_labels=[])
    words = ["hills", "Ⅷé", "said"]
    text = unicodedata.normalize("NFD", " ".join(words))
    found = [entity for entity in pipe(text) if text[entity["start"] : entity["end"]] == "Ⅷe\u0301"]
    assert [entity["word"] for entity in found] == ["Ⅷe\u0301"]


@pytest.mark.parametrize("align", [True, False])
def test_answers_end_with_whole_characters(tmp_path, align):
    pipe = opened(tmp_path, "spans", align_to_words=align, top_k=300)
    found, expected = ([*pipe({"question": "what?", "context": text})] for text in (TEXT, COMPOSED))
    assert len(found) > 5
    assert [composed(answer["answer"]) for answer in found] == [answer["answer"] for answer in expected]
    assert all(answer["answer"] == TEXT[answer["start"] : answer["end"]] for answer in found)
    assert max(answer["end"] for answer in found) == len(TEXT)
