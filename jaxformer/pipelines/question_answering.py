"""Question answering: the span of a text that answers a question."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from pydantic import Field

from jaxformer.pipelines.base_pipeline import Pipeline, apply, require_text, softmax
from jaxformer.pipelines.batching import Row
from jaxformer.schema import Schema, UserError
from jaxformer.tokenizers import shorten, whole_characters

LONGEST_WINDOW, LARGEST_STRIDE = 384, 128


class Options(Schema):
    """Options of question answering."""

    top_k: int = Field(1, ge=1, description="answers to return")
    max_answer_len: int = Field(15, ge=1, description="tokens of the longest answer")
    max_seq_len: int | None = Field(None, ge=8, description="tokens of a window; default: 384, or what the model reads")
    doc_stride: int | None = Field(
        None, ge=0, description="tokens that windows share; default: 128, or half of a window"
    )
    max_question_len: int | None = Field(None, ge=1, description="tokens of a question; the rest is cut off")
    handle_impossible_answer: bool = Field(False, description="an empty answer is possible")
    null_threshold: float = Field(0.0, description="lead in nats over the best answer at which the empty one is chosen")
    align_to_words: bool = Field(True, description="an answer begins and ends with whole words")


class QuestionAnswering(Pipeline):
    """``{"score", "start", "end", "answer"}`` for each ``{"question": ..., "context": ...}``; with ``top_k`` a list.

    A long context is read in windows, behind the question. In each the probabilities of the first and of the last token
    are softmaxes over the context and the first token, ``[CLS]``; the score of an answer is their product (Devlin et
    al. 2019, section 4.2). Of answers with the same characters the best is kept. A list of one question gives what that
    question gives. Options of the evaluation in training are the defaults of its model.
    """

    Options: ClassVar[type[Any]] = Options
    per_token = True
    unwraps = True
    needs_offsets = True
    takes = "{'question': ..., 'context': ...}"

    def __call__(self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any) -> Any:
        """Takes dictionaries, or ``question=`` and ``context=``; several questions may share one context."""
        if inputs is not None:
            return super().__call__(inputs, **options)
        if isinstance(question, str):
            return super().__call__({"question": question, "context": context}, **options)
        if not isinstance(question, list | tuple):
            raise UserError(f"question-answering got no question, expected {self.takes}, or question= and context=")
        contexts = [context] * len(question) if isinstance(context, str) else context or []
        if len(contexts) != len(question):
            raise UserError(
                f"got {len(question)} questions and {len(contexts)} contexts, expected one for each, or one for all"
            )
        pairs = [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]
        return super().__call__(pairs, **options)

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """The windows of each context with its question."""
        pairs = [_parts(item) for item in items]
        questions, contexts = zip(*pairs, strict=True)
        if options.max_question_len is not None:
            with self._lock:
                questions = tuple(shorten(self.tokenizer, text, options.max_question_len) for text in questions)
        longest = min(options.max_seq_len or LONGEST_WINDOW, self.longest)
        stride = min(longest // 2, LARGEST_STRIDE) if options.doc_stride is None else options.doc_stride
        if stride >= longest:
            raise UserError(f"doc_stride is {stride}, expected less than max_seq_len, {longest} tokens")
        try:
            windows = self.tokenize(
                questions,
                contexts,
                truncation="only_second",
                max_length=longest,
                stride=stride,
                return_overflowing_tokens=True,
            )
        except UserError:
            if len(items) > 1:
                raise  # each is tried by itself
            size = len(self.tokenizer(pairs[0][0], add_special_tokens=False)["input_ids"])
            raise UserError(
                f"the question has {size} tokens, which leaves too little of a window of {longest} tokens for the "
                f"context, of which windows share {stride}; shorten it, lower doc_stride, or raise max_seq_len"
            ) from None
        rows: list[list[Row]] = [[] for _ in items]
        for window in windows:
            rows[window.about[1]].append(window)
        return rows

    @staticmethod
    def forward(model: Any, params: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Logits ``[B, T]`` of the first and of the last token."""
        output = apply(model, params, batch)
        return output.start_logits, output.end_logits

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> Any:
        """The best answers of all windows."""
        context: str = item["context"]
        best: dict[tuple[int, int], float] = {}
        null = 1.0
        for row, (starts, ends) in zip(rows, outputs, strict=True):
            spans, without = self._spans(row, context, starts, ends, options)
            null = min(null, without)
            for place, score in spans:
                best[place] = max(score, best.get(place, 0.0))
        answers: list[dict[str, Any]] = [
            {"score": s, "start": a, "end": b, "answer": context[a:b]} for (a, b), s in best.items()
        ]
        if options.handle_impossible_answer or not answers:
            empty = null if options.handle_impossible_answer else 0.0
            answers.append({"score": empty, "start": 0, "end": 0, "answer": ""})
        lead = np.exp(-options.null_threshold)
        answers.sort(key=lambda answer: answer["score"] * (1.0 if answer["answer"] else lead), reverse=True)
        answers = answers[: options.top_k]
        return answers[0] if len(answers) == 1 else answers

    def _spans(
        self, row: Row, context: str, starts: np.ndarray, ends: np.ndarray, options: Any
    ) -> tuple[list[tuple[tuple[int, int], float]], float]:
        """Characters and scores of a window's best spans, and the score of no answer in it."""
        encoding = row.about[0]
        of_context = np.array([text == 1 for text in encoding.sequence_ids])
        allowed = of_context | (np.arange(len(of_context)) == 0)
        first, last = (softmax(np.where(allowed, x.astype(np.float64), -10_000.0)) for x in (starts, ends))
        null = float(first[0] * last[0])
        # A token that is a blank alone neither begins nor ends an answer, unless that is widened to words.
        blank = np.array([not context[a:b].strip() for a, b in encoding.offsets])
        may_end = of_context if options.align_to_words else of_context & ~blank
        first, last = (np.where(may_end, x, 0.0) for x in (first, last))
        # [T, T]: a span does not end before it begins, and is not too long.
        scores = np.tril(np.triu(np.outer(first, last)), options.max_answer_len - 1).ravel()
        # Several spans may be the same words.
        count = min(options.top_k * 4 + 10, len(scores))
        chosen = np.argpartition(-scores, count - 1)[:count]
        found = [(divmod(int(k), len(of_context)), float(scores[k])) for k in chosen if scores[k] > 0]
        tokens = [place for place, inside in zip(encoding.offsets, of_context, strict=True) if inside]
        places = [_characters(encoding, context, *span, options.align_to_words) for span, _ in found]
        places = whole_characters(context, places, tokens)
        return [(place, score) for place, (_, score) in zip(places, found, strict=True)], null

    def from_record(self, record: Mapping[str, Any], column: str) -> Any:
        """The question and the context."""
        return {key: Pipeline.from_record(self, record, key) for key in ("question", "context")}


def _characters(encoding: Any, context: str, first: int, last: int, align: bool) -> tuple[int, int]:
    """The characters of a span without blanks around them, or widened to whole words."""
    start, end = encoding.offsets[first][0], encoding.offsets[last][1]
    words = encoding.word_ids[first], encoding.word_ids[last]
    if align and None not in words:
        first_word, last_word = (encoding.word_to_chars(word, 1) for word in words)
        return first_word[0] if first_word else start, last_word[1] if last_word else end
    text = context[start:end]
    return (end - len(text.lstrip()), start + len(text.rstrip())) if text.strip() else (start, end)


def _parts(item: Any) -> tuple[str, str]:
    if not isinstance(item, Mapping) or not {"question", "context"} <= item.keys():
        raise UserError(f"the input is {item!r:.60}, expected {QuestionAnswering.takes}")
    question, context = (require_text(item[key], key) for key in ("question", "context"))
    for key, text in (("question", question), ("context", context)):
        if not text.strip():
            raise UserError(f"the {key} is empty, expected a text")
    return question, context
