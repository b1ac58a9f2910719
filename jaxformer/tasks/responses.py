"""Prompts and responses as tokens, with the tokens that are learned."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.schema import UserError
from jaxformer.tasks.base import Task, TaskSchema
from jaxformer.tasks.chat_template import NONE, ChatWriter, Message, Variables, choose_template, strings, unread
from jaxformer.tasks.records import BadRow, BadRows, Record, Tally, read_rows, where
from jaxformer.tasks.row_readers import Answered, Pair, PromptReader
from jaxformer.tokenizers import (
    PreTrainedTokenizer,
    encode,
    encode_batch,
    encode_marked,
    find_special,
    frame_of,
    special_id,
)

logger = logging.getLogger(__name__)
FILL = {"input_ids": 0, "decoder_input_ids": 0, "labels": F.IGNORE}  # of padding


@dataclass(frozen=True)
class Encoded:
    """A prompt and its response as tokens; ``learned`` marks the ids of the response that are learned.

    A decoder's prompt ends before the first learned id, an encoder's with its end token; the response has the other
    ids.
    """

    prompt: list[int]
    response: list[int]
    learned: list[bool]


def causal_row(text: Encoded) -> Example:
    """Inputs of a decoder, and the labels shifted left by one, -100 where nothing is learned."""
    ids = np.array([*text.prompt, *text.response], np.int32)
    learned = np.array([False] * len(text.prompt) + text.learned)
    return {"input_ids": ids[:-1], "labels": np.where(learned[1:], ids[1:], F.IGNORE).astype(np.int32)}


def two_sided_row(prompt: list[int], response: list[int], start: int) -> Example:
    """Inputs and labels of an encoder-decoder."""
    return {
        "input_ids": np.array(prompt, np.int32),
        "decoder_input_ids": np.array([start, *response[:-1]], np.int32),
        "labels": np.array(response, np.int32),
    }


class ResponseEncoder:
    """Encodes prompts and responses for a decoder or, ``two_sided``, an encoder-decoder.

    The prompt's tokens are those of the prompt alone, as in generation, after the tokenizer's prefix; an encoder's ends
    with an end token. The response ends with the end-of-text token, or, where a model reads prompt and response as one
    text and no model ``writes`` the response, with the tokens that the tokenizer puts behind a text. A dialogue is
    rendered by its chat template, and its special tokens are encoded as such. Warnings are given once, that of an
    answer without an end only if a model ``writes`` the responses.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizer,
        chat_template: str | None,
        two_sided: bool = False,
        writes: bool = True,
    ) -> None:
        self.tokenizer, self.two_sided = tokenizer, two_sided
        template = choose_template(chat_template, tokenizer)
        self.writer = None if template is None else ChatWriter(template, tokenizer)
        end = special_id(tokenizer, "sep") if two_sided else find_special(tokenizer, "eos")
        if end is None:
            raise UserError("the tokenizer has no end-of-text token, expected one to end a response with")
        self.end_id, self.frame = end, frame_of(tokenizer)
        self.target_frame = frame_of(tokenizer, target=True) if two_sided else None
        self.ends = [end] if writes else self.frame.after or [end]
        self._writes, self._said = writes, set[str]()

    def encode(self, rows: Sequence[tuple[Record, Answered]], tally: Tally) -> list[Encoded | None]:
        """The tokens of each row, None for unusable rows."""
        texts = {n: (str(a.prompt), str(a.response)) for n, (_, a) in enumerate(rows) if isinstance(a.prompt, str)}
        found: dict[int, Encoded] = dict(zip(texts, self._texts(list(texts.values())), strict=True))
        if len(texts) < len(rows) and self._writes and not self.two_sided:
            self._check_end()
        for number, (record, answered) in enumerate(rows):
            if number not in texts:
                try:
                    found[number] = self._dialogue(answered)
                except BadRow as reason:
                    tally.leave_out(record, str(reason))
        return [found.get(number) for number in range(len(rows))]

    def chat_writer(self) -> ChatWriter:
        """The renderer of dialogues, else a ``UserError``."""
        if self.writer is None:
            advice = "set task.chat_template, for instance to human_assistant"
            raise UserError(f"the rows are dialogues but the tokenizer has no chat template: {advice}")
        return self.writer

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of prompts as in generation; an encoder's with its end token."""
        return [self._prompt(ids) for ids in encode_batch(self.tokenizer, texts)]

    def chat_prompt(self, messages: list[Message], variables: Variables = NONE) -> list[int]:
        """The ids before the answer to these messages; raises ``BadRow`` if there can be none."""
        return self._chat_ids(self._checked(messages, variables), variables)

    def _warn_once(self, text: str) -> None:
        if text not in self._said:
            logger.warning(text)
        self._said.add(text)

    def _check_end(self) -> None:
        """Warns if the chat template never lets the end of an answer be learned."""
        ids, _ = encode_marked(self.tokenizer, self.chat_writer().behind())
        if not {*self.tokenizer.added_tokens_decoder, self.end_id}.intersection(ids):
            self._warn_once(
                "the chat template puts no special token behind an answer that is learned, so the model does not learn "
                "to end its answers: write eos_token there, within {% generation %} if the template has it"
            )

    def _checked(self, messages: Any, variables: Variables) -> list[Message]:
        """The messages, if they can be used; says once what the template leaves out."""
        writer = self.chat_writer()
        checked = writer.checked(messages, variables)
        for part in unread(writer.template(variables), checked, variables):
            self._warn_once(f"rows have {part}, which the chat template leaves out: the model does not see them")
        return checked

    def _chat_ids(self, messages: list[Message], variables: Variables) -> list[int]:
        ids, _ = encode_marked(self.tokenizer, self.chat_writer().prompt(messages, variables))
        return self.frame.join(ids).ids if self.two_sided else ids

    def _prompt(self, ids: list[int]) -> list[int]:
        return self.frame.join(ids).ids if self.two_sided else [*self.frame.before, *ids]

    def _texts(self, pairs: list[tuple[str, str]]) -> list[Encoded]:
        columns = ([p for p, _ in pairs], [r for _, r in pairs], [p + r for p, r in pairs])
        found = []
        for prompt, response, whole in zip(*(encode_batch(self.tokenizer, c) for c in columns), strict=True):
            if not self.two_sided and whole[: len(prompt)] == prompt:
                response = whole[len(prompt) :]
            found.append(self._answer(self._prompt(prompt), response))
        return found

    def _answer(self, prompt: list[int], response: list[int]) -> Encoded:
        ids = [*response, *self.ends] if self.target_frame is None else self.target_frame.join(response).ids
        return Encoded(prompt, ids, [True] * len(ids))

    def _dialogue(self, answered: Answered) -> Encoded:
        variables, first = answered.variables, len(answered.prompt)
        messages = self._checked([*answered.prompt, *answered.response], variables)
        answers = [n for n, message in enumerate(messages) if n >= first and message["role"] == "assistant"]
        if not answers:
            raise BadRow("the dialogue has no answer of the assistant")
        if self.two_sided:  # the encoder reads everything before the last answer
            answer = messages[answers[-1]]
            more = sorted(answer.keys() - {"role", "content"})
            if more:
                raise BadRow(f"the answer has {', '.join(more)}, of which an encoder-decoder learns nothing")
            response = encode(self.tokenizer, answer["content"])
            return self._answer(self._chat_ids(messages[: answers[-1]], variables), response)
        rendered = self.chat_writer().write(messages, first, variables)
        ids, offsets = encode_marked(self.tokenizer, rendered.text)
        # A token is learned if it contains a character of an answer.
        spans = np.array(rendered.learned)
        starts, ends = np.array(offsets).T
        learned = ((starts[:, None] < spans[:, 1]) & (ends[:, None] > spans[:, 0]) & (ends > starts)[:, None]).any(1)
        if not learned.any():
            raise BadRow("the chat template leaves out the answers")
        start = int(np.argmax(learned))
        return Encoded(ids[:start], ids[start:], learned[start:].tolist())


