"""Prompts and responses: found in a row, turned into tokens, with the tokens that are the response's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxformer.schema import UserError
from jaxformer.tasks.bad_rows import BadRow, Tally
from jaxformer.tasks.dialogue import NO_ANSWERS, ChatWriter, Message, choose_template
from jaxformer.tasks.records import Record
from jaxformer.tokenizers import (
    PreTrainedTokenizer,
    encode,
    encode_batch,
    encode_marked,
    find_special,
    prefix_ids,
    special_id,
)

RowFormat = Literal["auto", "alpaca", "completion", "messages"]
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
# The format of Stanford's Alpaca (Taori et al. 2023), character by character.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


class Answered(NamedTuple):
    """A prompt and its response, both text or both messages; the prompt's messages are not learned."""

    prompt: str | list[Message]
    response: str | list[Message]


@dataclass(frozen=True)
class Encoded:
    """A prompt and its response as tokens.

    Attributes:
        prompt: ids before the first that is to be learned; an encoder's input, its end included.
        response: ids from there on, its end included.
        learned: which ids of ``response`` are to be learned; all but those between two answers of a dialogue.
    """

    prompt: list[int]
    response: list[int]
    learned: list[bool]


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The prompt of an Alpaca row.

    >>> alpaca_prompt("Add.", "1 2").splitlines()[2:]
    ['### Instruction:', 'Add.', '', '### Input:', '1 2', '', '### Response:']
    """
    # Not str.format, which would read braces in the text.
    template = ALPACA_WITH_INPUT if context.strip() else ALPACA
    return _filled(template, {"instruction": instruction, "input": context})


def alpaca_message(instruction: str, context: str = "") -> str:
    """The same as what a user says: the instruction, and its input below a blank line.

    >>> alpaca_message("Add.", "1 2"), alpaca_message("Add.", " ")
    ('Add.\\n\\n1 2', 'Add.')
    """
    return f"{instruction}\n\n{context}" if context.strip() else instruction


def _filled(template: str, values: Mapping[str, str]) -> str:
    pieces = template.split("{")
    return pieces[0] + "".join(values[p[: p.index("}")]] + p[p.index("}") + 1 :] for p in pieces[1:])


class ColumnReader:
    """Finds the columns of a row.

    Args:
        columns: the data's names of columns by ours, where they differ.
        as_messages: whether what has a template of its own as text becomes messages, for a chat template to write.
    """

    def __init__(self, columns: Mapping[str, str], as_messages: bool) -> None:
        self._columns, self._as_messages = columns, as_messages

    def _name(self, name: str) -> str:
        return self._columns.get(name, name)

    def _value(self, record: Record, name: str) -> Any:
        return record.get(self._name(name))

    def _text(self, record: Record, name: str) -> str:
        value = self._value(record, name)
        if not isinstance(value, str):
            kind = "nothing" if value is None else type(value).__name__
            raise BadRow(f"column {self._name(name)!r} holds {kind}, expected text")
        return value

    def _instruction(self, record: Record) -> str | list[Message]:
        """The prompt of an Alpaca row."""
        context = "" if self._value(record, "input") is None else self._text(record, "input")
        instruction = self._text(record, "instruction")
        if not self._as_messages:
            return alpaca_prompt(instruction, context)
        return [{"role": "user", "content": alpaca_message(instruction, context)}]


class RowReader(ColumnReader):
    """Finds prompt and response in a row.

    Args:
        form: which columns a row has; ``auto``: the first that fits of messages, prompt and completion, Alpaca's.
        columns: the data's names of columns by ours, where they differ.
        as_messages: whether Alpaca's rows become dialogues.
    """

    def __init__(self, form: RowFormat, columns: Mapping[str, str], as_messages: bool = False) -> None:
        super().__init__(columns, as_messages)
        self._form = form

    def form_of(self, record: Record) -> str:
        """Which of the formats a row has.

        Raises:
            BadRow: if it has none of them.
        """
        if self._form != "auto":
            return self._form
        for form, names in COLUMNS.items():
            if all(self._value(record, name) is not None for name in names):
                return form
        if isinstance(record.get("error"), str):
            raise BadRow("it holds an error of the command that made the file")
        wanted = ", or ".join(" and ".join(map(self._name, names)) for names in COLUMNS.values())
        raise BadRow(f"a column is missing, expected {wanted}")

    def read(self, record: Record) -> Answered:
        """Prompt and response of a row.

        Raises:
            BadRow: if a column is missing, holds no text, or the response is empty.
        """
        form = self.form_of(record)
        if form == "messages":
            return Answered([], self._value(record, "messages"))
        if form == "completion":
            prompt, response = self._value(record, "prompt"), self._value(record, "completion")
            if isinstance(prompt, list | tuple) and isinstance(response, list | tuple):
                return Answered(list(prompt), list(response))
            prompt, response = self._text(record, "prompt"), self._text(record, "completion")
        else:
            prompt, response = self._instruction(record), self._text(record, "output")
        if not response.strip():
            raise BadRow("the response is empty")
        return Answered(prompt, response if isinstance(prompt, str) else [{"role": "assistant", "content": response}])


class ResponseEncoder:
    """Turns prompts and responses into tokens, for a decoder or an encoder-decoder.

    The prompt's tokens are those that the prompt alone has, as generation will meet it, behind what the tokenizer puts
    before a text; the response ends with the end-of-text token. A dialogue is what its chat template writes, in which
    special tokens are read as such.

    Args:
        tokenizer: of the run.
        chat_template: ``task.chat_template``.
        two_sided: for an encoder-decoder: the prompt has an end of its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizer, chat_template: str | None, two_sided: bool = False) -> None:
        self.tokenizer, self.two_sided = tokenizer, two_sided
        template = choose_template(chat_template, tokenizer)
        self.writer = None if template is None else ChatWriter(template, tokenizer)
        end = special_id(tokenizer, "sep") if two_sided else find_special(tokenizer, "eos")
        if end is None:
            raise UserError("the tokenizer has no end-of-text token, expected one to end a response with")
        self._end = end

    def encode(
        self, records: Sequence[Record], read: Callable[[Record], Answered], tally: Tally
    ) -> list[Encoded | None]:
        """What each row becomes, None for rows that cannot be used, which the tally then has."""
        texts: dict[int, tuple[str, str]] = {}
        dialogues: dict[int, tuple[list[Message], int]] = {}
        for number, record in enumerate(records):
            try:
                answered = read(record)
                if isinstance(answered.prompt, str):
                    assert isinstance(answered.response, str)
                    texts[number] = answered.prompt, answered.response
                else:
                    dialogues[number] = self._messages(answered)
            except BadRow as reason:
                tally.leave_out(record, str(reason))
        found: list[Encoded | None] = [None] * len(records)
        for number, encoded in zip(texts, self._texts(list(texts.values())), strict=True):
            found[number] = encoded
        for number, (messages, first) in dialogues.items():
            try:
                found[number] = self._dialogue(messages, first)
            except BadRow as reason:
                tally.leave_out(records[number], str(reason))
            except UserError as error:
                if str(error) == NO_ANSWERS:
                    raise
                tally.leave_out(records[number], str(error))
        return found

    def chat_writer(self) -> ChatWriter:
        """What writes dialogues.

        Raises:
            UserError: if there is no template.
        """
        if self.writer is None:
            raise UserError(
                "the rows are dialogues but the tokenizer has no chat template: set task.chat_template, "
                "for instance to human_assistant"
            )
        return self.writer

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of prompts, as generation meets them; an encoder's with its end."""
        return [self._prompt(ids) for ids in encode_batch(self.tokenizer, texts)]

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of what a dialogue's next answer follows, likewise.

        Raises:
            UserError: if there is no template, or it refuses the dialogue.
        """
        ids, _ = encode_marked(self.tokenizer, self.chat_writer().prompt(messages))
        return [*ids, self._end] if self.two_sided else ids

    def _prompt(self, ids: list[int]) -> list[int]:
        return [*ids, self._end] if self.two_sided else [*prefix_ids(self.tokenizer), *ids]

    def _messages(self, answered: Answered) -> tuple[list[Message], int]:
        messages = self.chat_writer().checked([*answered.prompt, *answered.response])
        first = len(answered.prompt)
        if not any(message["role"] == "assistant" for message in messages[first:]):
            raise BadRow("the dialogue has no answer of the assistant")
        if self.two_sided:  # the encoder reads all before the last answer
            last = max(n for n, message in enumerate(messages) if message["role"] == "assistant")
            return messages[: last + 1], last
        return messages, first

    def _texts(self, pairs: list[tuple[str, str]]) -> list[Encoded]:
        encode = partial(encode_batch, self.tokenizer)
        prompts = encode([prompt for prompt, _ in pairs])
        responses = encode([response for _, response in pairs])
        wholes = encode([prompt + response for prompt, response in pairs])
        found = []
        for prompt, response, whole in zip(prompts, responses, wholes, strict=True):
            if not self.two_sided and whole[: len(prompt)] == prompt:
                response = whole[len(prompt) :]
            found.append(Encoded(self._prompt(prompt), [*response, self._end], [True] * (len(response) + 1)))
        return found

    def _dialogue(self, messages: list[Message], first: int) -> Encoded:
        assert self.writer is not None
        if self.two_sided:
            response = encode(self.tokenizer, messages[-1]["content"])
            return Encoded(self.chat_prompt(messages[:-1]), [*response, self._end], [True] * (len(response) + 1))
        written = self.writer.write(messages, first)
        ids, offsets = encode_marked(self.tokenizer, written.text)
        # A token is learned if it has a character of an answer.
        spans = np.array(written.learned)
        starts, ends = np.array(offsets).T
        learned = ((starts[:, None] < spans[:, 1]) & (ends[:, None] > spans[:, 0]) & (ends > starts)[:, None]).any(1)
        if not learned.any():
            raise BadRow("the chat template leaves out the answers")
        start = int(np.argmax(learned))
        return Encoded(ids[:start], ids[start:], learned[start:].tolist())


def too_long(longest: int) -> str:
    """Why a row is left out whose prompt does not fit."""
    return f"the prompt is longer than the context of {longest} tokens"


def fitted(
    encoded: Encoded, prompt_length: int, response_length: int | None, record: Record, tally: Tally
) -> Encoded | None:
    """What of it fits: the response is cut at its end, which then is not learned; None if the prompt alone is too long.

    Args:
        encoded: of a row.
        prompt_length: tokens there are for the prompt, or without ``response_length`` for both.
        response_length: tokens there are for the response.
        record: the row.
        tally: notes what was cut or left out.
    """
    room = prompt_length - len(encoded.prompt) if response_length is None else response_length
    longest = prompt_length - 1 if response_length is None else prompt_length
    if len(encoded.prompt) > longest:
        tally.leave_out(record, too_long(longest))
        return None
    if len(encoded.response) <= room:
        return encoded
    if any(encoded.learned[room:]):
        tally.cut.append(str(getattr(record, "where", "a record")))
    return Encoded(encoded.prompt, encoded.response[:room], encoded.learned[:room])
