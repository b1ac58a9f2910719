"""The values that the page of each task shows, from the pipeline's results."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxformer.pipelines import Pipeline
from jaxformer.pipelines.task_names import pipeline_class
from jaxformer.schema import UserError

# Answers to a question, and fillings of a mask, that are listed.
LISTED = 5


def filled(text: str | None, what: str) -> str:
    """The text; refuses it if nothing was typed."""
    if text is None or not text.strip():
        raise UserError(f"{what} is empty, expected a text")
    return text


def uncut(pipe: Pipeline) -> dict[str, bool]:
    """Options that refuse a text that is too long, unless ``truncation`` was given: the page shows no warnings."""
    return {} if "truncation" in pipe.given else {"truncation": False}


def classified(pipe: Pipeline, text: str, second: str | None = None) -> dict[str, float]:
    """The score of each label."""
    item = {"text": filled(text, "the text")} | ({"text_pair": second} if second and second.strip() else {})
    return {answer["label"]: answer["score"] for answer in pipe(item, top_k=None, **uncut(pipe))}


def measured(pipe: Pipeline, text: str, second: str | None = None) -> list[list[Any]]:
    """A row for each number of a regression."""
    return [[label, round(score, 4)] for label, score in classified(pipe, text, second).items()]


def marked(text: str, spans: Sequence[tuple[str, int, int]]) -> list[tuple[str, str | None]]:
    """The text in parts, each with its label or None; of overlapping spans the first is kept.

    >>> marked("in Oslo", [("LOC", 3, 7)])
    [('in ', None), ('Oslo', 'LOC')]
    """
    parts: list[tuple[str, str | None]] = []
    place = 0
    for label, start, end in sorted(spans, key=lambda span: span[1]):
        if start < place:
            continue
        if start > place:
            parts.append((text[place:start], None))
        parts.append((text[start:end], label))
        place = end
    return [*parts, (text[place:], None)] if place < len(text) else parts


def entities(pipe: Pipeline, text: str) -> tuple[list[tuple[str, str | None]], list[list[Any]]]:
    """The text with its entities marked, and a row for each: text, entity, score."""
    options = {} if "aggregation_strategy" in pipe.given else {"aggregation_strategy": "simple"}
    found = pipe(filled(text, "the text"), **options)
    spans = [(entity.get("entity_group") or entity["entity"], entity["start"], entity["end"]) for entity in found]
    rows = [
        [text[start:end], label, round(entity["score"], 4)]
        for entity, (label, start, end) in zip(found, spans, strict=True)
    ]
    return marked(text, spans), rows


def answered(pipe: Pipeline, context: str, question: str) -> tuple[list[tuple[str, str | None]], list[list[Any]]]:
    """The context with the best answer marked, and a row for each of the best: answer, score."""
    item = {"question": filled(question, "the question"), "context": filled(context, "the text")}
    found = pipe(item, top_k=LISTED)
    found = found if isinstance(found, list) else [found]
    best = found[0]
    spans = [("answer", best["start"], best["end"])] if best["answer"] else []
    return marked(context, spans), [[answer["answer"] or "no answer", round(answer["score"], 4)] for answer in found]


def unmasked(pipe: Pipeline, text: str) -> dict[str, float]:
    """The probability of each filled text; of several masks that of each token, with the number of its mask."""
    found = pipe(filled(text, "the text"), **uncut(pipe))
    if not isinstance(found[0], list):
        return _summed((answer["sequence"], answer["score"]) for answer in found)
    return _summed(
        (f"{number}: {answer['token_str']}", answer["score"]) for number, mask in enumerate(found, 1) for answer in mask
    )


def _summed(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The scores by text, summed over tokens with the same text."""
    scores: dict[str, float] = {}
    for text, score in pairs:
        scores[text] = scores.get(text, 0.0) + score
    return scores


def judged(pipe: Pipeline, text: str, labels: str, several: bool) -> dict[str, float]:
    """The score of each class that was typed."""
    found = pipe(filled(text, "the text"), candidate_labels=labels or None, multi_label=several)
    return dict(zip(found["labels"], found["scores"], strict=True))


def compared(pipe: Pipeline, source: str, sentences: str) -> list[list[Any]]:
    """A row for each line of ``sentences``, the most similar first: sentence, cosine."""
    others = [line.strip() for line in filled(sentences, "the list of sentences").splitlines() if line.strip()]
    cosines = pipe({"source_sentence": filled(source, "the sentence"), "sentences": others}, **uncut(pipe))
    rows = sorted(zip(cosines, others, strict=True), key=lambda row: -row[0])
    return [[sentence, round(cosine, 4)] for cosine, sentence in rows]


def ranked(pipe: Pipeline, query: str, texts: str) -> list[list[Any]]:
    """A row for each line of ``texts``, the best first: text, score."""
    documents = [line.strip() for line in filled(texts, "the list of texts").splitlines() if line.strip()]
    found = pipe({"query": filled(query, "the query"), "documents": documents}, **uncut(pipe))
    return [[answer["text"], round(answer["score"], 4)] for answer in found]


def as_similarity(pipe: Pipeline) -> Pipeline:
    """The sentence-similarity pipeline with the model of a feature-extraction pipeline."""
    if pipe.task == "sentence-similarity":
        return pipe
    options = {key: value for key, value in pipe.given.items() if key in ("pooling", "truncation", "max_length")}
    opened = replace(pipe.opened, params=pipe.params)
    made: Pipeline = pipeline_class("sentence-similarity")("sentence-similarity", opened, pipe.batch_size, **options)
    return made


def rewritten(pipe: Pipeline, text: str, beams: float, most: float) -> str:
    """The text that an encoder-decoder generates."""
    options = {"num_beams": int(beams), "max_new_tokens": int(most), "do_sample": False} | uncut(pipe)
    (answer,) = pipe(filled(text, "the text"), num_return_sequences=1, **options)
    return str(next(iter(answer.values())))


def drawing(temperature: float, top_p: float, most: float, seed: float) -> dict[str, Any]:
    """The settings of the page as options; a temperature of 0 is greedy decoding."""
    options: dict[str, Any] = {"max_new_tokens": int(most), "seed": int(seed), "num_beams": 1}
    if temperature == 0:
        return options | {"do_sample": False}
    return options | {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p)}


def written(pipe: Any, text: str, *settings: float) -> Iterator[str]:
    """The text and its continuation so far."""
    for new in growing(pipe, text, drawing(*settings)):
        yield text + new


def replied(pipe: Any, message: str, history: Sequence[Mapping[str, Any]], *settings: float) -> Iterator[str]:
    """The assistant's message so far."""
    said = [{"role": turn["role"], "content": plain(turn["content"])} for turn in history]
    said.append({"role": "user", "content": filled(message, "the message")})
    yield from growing(pipe, said, drawing(*settings))


def growing(pipe: Any, item: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """The new text so far, after each piece of it."""
    text = ""
    for piece in pipe.pieces(item, num_return_sequences=1, **options):
        text += piece.text
        yield text


def plain(content: Any) -> str:
    """The text of a message, which may be a list of parts.

    >>> plain([{"type": "text", "text": "hello"}])
    'hello'
    """
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