def check_prompt(ids: Sequence[int], longest: int) -> None:
    """Raises ``BadRow`` if a prompt is longer than ``longest`` tokens."""
    if len(ids) > longest:
        raise BadRow(f"the prompt is longer than the context of {longest} tokens")


def encode_prompts(
    encoder: ResponseEncoder, records: Sequence[Record], reader: PromptReader, tally: Tally, longest: int
) -> list[tuple[Record, list[int]]]:
    """The usable rows with the ids of their prompts, at most ``longest`` tokens, as in generation."""
    rows = read_rows(records, reader.read, tally)
    texts = iter(encoder.prompts([prompt for _, prompt in rows if isinstance(prompt, str)]))
    usable = []
    for record, prompt in rows:
        try:
            ids = next(texts) if isinstance(prompt, str) else encoder.chat_prompt(prompt, reader.variables(record))
            check_prompt(ids, longest)
            if not ids:
                raise BadRow("the prompt has no tokens")
            usable.append((record, ids))
        except BadRow as reason:
            tally.leave_out(record, str(reason))
    return usable


class ResponseConfig(TaskSchema):
    """Settings of the objectives whose rows contain prompts, responses or dialogues."""

    reads = "records"
    scored = False
    frame_tokens = ("sep",)  # an encoder's input and a decoder's target end with it

    columns: dict[str, str] = Field({}, description="column names of the data that differ: {prompt: question}")
    chat_template: str | None = Field(
        None, description="template of dialogues: Jinja, or human_assistant; default: the tokenizer's"
    )
    bad_rows: BadRows = Field("report", description="unusable rows: report: skip them with a warning; error: stop")

    @property
    def dialogue_template(self) -> str | None:
        """The configured chat template."""
        return self.chat_template

    def parts(self, record: Record) -> Sequence[Any]:
        """Prompt and responses, each a text or messages; raises ``BadRow`` if the record cannot be used."""
        raise NotImplementedError

    def texts(self, record: Record) -> list[str]:
        """The texts of a record, none of an unusable one; raises a ``UserError`` for it if ``bad_rows`` is error."""
        found: list[str] = []
        for _, parts in read_rows([record], self.parts, Tally(self.bad_rows)):
            for part in parts:
                messages = part if isinstance(part, list) else [part]
                found += strings([{**m, "role": None} if isinstance(m, dict) else m for m in messages])
        return found


