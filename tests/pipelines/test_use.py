"""How pipelines are called, and what a user may get wrong."""

import json
import warnings
from itertools import count, islice

import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer
from jaxformer.pipelines import PipelineWarning, base_pipeline
from jaxformer.pipelines.base_pipeline import run_model
from jaxformer.pipelines.predict import predict
from jaxformer.schema import UserError
from tests.hub import tiny as hub_tiny
from tests.pipelines import tiny
from tests.pipelines.cases import LONG, PAIRS, TEXTS, compare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function to a model's folder."""
    made = {}

    def get(what):
        if what not in made:
            made[what] = str(tiny.save(tmp_path_factory.mktemp(what), what))
        return made[what]

    return get


@pytest.fixture(scope="module")
def classes(folder):
    return jaxformer.pipeline(model=folder("classes"))


def test_the_task_follows_from_the_model(folder, classes):
    found = {what: jaxformer.pipeline(model=folder(what)).task for what in ("tags", "spans", "words", "states")}
    assert found == {
        "tags": "token-classification",
        "spans": "question-answering",
        "words": "fill-mask",
        "states": "feature-extraction",
    }
    assert classes.task == "text-classification" and repr(classes).startswith("pipeline('text-classification', model=")


def test_one_many_and_a_stream(classes):
    many = classes(TEXTS)
    assert (
        isinstance(many, list) and len(many) == len(TEXTS) and classes(TEXTS[0]) == [pytest.approx(many[0], abs=1e-5)]
    )
    compare(classes(np.array(TEXTS)), many, 1e-5)
    read = []

    def endless():
        for number in count():
            read.append(number)
            yield TEXTS[number % len(TEXTS)]

    stream = classes(endless())
    assert read == [], "nothing is read before it is asked for"
    compare(list(islice(stream, 7)), (many * 2)[:7], 1e-5)
    assert len(read) == classes.window_size

    class Stream:
        """As an iterable dataset: no length, and no iterator itself."""

        def __iter__(self):
            return iter(TEXTS)

    compare(list(classes(Stream())), many, 1e-5)


def test_a_column_of_a_dataset(classes):
    import datasets

    column = datasets.Dataset.from_dict({"text": TEXTS})["text"]
    compare(classes(column), classes(TEXTS), 1e-5)


def test_a_model_and_parameters_in_hand(folder, classes):
    model, params = jaxformer.AutoModelForSequenceClassification.from_pretrained(folder("classes"))
    tokenizer = jaxformer.AutoTokenizer.from_pretrained(folder("classes"))
    for given in ({"model": model, "params": params}, {"model": (model, params)}):
        compare(jaxformer.pipeline(**given, tokenizer=tokenizer)(TEXTS), classes(TEXTS), 1e-6)
    with pytest.raises(UserError, match="given without tokenizer, expected model=, params= and tokenizer= together"):
        jaxformer.pipeline(model=(model, params))
    body = jaxformer.pipeline("feature-extraction", model=(model, params), tokenizer=tokenizer)
    batch = tokenizer([TEXTS[1]], padding=True)
    states = model.apply({"params": params}, **batch).last_hidden_state
    compare(body(TEXTS[1]), states.tolist(), 1e-5)


def test_half_precision(folder, classes):
    half = jaxformer.pipeline(model=folder("classes"), dtype="bfloat16")
    assert half.params["classifier"]["kernel"].dtype == jnp.bfloat16 and half.model.config.dtype == "bfloat16"
    for ours, exact in zip(half(TEXTS, top_k=None), classes(TEXTS, top_k=None), strict=True):
        by_label = {answer["label"]: answer["score"] for answer in exact}
        assert all(abs(answer["score"] - by_label[answer["label"]]) < 0.05 for answer in ours)


