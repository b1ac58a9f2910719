"""Prompts to answer: found in a row of any data set that is read here, turned into tokens as generation meets them."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxformer.schema import UserError
from jaxformer.tasks.bad_rows import BadRow, Tally
from jaxformer.tasks.dialogue import Message
from jaxformer.tasks.preferences import DIFFER, SIDES, split_answer, written_prompt
from jaxformer.tasks.records import Record
from jaxformer.tasks.responses import ColumnReader, ResponseEncoder, too_long

ANSWERER = "assistant"
NAMES = ("messages", "prompt", "instruction", *SIDES)


class PromptReader(ColumnReader):
    """Finds the prompt of a row, whatever else the row has.

    The first of these columns that a row has says what it is: ``messages``, a dialogue up to its last answer, or all of
    it if somebody else has the last word; ``prompt``, text or messages; ``instruction`` with ``input``, in Alpaca's
    template; ``chosen`` and ``rejected``, whole dialogues, messages or text as HH-RLHF writes it.

    Args:
        columns: the data's names of columns by ours, where they differ.
        as_messages: whether Alpaca's instructions and HH-RLHF's texts become messages, for a chat template to write.
    """

    def read(self, record: Record) -> str | list[Message]:
        """The prompt, text or messages, which the encoder checks.

        Raises:
            BadRow: if there is none.
        """
        form = next((name for name in NAMES if self._value(record, name) is not None), None)
        if form is None:
            raise BadRow(f"there is no prompt, expected a column {', '.join(map(self._name, NAMES[:-1]))}")
        if form == "messages":
            return before_answer(self._value(record, form))
        if form == "instruction":
            if not self._text(record, form).strip():
                raise BadRow("the instruction is empty")
            return self._instruction(record)
        prompt = self._value(record, form) if form == "prompt" else self._of_pair(record)
        if isinstance(prompt, str):
            if not prompt.strip():
                raise BadRow("the prompt is empty")
            return prompt
        messages = _messages(prompt, self._name(form))
        if not messages or _role(messages[-1]) == ANSWERER:
            raise BadRow("the prompt ends with an answer" if messages else "the prompt is empty")
        return messages

    def _of_pair(self, record: Record) -> str | list[Message]:
        """The prompt that the sides share."""
        sides = {name: value for name in SIDES if (value := self._value(record, name)) is not None}
        if all(isinstance(side, str) for side in sides.values()):
            befores: list[Any] = [split_answer(side)[0] for side in sides.values()]
        else:
            befores = [before_answer(side, self._name(name)) for name, side in sides.items()]
        if any(before != befores[0] for before in befores):
            raise BadRow(DIFFER)
        return written_prompt(befores[0], self._as_messages) if isinstance(befores[0], str) else befores[0]


def before_answer(value: Any, name: str = "messages") -> list[Message]:
    """What a dialogue holds before its last message if that is an answer, else all of it.

    Raises:
        BadRow: if nothing is left.
    """
    messages = _messages(value, name)
    if messages and _role(messages[-1]) == ANSWERER:
        messages = messages[:-1]
    if not messages or _role(messages[-1]) == ANSWERER:
        raise BadRow("the dialogue has no message to answer")
    return messages


def _messages(value: Any, name: str) -> list[Message]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadRow(f"column {name!r} holds {type(value).__name__}, expected text or a list of messages")
    return list(value)


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def encode_prompts(
    encoder: ResponseEncoder, records: Sequence[Record], reader: PromptReader, tally: Tally, longest: int
) -> list[tuple[Record, list[int]]]:
    """The rows that can be used, each with the ids of its prompt as generation meets them; the tally has the others.

    Args:
        encoder: of texts and dialogues.
        records: the rows.
        reader: finds the prompts.
        tally: of what cannot be used.
        longest: most tokens of a prompt.

    Raises:
        UserError: if there are dialogues and no template to write them.
    """
    found: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for number, record in enumerate(records):
        try:
            prompt = reader.read(record)
            if isinstance(prompt, str):
                texts[number] = prompt
            else:
                found[number] = chat_prompt(encoder, prompt)
        except BadRow as reason:
            tally.leave_out(record, str(reason))
    found |= zip(texts, encoder.prompts(list(texts.values())), strict=True)
    usable = []
    for number in sorted(found):
        if not found[number]:
            tally.leave_out(records[number], "the prompt has no tokens")
        elif len(found[number]) > longest:
            tally.leave_out(records[number], too_long(longest))
        else:
            usable.append((records[number], found[number]))
    return usable


def chat_prompt(encoder: ResponseEncoder, messages: list[Message]) -> list[int]:
    """The ids of what an answer to these messages follows.

    Raises:
        BadRow: if they are no messages, or the template refuses them.
        UserError: if there is no template.
    """
    checked = encoder.chat_writer().checked(messages)
    try:
        return encoder.chat_prompt(checked)
    except UserError as error:
        raise BadRow(str(error)) from None