@dataclass(frozen=True, eq=False)
class ResponseTask(Task):
    """Base class of the objectives on responses of a decoder or an encoder-decoder."""

    @cached_property
    def encoder(self) -> ResponseEncoder:
        """Text to tokens."""
        return ResponseEncoder(self.tokenizer, self.config.chat_template, self.two_sided)

    @property
    def target_length(self) -> int | None:
        """Longest response of an encoder-decoder, tokens; None for a decoder, whose rows have the prompt too."""
        return (self.config.target_length or self.sequence_length) if self.two_sided else None

    @property
    def room(self) -> int:
        """Tokens of a row: a decoder's last label is not an input."""
        return self.sequence_length + (not self.two_sided)

    def fitted(self, encoded: Encoded, record: Record, tally: Tally) -> Encoded | None:
        """``encoded`` with the response truncated to fit, its end not learned; None if the prompt alone is too long."""
        target = self.target_length
        try:
            check_prompt(encoded.prompt, self.room - (target is None))
        except BadRow as reason:
            tally.leave_out(record, str(reason))
            return None
        room = self.room - len(encoded.prompt) if target is None else target
        if any(encoded.learned[room:]):
            tally.cut.append(where(record))
        return Encoded(encoded.prompt, encoded.response[:room], encoded.learned[:room])

    def encode_pairs(
        self, records: Sequence[Record], read: Callable[[Record], Pair], tally: Tally
    ) -> list[tuple[Record, Pair]]:
        """The usable rows, each with the tokens of its two sides."""
        rows = read_rows(records, read, tally)
        for side in Pair._fields:
            encoded = self.encoder.encode([(record, pair._asdict()[side]) for record, pair in rows], tally)
            kept = []
            for (record, pair), one in zip(rows, encoded, strict=True):
                if one is not None and (fits := self.fitted(one, record, tally)) is not None:
                    kept.append((record, pair._replace(**{side: fits})))
            rows = kept
        tally.cut[:] = dict.fromkeys(tally.cut)  # a pair with two truncated sides counts once
        usable = []
        for record, pair in rows:
            if pair.chosen == pair.rejected:
                tally.leave_out(record, "chosen and rejected are equal after truncation")
            else:
                usable.append((record, pair))
        return usable

    def table(
        self,
        examples: Sequence[Example],
        tally: Tally,
        records: Sequence[Record] | None = None,
        fill: dict[str, float] | None = None,
        stacked: Sequence[str] = (),
    ) -> ExampleRows:
        """The rows of a split, with the skipped ones; logs what was skipped and truncated."""
        target = self.target_length
        tally.report(f" to fit {target or self.sequence_length} tokens")
        lengths = {name: target for name in ("decoder_input_ids", "decoder_segment_ids", "labels") if target}
        fills = {**FILL, "segment_ids": 0, "decoder_segment_ids": 0, **(fill or {})}
        rows = ExampleRows(examples, self.sequence_length, fills, lengths, stacked=stacked)
        rows.left_out, rows.records = tally.left_out, records
        return rows