def test_few_programs_are_compiled(folder, monkeypatch):
    shapes = set()

    def noted(function, model, params, batch):
        shapes.add(batch["input_ids"].shape)
        return run_model(function, model, params, batch)

    monkeypatch.setattr(base_pipeline, "run_model", noted)
    pipe = jaxformer.pipeline(model=folder("classes"))
    texts = [" ".join(["rain"] * (n % 28)) for n in range(100)]
    pipe([*texts, *texts[::-1]])
    pipe(texts)
    full = {(64, 8), (42, 12), (32, 16), (25, 20), (21, 24), (18, 28), (16, 32)}
    assert shapes - full == {(48, 8)}, "rows of 2 to 29 tokens; the last, shortest ones are fewer"


def test_a_long_text_is_cut_and_that_is_said_once(folder, classes):
    pipe = jaxformer.pipeline(model=folder("classes"))
    with pytest.warns(PipelineWarning, match=r"a text of 62 tokens was truncated to 32 .* This is said once"):
        found = pipe([LONG, TEXTS[1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(pipe([LONG, TEXTS[1]]), found, 1e-6)
        compare(classes(LONG, max_length=32), found[:1], 1e-6)
    tokenizer = classes.tokenizer
    cut = tokenizer.decode(tokenizer(LONG)["input_ids"][1:31])
    compare(classes(cut), found[:1], 1e-5)
    with pytest.raises(UserError, match="a text has 62 tokens, expected at most 32; shorten it or set truncation=True"):
        pipe(LONG, truncation=False)


def test_of_a_long_text_no_token_is_lost(folder):
    pipe = jaxformer.pipeline(model=folder("tags"), ignore_labels=[])
    found = pipe(LONG)
    ids = pipe.tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True)
    assert [(entity["start"], entity["end"]) for entity in found] == [tuple(span) for span in ids["offset_mapping"]]
    # Windows of 30 tokens that share 7: each token is as in the window where it is farther from the edge.
    expected = {}
    for start in (0, 23, 46):
        window = found[start : start + 30]
        alone = pipe(LONG[window[0]["start"] : window[-1]["end"]])
        assert len(alone) == len(window)
        for place, entity in enumerate(alone):
            room = min(place, len(alone) - 1 - place)
            if room > expected.get(start + place, (-1,))[0]:
                expected[start + place] = (room, entity["entity"], entity["score"])
    assert [entity["entity"] for entity in found] == [expected[n][1] for n in range(60)]
    np.testing.assert_allclose([entity["score"] for entity in found], [expected[n][2] for n in range(60)], atol=1e-5)


def test_vectors_of_texts(folder):
    pipe = jaxformer.pipeline(model=folder("states"), return_tensors=True)
    states = pipe(TEXTS)
    for name, expected in {
        "mean": lambda x: x[0].mean(0),
        "first": lambda x: x[0, 0],
        "last": lambda x: x[0, -1],
    }.items():
        for vector, rows in zip(pipe(TEXTS, pooling=name, normalize=True), states, strict=True):
            np.testing.assert_allclose(vector, expected(rows) / np.linalg.norm(expected(rows)), atol=1e-5)


QUESTION = {"question": "rain?", "context": TEXTS[0]}
MISTAKES = {
    "a task": ({"task": "text-clasification"}, "classes", TEXTS, r"no task 'text-clasification', .*mean text-class"),
    "an option": ({"topk": 3}, "classes", TEXTS, r"has no option 'topk'; did you mean top_k\?"),
    "a value": (
        {"top_k": 0},
        "classes",
        TEXTS,
        r"text-classification: top_k is 0, expected greater than or equal to 1",
    ),
    "a choice": ({"aggregation_strategy": "all"}, "tags", TEXTS, r"is 'all', expected 'none', 'simple', 'first'"),
    "no text": ({}, "classes", None, r"got None, expected a text or .*, or a list or generator of such"),
    "a number": ({}, "classes", ["rain", 3], r"the input is a int \(3\), expected a text"),
    "a pair as a list": ({}, "classes", [["a", "b"]], r"for a pair of texts give \{'text'"),
    "keys": ({}, "classes", {"txt": "rain"}, r"the input has the keys txt, expected text, or text and text_pair"),
    "no mask": ({}, "words", "rain fell", r"the text has no \[MASK\], expected one in place of a word"),
    "no question": ({}, "spans", "rain", r"the input is 'rain', expected \{'question'"),
    "no context": ({}, "spans", QUESTION | {"context": " "}, "the context is empty, expected a text"),
    "a stride": ({"doc_stride": 40}, "spans", QUESTION, "doc_stride is 40, expected less than max_seq_len, 32 tokens"),
    "a long question": (
        {"doc_stride": 8},
        "spans",
        QUESTION | {"question": "who? " * 10},
        "the question has 40 tokens, which leaves too little of a window of 32 tokens",
    ),
    "no classes": ({"task": "zero-shot-classification"}, "nli", "rain", "there are no candidate_labels, expected at"),
    "no entailment": (
        {"task": "zero-shot-classification", "candidate_labels": "a,b"},
        "classes",
        "rain",
        r"has the classes bad, fair, good, expected one called entailment: .* with entailment_id=",
    ),
    "a template": (
        {"task": "zero-shot-classification", "hypothesis_template": "x"},
        "nli",
        "rain",
        r"expected one \{\}",
    ),
    "no sentences": ({"task": "sentence-similarity"}, "states", "rain", "expected {'source_sentence'"),
    "a head": (
        {"task": "ner"},
        "classes",
        TEXTS,
        r"no trained head token_classification: its head is sequence_.*can do:",
    ),
    "a body": ({"task": "fill-mask"}, "states", TEXTS, r"no trained head masked_lm: the checkpoint has no mlm_head/"),
    "another": (
        {"task": "fill-mask"},
        "tags",
        TEXTS,
        r"this one can do: token-classification, feature-extraction, sent",
    ),
    "batches": ({"batch_size": 0}, "classes", TEXTS, "batch_size is 0, expected 1 or more"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(name, folder):
    options, model, inputs, said = MISTAKES[name]
    with pytest.raises(UserError, match=said) as error:
        jaxformer.pipeline(model=folder(model), **options)(inputs)
    assert "\n" not in str(error.value)


def test_models_that_are_none(tmp_path):
    (tmp_path / "run_1").mkdir()
    with pytest.raises(
        UserError, match=r"no such folder: .*run_2, expected a run's folder .*; near names in .*: run_1"
    ):
        jaxformer.pipeline(model=str(tmp_path / "run_2"))
    with pytest.raises(
        UserError, match=r"holds neither config\.json nor config\.yaml, expected a folder in the Hugging"
    ):
        jaxformer.pipeline(model=tmp_path / "run_1")
    with pytest.raises(UserError, match=r"model is a int, expected a folder"):
        jaxformer.pipeline(model=3)
    with pytest.raises(UserError, match="no model was given"):
        jaxformer.pipeline("ner")
    hub_tiny.save(tmp_path / "choices", "bert", "multiple_choice")
    tiny.save_word_pieces(tmp_path / "choices")
    with pytest.raises(UserError, match=r"head is multiple_choice, .* this one can do: feature-ext"):
        jaxformer.pipeline(model=tmp_path / "choices")


def test_pairs_stand_beside_texts(classes):
    alone, paired = classes(TEXTS[1]), classes(PAIRS[1])
    compare(classes([{"text": TEXTS[1]}, PAIRS[1], TEXTS[1]]), [alone[0], paired, alone[0]], 1e-5)


def test_how_much_is_written(folder):
    pipe = jaxformer.pipeline(model=folder("writes"), do_sample=False)
    prompt = len(pipe.tokenizer(TEXTS[1])["input_ids"])
    whole = pipe(TEXTS[1], return_full_text=False)[0]["generated_text"]
    assert len(pipe.tokenizer(whole)["input_ids"]) > 64, "what fits is written, of a model of 128 tokens"
    assert pipe(TEXTS[1], max_length=prompt + 9) == pipe(TEXTS[1], max_new_tokens=9) != pipe(TEXTS[1], max_new_tokens=8)
    with pytest.raises(
        UserError, match=rf"the prompt has {prompt} tokens, and 128 new tokens were asked of a model of 128"
    ):
        pipe(TEXTS[1], max_new_tokens=128)
    said = pipe(TEXTS[1], max_new_tokens=20, return_full_text=False)[0]["generated_text"]
    cut = pipe(TEXTS[1], max_new_tokens=20, return_full_text=False, stop_strings=said[8:10])[0]["generated_text"]
    assert cut == said[: said.index(said[8:10])]
    shared = {"max_new_tokens": 8, "do_sample": True, "seed": 3}
    assert pipe(TEXTS[:3], **shared)[1] == pipe(TEXTS[1], **shared), "draws do not depend on the batch"
    assert len({pipe(TEXTS[1], **{**shared, "seed": seed})[0]["generated_text"] for seed in range(4)}) > 1


def test_a_start_token_counts_as_before(folder):
    pipe = jaxformer.pipeline("summarization", model=folder("rewrites"), num_beams=1)
    assert pipe(TEXTS, max_length=10, min_length=10) == pipe(TEXTS, max_new_tokens=9, min_new_tokens=9)
    with pytest.raises(UserError, match=r"do_sample is true with num_beams above 1, expected one of them"):
        pipe(TEXTS, num_beams=2, do_sample=True)


@pytest.mark.parametrize("task", ["spans", "tags"])
def test_a_tokenizer_without_offsets_is_refused_where_they_are_needed(folder, task):
    from transformers import ByT5Tokenizer

    with pytest.raises(UserError, match=r"needs to know which characters a token stands for, which a ByT5Tokenizer"):
        jaxformer.pipeline(model=folder(task), tokenizer=ByT5Tokenizer())


def test_a_type_that_is_refused(folder, classes):
    model, params = jaxformer.AutoModelForSequenceClassification.from_pretrained(folder("classes"))
    for given in ({"model": folder("classes")}, {"model": model, "params": params, "tokenizer": classes.tokenizer}):
        with pytest.raises(
            UserError, match=r"^dtype is 'float16', expected float32 or bfloat16: a number above 65,504"
        ):
            jaxformer.pipeline(**given, dtype="float16")


def test_a_text_without_tokens(tmp_path):
    """Of a tokenizer that puts nothing around a text, as GPT-2's."""
    made = {what: str(tiny.save(tmp_path / what, what, "gpt2")) for what in ("classes", "states", "tags", "nli")}
    refused = r"the text '' has no tokens, expected at least one"
    for what, task, item in (
        ("classes", None, ""),
        ("classes", None, {"text": "", "text_pair": ""}),
        ("states", None, ""),
        ("states", "sentence-similarity", {"source_sentence": "", "sentences": ["rain"]}),
        ("states", "sentence-similarity", {"source_sentence": "rain", "sentences": ["rain", ""]}),
    ):
        pipe = jaxformer.pipeline(task, model=made[what])
        good = {"source_sentence": "rain", "sentences": ["rain"]} if task else "rain"
        with pytest.raises(UserError, match=refused):
            pipe(item)
        results = pipe.window([good, item, good], pipe.options)
        assert str(results[1]) == "the text '' has no tokens, expected at least one"
        compare(results[0], results[2], 1e-6)
    with pytest.raises(UserError, match=refused):
        pipe(["rain"], ["rain", ""])
    # No token has no tag; of a hypothesis there is always one.
    tags = jaxformer.pipeline(model=made["tags"], ignore_labels=[])
    assert tags("") == [] and tags([[], ["", ""]], is_split_into_words=True) == [[], []]
    found = jaxformer.pipeline("zero-shot-classification", model=made["nli"])("", candidate_labels=["a", "b"])
    assert sum(found["scores"]) == pytest.approx(1)


def test_a_line_without_tokens(tmp_path):
    model, file, out = tiny.save(tmp_path, "classes", "gpt2"), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("rain", "", "mill")))
    done = predict(jaxformer.pipeline(model=str(model)), file, out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert (done.lines, done.errors) == (3, 1) and {"label", "score"} == lines[0].keys() == lines[2].keys()
    assert lines[1] == {"error": "line 2: the text '' has no tokens, expected at least one"}
