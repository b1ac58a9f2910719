"""Readers of prompts, responses and preference pairs in rows of different formats."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxformer.tasks.chat_template import NONE, Message, Variables, split_dialogue
from jaxformer.tasks.records import BadRow, Record

RowFormat = Literal["auto", "alpaca", "completion", "messages"]
Turns = str | list[Message]
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
SIDES = ("chosen", "rejected")
# Columns for the chat template.
VARIABLES = ("tools", "chat_template_kwargs")
PROMPT_COLUMNS = ("messages", "prompt", "instruction", *SIDES)
# The template of Stanford's Alpaca (Taori et al. 2023).
ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n"
)
PAIRED = ", paired with an input that provides further context"
ANSWER = "\n\nAssistant:"  # of HH-RLHF
DIFFER = "the two dialogues differ before their last message"


class Answered(NamedTuple):
    """A prompt and its response, both text or both messages; the prompt's messages are not learned.

    ``variables`` are for the chat template.
    """

    prompt: Turns
    response: Turns
    variables: Variables = NONE


class Pair(NamedTuple):
    """The preferred and the other response, each with the prompt."""

    chosen: Any
    rejected: Any


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The prompt of an Alpaca row.

    >>> alpaca_prompt("Add.", "1 2").splitlines()[2:]
    ['### Instruction:', 'Add.', '', '### Input:', '1 2', '', '### Response:']
    """
    given = f"\n\n### Input:\n{context}" if context.strip() else ""
    return ALPACA.format(paired=PAIRED if given else "") + instruction + given + "\n\n### Response:"


class ColumnReader:
    """Base class of the readers; ``columns`` are the data's column names by ours, where they differ.

    With ``as_messages``, rows that have a text format of their own are converted to messages for a chat template.
    """

    def __init__(self, columns: Mapping[str, str], as_messages: bool = False) -> None:
        self._columns, self._as_messages = columns, as_messages

    def _name(self, name: str) -> str:
        return self._columns.get(name, name)

    def _value(self, record: Record, name: str) -> Any:
        return record.get(self._name(name))

    def _text(self, record: Record, name: str) -> str:
        value = self._value(record, name)
        if not isinstance(value, str):
            kind = "nothing" if value is None else type(value).__name__
            raise BadRow(f"column {self._name(name)!r} contains {kind}, expected text")
        return value

    def variables(self, record: Record) -> Variables:
        """The template's variables beside the messages: ``tools``, and all in ``chat_template_kwargs``.

        Either may be text in JSON, as in tables, where all rows have the same keys.

        Raises:
            BadRow: a column holds something else.
        """
        tools, more = (self._json(record, name) for name in VARIABLES)
        if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
            raise BadRow(f"column {self._name('tools')!r} contains {tools!r:.60}, expected a list of JSON schemas")
        if more is not None and not isinstance(more, dict):
            raise BadRow(f"column {self._name(VARIABLES[1])!r} contains {more!r:.60}, expected a dictionary")
        return {**({} if tools is None else {"tools": tools}), **(more or {})}

    def _json(self, record: Record, name: str) -> Any:
        """The value in a column, from text if it is text in JSON; None if there is none."""
        value = self._value(record, name)
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value) if value.strip() else None
        except ValueError:
            raise BadRow(f"column {self._name(name)!r} contains {value!r:.60}, expected JSON") from None

    def _instruction(self, record: Record) -> Turns:
        """The prompt of an Alpaca row; as a message, the input follows the instruction after an empty line."""
        context = "" if self._value(record, "input") is None else self._text(record, "input")
        instruction = self._text(record, "instruction")
        if not self._as_messages:
            return alpaca_prompt(instruction, context)
        return [{"role": "user", "content": f"{instruction}\n\n{context}" if context.strip() else instruction}]


class RowReader(ColumnReader):
    """Reads prompt and response of a row of one format, or ``auto``: the first of ``COLUMNS`` with all its columns."""

    def __init__(self, form: RowFormat, columns: Mapping[str, str], as_messages: bool = False) -> None:
        super().__init__(columns, as_messages)
        self._form = form

    def _form_of(self, record: Record) -> str:
        if self._form != "auto":
            return self._form
        for form, names in COLUMNS.items():
            if all(self._value(record, name) is not None for name in names):
                return form
        if isinstance(record.get("error"), str):
            raise BadRow("the row is an error of the command that wrote the file")
        wanted = ", or ".join(" and ".join(map(self._name, names)) for names in COLUMNS.values())
        raise BadRow(f"a column is missing, expected {wanted}")

    def read(self, record: Record) -> Answered:
        """Prompt and response; ``BadRow`` if a column is missing or contains no text, or the response is empty."""
        form = self._form_of(record)
        if form == "messages":
            return Answered([], self._value(record, "messages"), self.variables(record))
        if form == "completion":
            prompt, response = self._value(record, "prompt"), self._value(record, "completion")
            if isinstance(prompt, list | tuple) and isinstance(response, list | tuple):
                return Answered(list(prompt), list(response), self.variables(record))
            prompt, response = self._text(record, "prompt"), self._text(record, "completion")
        else:
            prompt, response = self._instruction(record), self._text(record, "output")
        if not response.strip():
            raise BadRow("the response is empty")
        if isinstance(prompt, str):
            return Answered(prompt, response)
        return Answered(prompt, [{"role": "assistant", "content": response}], self.variables(record))


