import copy
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import normalizers

from jaxformer import functional as F
from jaxformer.data.formats import Row
from jaxformer.schema import UserError
from jaxformer.tasks import QuestionAnswering, QuestionAnsweringConfig
from jaxformer.tasks.question_answering import Answer, best_spans
from jaxformer.tokenizers import TokenizerConfig, add_special_tokens, train_tokenizer
from tests.tasks.tiny import CLS, FRAMED, SEP, Scores, bytes_of


def record(context, *answers, question="q?", **more):
    """A record in the format of SQuAD; the answers stand where they are first found."""
    starts = [context.index(answer) for answer in answers]
    return {
        "question": question,
        "context": context,
        "answers": {"text": list(answers), "answer_start": starts},
        **more,
    }


def make(data=(), length=9, tokenizer=FRAMED, **settings):
    settings = {"stride": 2, "max_question_tokens": 2, **settings}
    return QuestionAnswering(QuestionAnsweringConfig(**settings), tokenizer, length, train_records=data)


LONG = record("abcdefghij", "ef", id="x7")


def test_windows_by_hand():
    task = make()
    windows = task.windows([LONG])
    # Room for four tokens beside [CLS], the question and two [SEP]; neighbours share two.
    parts = ["abcd", "cdef", "efgh", "ghij"]
    assert [w.inputs["input_ids"].tolist() for w in windows] == [
        [CLS, *bytes_of("q?"), SEP, *bytes_of(part), SEP] for part in parts
    ]
    assert windows[0].inputs["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    batch = task.rows([LONG]).take(np.arange(5))
    assert batch["start_positions"].tolist() == [0, 6, 4, 0, -100]
    assert batch["end_positions"].tolist() == [0, 7, 5, 0, -100]
    assert batch["context_mask"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0]
    assert not batch["context_mask"][4].any()
    assert not batch["attention_mask"][4].any()
    assert task.config.texts(LONG) == ["q?", "abcdefghij"]


def test_a_long_question_is_cut_and_a_short_one_gives_its_room_to_the_context():
    [window] = make().windows([record("abcd", question="qrstu")])
    assert window.inputs["input_ids"].tolist() == [CLS, *bytes_of("qr"), SEP, *bytes_of("abcd"), SEP]
    [window] = make().windows([record("abcde", question="q")])
    assert window.inputs["input_ids"].tolist() == [CLS, *bytes_of("q"), SEP, *bytes_of("abcde"), SEP]
    assert make().windows([record("")])[0].inputs["input_ids"].tolist() == [CLS, *bytes_of("q?"), SEP, SEP]


ANSWERS = [
    ("In 1912, the 24-yard line.", "24"),
    ("In 1912, the 24-yard line.", "In 1912"),
    ("이순신은 1545년 4월 28일 한성부 건천동에서 태어났다.", "1545년 4월 28일"),
    ("이순신은 1545년 4월 28일 한성부 건천동에서 태어났다.", "이순신"),
    ("이순신은 1545년 4월 28일 한성부 건천동에서 태어났다.", "태어났다."),
    ("A  smile 😀 and\n a café ", "😀"),
    ("A  smile 😀 and\n a café ", "café"),
]


@pytest.mark.parametrize("kind", ["byte", "bpe", "wordpiece", "unigram", "character", "word", "jamo"])
@pytest.mark.parametrize(("context", "answer"), ANSWERS)
def test_every_answer_comes_back_from_its_labels(kind, context, answer):
    # The smallest vocabularies, so that no token is longer than a character unless it is a blank and a part of one.
    config = TokenizerConfig(type=kind, vocab_size=520)
    tokenizer = add_special_tokens(train_tokenizer(config, [context]), ("pad", "cls", "sep"))
    task = make(length=200, tokenizer=tokenizer)
    [window] = task.windows([record(context, answer)])
    start, end = task.span_labels(window, [Answer(answer, context.index(answer))])
    (first, _), (_, last) = window.offsets[start - window.begin], window.offsets[end - window.begin]
    found = context[first:last]
    # A learned token may be longer than the answer: it then comes back with what the tokens hold beside it.
    assert answer in found
    if kind in ("byte", "character"):
        assert found == answer
    edges = [window.offsets[start - window.begin], window.offsets[end - window.begin]]
    assert edges[0][0] <= context.index(answer) < edges[0][1]
    assert edges[1][0] < context.index(answer) + len(answer) <= edges[1][1]


def test_unanswerable_and_blanks_around_an_answer():
    task = make(length=40)
    [window] = task.windows([record("a  b  c")])
    assert task.span_labels(window, []) == (0, 0)
    assert task.span_labels(window, [Answer(" b ", 2)]) == (window.begin + 3, window.begin + 3)


def test_loss_leaves_padding_out():
    task = make(length=12)
    data = [record("abc", "b"), record("wxyzuv", "z")]
    batch = jax.tree.map(jnp.asarray, task.rows(data).take(np.arange(3)))
    model = Scores(2, False)
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    params = model.init(jax.random.key(0), *inputs)["params"]
    scores = np.asarray(model.apply({"params": params}, *inputs).logits, np.float64)

    def nll(row, size, head, label):
        real = scores[row, :size, head]
        return np.log(np.exp(real).sum()) - real[label]

    # Eight tokens with the answer at 5, eleven with the answer at 7.
    expected = sum(nll(0, 8, h, 5) + nll(1, 11, h, 7) for h in (0, 1)) / 2
    value, gradient = jax.value_and_grad(lambda p: task.loss(model, p, batch, None).objective)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert task.loss(model, params, batch, None).weight == 2
    # d/d score of [SEP], a token that no label is at: half the probability, wherever it stands.
    probability = [
        sum(np.exp(scores[r, t, 0]) for t in (3, n - 1)) / np.exp(scores[r, :n, 0]).sum() for r, n in ((0, 8), (1, 11))
    ]
    np.testing.assert_allclose(gradient["table"][SEP, 0], sum(probability) / 2, rtol=1e-4)
    np.testing.assert_allclose(gradient["table"][257], 0, atol=1e-7)  # the pad token


def test_best_spans_equal_a_search_over_all():
    random = np.random.default_rng(0)
    starts, ends = random.normal(size=(2, 6, 9))
    allowed = random.random((6, 9)) < 0.7
    found = best_spans(jnp.asarray(starts), jnp.asarray(ends), jnp.asarray(allowed), 3)
    for row in range(6):
        spans = [(s, e) for s in range(9) for e in range(s, min(s + 3, 9)) if allowed[row, s] and allowed[row, e]]
        s, e = max(spans, key=lambda span: starts[row, span[0]] + ends[row, span[1]])
        assert (found[0][row], found[1][row]) == (s, e)
        np.testing.assert_allclose(found[2][row], starts[row, s] + ends[row, e], rtol=1e-6)


def test_predict_looks_at_the_context_only():
    task = make(length=12)
    batch = jax.tree.map(jnp.asarray, task.rows([record("abc", "b")]).take(np.arange(1)))
    table = np.zeros((259, 2), np.float32)
    table[[SEP, 257, ord("q")]] = 50  # never to be chosen
    table[CLS] = 3
    table[ord("b"), 0], table[ord("c"), 1] = 2, 4
    outputs = task.predict(Scores(2, False), {"table": table}, batch)
    assert (outputs["start"].tolist(), outputs["end"].tolist()) == ([5], [6])
    # Of the context and [CLS], a start scores 3, 0, 2 and 0, an end 3, 0, 0 and 4.
    starts, ends = (np.log(np.sum(np.exp(scores))) for scores in ([3, 0, 2, 0], [3, 0, 0, 4]))
    np.testing.assert_allclose(outputs["score"], [2 - starts + 4 - ends], rtol=1e-6)
    np.testing.assert_allclose(outputs["null"], [3 - starts + 3 - ends], rtol=1e-6)


def outputs(*rows):
    columns = zip(*rows, strict=True)
    return {name: np.array(column) for name, column in zip(("start", "end", "score", "null"), columns, strict=True)}


def test_report_takes_the_best_window_and_weighs_it_against_no_answer():
    task = make([LONG])
    data = [LONG, record("ab", question="p?")]
    # Windows abcd, cdef, efgh, ghij of the first record, one of the second.
    rows = [(4, 4, 1.0, 9.0), (6, 7, 5.0, 2.0), (5, 5, 4.0, 5.5), (4, 5, 0.0, 9.0), (4, 5, 2.0, 3.0)]
    report = task.report(data, outputs(*rows))
    assert report.predictions[0] == {
        "id": "x7",
        "question": "q?",
        "answers": ["ef"],
        "predicted": "ef",
        "exact_match": 1.0,
        "f1": 1.0,
        "null_margin": -3.0,
    }
    assert (report.predictions[1]["id"], report.predictions[1]["predicted"]) == (1, "")
    assert report.metrics == {
        "exact_match": 1.0,
        "f1": 1.0,
        "has_answer_exact_match": 1.0,
        "has_answer_f1": 1.0,
        "no_answer_accuracy": 1.0,
    }
    always = make([LONG], null_threshold=None).report(data, outputs(*rows))
    assert always.predictions[1]["predicted"] == "ab"
    assert always.metrics["no_answer_accuracy"] == 0
    never = make([LONG], null_threshold=-4.0).report(data, outputs(*rows))
    assert never.predictions[0]["predicted"] == ""
    assert make().report(data[:1], outputs(*rows[:4])).metrics == {"exact_match": 1.0, "f1": 1.0}


def test_answers_in_both_forms():
    config = QuestionAnsweringConfig()
    expected = [Answer("b", 1), Answer("bc", 1)]
    squad = record("abc", "b", "bc")
    assert config.answers_of(squad) == expected
    assert config.answers_of(squad | {"answers": [{"text": "b", "start": 1}, {"text": "bc", "answer_start": 1}]}) == (
        expected
    )
    assert config.answers_of(squad | {"answers": []}) == []


def test_what_is_refused():
    row = Row(record("abc") | {"answers": {"text": ["b"], "answer_start": [0]}}, "a:1", "a.jsonl, line 1")
    with pytest.raises(UserError, match=r"line 1: the answer 'b' should start at character 0 .* which has 'a' there"):
        make().rows([row])
    with pytest.raises(UserError, match=r"column 'answers' \(task.answers_column\) is 'b', expected"):
        make().rows([record("abc") | {"answers": "b"}])
    with pytest.raises(UserError, match="leaves 2 tokens of context beside max_question_tokens 2, expected more than"):
        make(length=7)


@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.BertNormalizer()])
@pytest.mark.parametrize("answer", ["한국", "café", "뷁"])
def test_an_answer_of_decomposed_text_reaches_its_last_character(normalizer, answer, caplog):
    context, answer = (unicodedata.normalize("NFD", text) for text in ("그 한국 café 뷁", answer))
    tokenizer = copy.deepcopy(FRAMED)
    tokenizer.backend_tokenizer.normalizer = normalizer
    task = make(length=60, tokenizer=tokenizer)
    data = [record(context, answer)]
    row = {name: int(values[0]) for name, values in task.rows(data).take(np.arange(1)).items() if values.ndim == 1}
    assert not caplog.records
    outputs = {"start": [row["start_positions"]], "end": [row["end_positions"]], "score": [1.0], "null": [0.0]}
    report = task.report(data, {name: np.array(value) for name, value in outputs.items()})
    assert report.predictions[0]["predicted"] == answer and report.metrics["exact_match"] == 1


def test_an_answer_in_no_window_is_counted_and_said(caplog):
    # Windows have four tokens of the context.
    data = [LONG, Row(record("abcdefghij", "cdefg"), "a:2", "a.jsonl, line 2"), record("abcdefghij")]
    rows = make().rows(data).take(np.arange(12))
    assert rows["start_positions"].tolist() == [0, 6, 4, 0, *[F.IGNORE] * 4, 0, 0, 0, 0]
    assert rows["end_positions"].tolist() == [0, 7, 5, 0, *[F.IGNORE] * 4, 0, 0, 0, 0]
    said = "nothing is learned of 1 of 3 questions: the answer is in no window of 9 tokens (a.jsonl, line 2)"
    assert said in caplog.text
    with pytest.raises(UserError, match="line 2: the answer is in no window of 9 tokens; fix the row"):
        make(bad_rows="error").rows(data)


def test_another_answer_counts_if_the_first_is_in_no_window():
    rows = make().rows([record("abcdefghij", "cdefg", "ij")]).take(np.arange(4))
    assert rows["start_positions"].tolist() == [0, 0, 0, 6]
