"""Extractive question answering: find the span of a context that answers a question, if there is one."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.models import heads
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError
from jaxformer.tasks import metrics
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task
from jaxformer.tokenizers import encode, encode_batch, encode_with_offsets, frame_of, shorten

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """An answer and the character of the context at which it starts."""

    text: str
    start: int


class QuestionAnsweringConfig(R.SupervisedConfig):
    """Find the span of a context that answers a question."""

    unit = "windows"

    type: Literal["question_answering"] = Field("question_answering", description="objective")
    question_column: str = Field("question", description="column with the question")
    context_column: str = Field("context", description="column with the text that may contain the answer")
    answers_column: str = Field(
        "answers", description="column with the answers: {text: [...], answer_start: [...]} or a list of {text, start}"
    )
    id_column: str | None = Field("id", description="column with the id of a record in the predictions")
    stride: int = Field(128, ge=0, description="tokens that neighbouring windows of a long context share")
    max_question_tokens: int = Field(64, ge=1, description="longer questions are truncated")
    max_answer_tokens: int = Field(30, ge=1, description="longest predicted answer, tokens")
    null_threshold: float | None = Field(
        0.0, description='lead in nats over the best span at which "no answer" is predicted; null: never'
    )

    def texts(self, record: R.Record) -> list[str]:
        """The question and the context."""
        return [
            R.text(record, self.question_column, "question_column"),
            R.text(record, self.context_column, "context_column"),
        ]

    def answers_of(self, record: R.Record) -> list[Answer]:
        """The correct answers, none if there is no answer; a ``UserError`` if one is not at its start."""
        value = R.column(record, self.answers_column, "answers_column")
        try:
            if isinstance(value, dict):
                starts = value["answer_start"] if "answer_start" in value else value["start"]
                value = [{"text": text, "start": start} for text, start in zip(value["text"], starts, strict=True)]
            answers = [Answer(str(a["text"]), int(a["start"] if "start" in a else a["answer_start"])) for a in value]
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{R.where(record)}: column {self.answers_column!r} (task.answers_column) is {value!r:.80}, expected "
                "{text: [...], answer_start: [...]} or a list of {text, start}"
            ) from None
        context = R.text(record, self.context_column, "context_column")
        for text, start in answers:
            if start < 0 or context[start : start + len(text)] != text or not text.strip():
                found = context[max(start, 0) : max(start, 0) + len(text)]
                raise UserError(
                    f"{R.where(record)}: the answer {text!r} should start at character {start} of the context, "
                    f"which has {found!r} there: fix its start, or remove the record"
                )
        return answers


class Window(NamedTuple):
    """A part of a context with its question: ``[CLS] question [SEP] part [SEP]``, for the record of this number.

    ``begin`` is the position of the first token of the part, ``offsets`` the characters of the context of each token,
    ``beside`` those of the tokens of the context before and after the part.
    """

    record: int
    inputs: Batch
    begin: int
    offsets: list[tuple[int, int]]
    beside: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class QuestionAnswering(Task):
    """``-(log p_start[s] + log p_end[e]) / 2``, summed over windows; ``(0, 0)``, the ``[CLS]``, means "no answer".

    A long context is split into windows that overlap by ``stride`` tokens. The model's output has
    ``start_logits`` and ``end_logits [B, T]``. Source: Devlin et al. 2019, "BERT", sections 4.2 and 4.3.
    """

    config: QuestionAnsweringConfig

    def __post_init__(self) -> None:
        c = self.config
        room = self.sequence_length - c.max_question_tokens - frame_of(self.tokenizer, pair=True).size
        if room <= c.stride:
            raise UserError(
                f"{c.type}: the sequence length {self.sequence_length} leaves {room} tokens of context beside "
                f"max_question_tokens {c.max_question_tokens}, expected more than stride {c.stride}: lower these or "
                "raise the length"
            )

    @property
    def export_keys(self) -> dict[str, Any]:
        """The options by which windows are cut and answers chosen."""
        c = self.config
        options: dict[str, Any] = {
            "max_seq_len": self.sequence_length,
            "doc_stride": c.stride,
            "max_question_len": c.max_question_tokens,
            "max_answer_len": c.max_answer_tokens,
            "align_to_words": False,
            "handle_impossible_answer": c.null_threshold is not None,
        }
        if c.null_threshold:
            options["null_threshold"] = c.null_threshold
        return {"task_specific_params": {"question-answering": options}}

    def windows(self, data: Sequence[R.Record]) -> list[Window]:
        """The windows of all records in order, at least one per record."""
        texts = [self.config.texts(record) for record in data]
        longest = self.config.max_question_tokens
        questions = encode_batch(self.tokenizer, [question for question, _ in texts])
        for number, ids in enumerate(questions):
            if len(ids) > longest:
                questions[number] = encode(self.tokenizer, shorten(self.tokenizer, texts[number][0], longest))
        contexts = encode_with_offsets(self.tokenizer, [context for _, context in texts])
        windows, frame = [], frame_of(self.tokenizer, pair=True)
        for number, (question, (ids, offsets)) in enumerate(zip(questions, contexts, strict=True)):
            room = self.sequence_length - len(question) - frame.size
            begin = len(frame.before) + len(question) + len(frame.between)
            start = 0
            while True:
                part = slice(start, start + room)
                inputs = R.encoder_input(frame, question, ids[part], self.sequence_length)
                beside = [*offsets[max(start - 1, 0) : start], *offsets[start + room : start + room + 1]]
                windows.append(Window(number, inputs, begin, offsets[part], beside))
                if start + room >= len(ids):
                    break
                start += room - self.config.stride
        return windows

    def span_labels(self, window: Window, answers: Sequence[Answer]) -> tuple[int, int]:
        """First and last token of the first answer, without surrounding spaces; ``(0, 0)`` if the window cuts it.

        They are those that have a character of it: a tokenizer may leave out characters.
        """
        if not answers:
            return 0, 0
        text, start = answers[0]
        first, end = start + len(text) - len(text.lstrip()), start + len(text.rstrip())

        def of_answer(spans: Sequence[tuple[int, int]]) -> list[int]:
            return [token for token, (a, b) in enumerate(spans) if a < end and b > first]

        inside = of_answer(window.offsets)
        if not inside or of_answer(window.beside):
            return 0, 0
        return window.begin + inside[0], window.begin + inside[-1]

    def model(self, config: TransformerConfig) -> nn.Module:
        """The backbone with a start and an end score for each token."""
        return heads.QuestionAnswering(config)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row per window; nothing is learned of a question whose answers are in none."""
        examples: list[Example] = []
        windows = self.windows(data)
        for window, (start, end) in zip(windows, self._labels(windows, data), strict=True):
            context = np.zeros(len(window.inputs["input_ids"]), np.int32)
            text = self.config.texts(data[window.record])[1]
            # 2 for a token that is a blank alone, which neither begins nor ends an answer.
            context[window.begin : window.begin + len(window.offsets)] = [
                1 if text[a:b].strip() else 2 for a, b in window.offsets
            ]
            labels: Example = {"context_mask": context, "start_positions": start, "end_positions": end}
            examples.append({**window.inputs, **labels})
        fill = {"context_mask": 0, "start_positions": F.IGNORE, "end_positions": F.IGNORE}
        return ExampleRows(examples, self.sequence_length, R.encoder_fill(self.tokenizer) | fill)

    def _labels(self, windows: Sequence[Window], data: Sequence[R.Record]) -> list[tuple[int, int]]:
        """``span_labels`` of each window for the first answer that is in one, ``IGNORE`` if none is; logs how many."""
        found, nowhere = [], R.Tally(self.config.bad_rows)
        for number, group in groupby(windows, key=lambda window: window.record):
            here, answers = list(group), self.config.answers_of(data[number])
            tried = ([self.span_labels(window, [answer]) for window in here] for answer in answers)
            labels = next((spans for spans in tried if any(span != (0, 0) for span in spans)), None)
            if labels is None and answers:
                nowhere.leave_out(data[number], f"the answer is in no window of {self.sequence_length} tokens")
            found += labels or [(F.IGNORE, F.IGNORE) if answers else (0, 0)] * len(here)
        if nowhere.left_out:
            places, (_, reason) = R.few([place for place, _ in nowhere.left_out]), nowhere.left_out[0]
            logger.warning(
                f"nothing is learned of {len(nowhere.left_out):,} of {len(data):,} questions: {reason} ({places})"
            )
        return found

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Mean of the cross-entropies of start and end, summed over windows, nats."""
        output = R.apply(model, params, batch, dropout_key)
        real = batch["attention_mask"] == 1
        start, end = (
            F.cross_entropy(jnp.where(real, logits.astype(jnp.float32), F.MASKED), batch[name])
            for logits, name in ((output.start_logits, "start_positions"), (output.end_logits, "end_positions"))
        )
        total = (start.total + end.total) / 2
        return LossSums(total, start.tokens, {"loss": total})

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """The best span of each window, ``start``, ``end`` and ``score [B]``, and the score of ``[CLS]``, ``null``.

        The score of a span is the log-probability of its start and its end among the tokens of the context and the
        ``[CLS]``, as in the pipeline; spans are in the context and have at most ``max_answer_tokens``.
        """
        output = R.apply(model, params, batch, None)
        context = jnp.asarray(batch["context_mask"])
        allowed = (context > 0).at[:, 0].set(True)
        starts, ends = (
            jax.nn.log_softmax(jnp.where(allowed, logits.astype(jnp.float32), F.MASKED), axis=-1)
            for logits in (output.start_logits, output.end_logits)
        )
        start, end, score = best_spans(starts, ends, context == 1, self.config.max_answer_tokens)
        return {"start": start, "end": end, "score": score, "null": starts[:, 0] + ends[:, 0]}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """Exact match and F1 of SQuAD, and for each record the best span of all its windows, or no answer."""
        windows = self.windows(data)
        of_record: list[list[int]] = [[] for _ in data]
        for row, window in enumerate(windows):
            of_record[window.record].append(row)
        predictions, scores = [], []
        for number, (record, rows) in enumerate(zip(data, of_record, strict=True)):
            best = max(rows, key=lambda row: float(outputs["score"][row]))
            null = min(float(outputs["null"][row]) for row in rows)
            text = self._span(record, windows[best], outputs, best)
            margin = null - float(outputs["score"][best])
            if self.config.null_threshold is not None and margin > self.config.null_threshold:
                text = ""
            answers = [answer.text for answer in self.config.answers_of(record)]
            exact, f1 = metrics.answer_scores(text, answers)
            scores.append((exact, f1, bool(answers)))
            name = record.get(self.config.id_column, number) if self.config.id_column is not None else number
            shown = {"id": name, "question": self.config.texts(record)[0], "answers": answers, "predicted": text}
            predictions.append({**shown, "exact_match": exact, "f1": round(f1, 6), "null_margin": round(margin, 6)})
        return Report(metrics.answers(scores), predictions)

    def _span(self, record: R.Record, window: Window, outputs: dict[str, np.ndarray], row: int) -> str:
        if not window.offsets:
            return ""
        start, end = (int(outputs[name][row]) - window.begin for name in ("start", "end"))
        return self.config.texts(record)[1][window.offsets[start][0] : window.offsets[end][1]]


def best_spans(
    starts: jax.Array, ends: jax.Array, allowed: jax.Array, longest: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The span ``s <= e < s + longest`` of allowed tokens with the greatest ``starts[s] + ends[e]``, for each row.

    ``starts`` and ``ends`` are ``[B, T]`` float32, ``allowed [B, T]`` bool; tokens between s and e are not checked.
    Returns s, e and the sum, each ``[B]``; where no token is allowed the sum is below ``MASKED``.
    """
    T = starts.shape[1]
    longest = min(longest, T)
    starts, ends = (jnp.where(allowed, logits, F.MASKED) for logits in (starts, ends))
    padded = jnp.pad(ends, ((0, 0), (0, longest)), constant_values=F.MASKED)
    # [B, T, longest]: the span from s to s + d. Most of [B, T, T] would be too long.
    sums = starts[..., None] + jnp.stack([padded[:, d : d + T] for d in range(longest)], axis=-1)
    flat = sums.reshape(sums.shape[0], -1)
    best = jnp.argmax(flat, axis=-1).astype(jnp.int32)
    start = best // longest
    return start, start + best % longest, jnp.max(flat, axis=-1)