class PairReader(ColumnReader):
    """Reads the two sides of a preference pair.

    A row has ``prompt``, ``chosen`` and ``rejected``, texts or lists of messages; or ``chosen`` and ``rejected``, two
    dialogues: messages, or text in the format of HH-RLHF, which is converted where there is a chat template.
    """

    def read(self, record: Record) -> Pair:
        """The two sides; raises ``BadRow`` if a side is missing or empty, both are equal, or their prompts differ."""
        prompt, *sides = (self._value(record, name) for name in ("prompt", *SIDES))
        for name, side in zip(SIDES, sides, strict=True):
            if side is None:
                raise BadRow(f"column {self._name(name)!r} is missing")
        parts = sides if prompt is None else [prompt, *sides]
        if not any(all(isinstance(part, kind) for part in parts) for kind in (str, list | tuple)):
            raise BadRow("prompt, chosen and rejected are not all text or all messages")
        pair = Pair(*(self._side(prompt, side) for side in sides))
        if not isinstance(sides[0], str):
            pair = Pair(*(side._replace(variables=self.variables(record)) for side in pair))
        if pair.chosen.prompt != pair.rejected.prompt:
            raise BadRow(DIFFER)
        if prompt is None and isinstance(sides[0], str):
            pair = Pair(*map(self._converted, pair))
        for name, answered in zip(SIDES, pair, strict=True):
            if isinstance(answered.response, str) and not answered.response.strip():
                raise BadRow(f"the {name} response is empty")
        if pair.chosen == pair.rejected:
            raise BadRow("chosen and rejected are equal")
        return pair

    def _side(self, prompt: Any, side: Any) -> Answered:
        if isinstance(side, str):
            if prompt is not None:
                return Answered(prompt, side)
            return Answered(*split_answer(side))
        if prompt is not None:
            return Answered(list(prompt), list(side))
        if len(side) < 2:
            raise BadRow("a dialogue has fewer than two messages")
        return Answered(list(side[:-1]), list(side[-1:]))

    def _converted(self, side: Answered) -> Answered:
        """A side in the format of HH-RLHF with the mark of the answer in its prompt, or as messages."""
        assert isinstance(side.prompt, str) and isinstance(side.response, str)
        if not self._as_messages:
            return Answered(side.prompt + ANSWER, side.response)
        return Answered(split_dialogue(side.prompt), [{"role": "assistant", "content": side.response.strip()}])


class PromptReader(ColumnReader):
    """Reads the prompt of a row of any format.

    The first of these columns decides: ``messages``, a dialogue up to its last answer, or as a whole if it does not end
    with one; ``prompt``, text or messages; ``instruction`` with ``input``, in Alpaca's template; ``chosen`` and
    ``rejected``, dialogues as messages or as text in the format of HH-RLHF.
    """

    def read(self, record: Record) -> Turns:
        """The prompt; raises ``BadRow`` if there is none."""
        form = next((name for name in PROMPT_COLUMNS if self._value(record, name) is not None), None)
        if form is None:
            raise BadRow(f"there is no prompt, expected a column {', '.join(map(self._name, PROMPT_COLUMNS[:-1]))}")
        if form == "messages":
            return self._before_answer(record, form)
        if form == "instruction":
            if not self._text(record, form).strip():
                raise BadRow("the instruction is empty")
            return self._instruction(record)
        prompt = self._value(record, form) if form == "prompt" else self._of_pair(record)
        if not isinstance(prompt, str):
            prompt = _messages(prompt, self._name(form))
            if prompt and _role(prompt[-1]) == "assistant":
                raise BadRow("the prompt ends with an answer")
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise BadRow("the prompt is empty")
        return prompt

    def _of_pair(self, record: Record) -> Turns:
        """The common prompt of the two sides."""
        sides = {name: side for name in SIDES if (side := self._value(record, name)) is not None}
        if not all(isinstance(side, str) for side in sides.values()):
            prompts: list[Any] = [self._before_answer(record, name) for name in sides]
        else:
            prompts = [split_answer(side)[0] for side in sides.values()]
        if any(prompt != prompts[0] for prompt in prompts):
            raise BadRow(DIFFER)
        if not isinstance(prompts[0], str):
            return prompts[0]
        return split_dialogue(prompts[0]) if self._as_messages else prompts[0] + ANSWER

    def _before_answer(self, record: Record, name: str) -> list[Message]:
        """A dialogue without its last message if that is an answer."""
        messages = _messages(self._value(record, name), self._name(name))
        if messages and _role(messages[-1]) == "assistant":
            messages = messages[:-1]
        if not messages or _role(messages[-1]) == "assistant":
            raise BadRow("the dialogue has no message to answer")
        return messages


def split_answer(dialogue: str) -> tuple[str, str]:
    """A dialogue in the format of HH-RLHF before and after the mark of its last answer.

    >>> split_answer("\\n\\nHuman: Hi\\n\\nAssistant: Hello.")
    ('\\n\\nHuman: Hi', ' Hello.')

    Raises:
        BadRow: there is no answer.
    """
    before, mark, after = dialogue.rpartition(ANSWER)
    if not mark:
        raise BadRow("a dialogue has no line that begins with Assistant:")
    return before, after


def _messages(value: Any, name: str) -> list[Message]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadRow(f"column {name!r} contains {type(value).__name__}, expected text or a list of messages")
    return list(value)


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None
