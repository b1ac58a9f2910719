"""Chat templates: a dialogue as text, and the characters of it that are the assistant's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxformer.schema import UserError
from jaxformer.tasks.records import BadRow
from jaxformer.tokenizers import PreTrainedTokenizer, named_special_tokens, special_tokens

# Role and content, and what else a template reads: ``tool_calls``, ``reasoning_content``, ``name``.
Message = dict[str, Any]
Variables = Mapping[str, Any]
NONE: Variables = MappingProxyType({})
# What a template that does not name it leaves out; each with its other names.
PARTS = {
    "tools": ("tools",),
    "documents": ("documents",),
    "tool_calls": ("tool_calls",),
    "reasoning_content": ("reasoning_content", "thinking", "reasoning"),
}
# Named templates for tokenizers without one. The first is the format of Anthropic's HH-RLHF (Bai et al. 2022) with the
# end-of-text token after each answer.
TEMPLATES = {
    "human_assistant": (
        "{%- for message in messages %}"
        "{{- '\\n\\n' + {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}[message.role] + ': ' }}"
        "{{- message.content + (eos_token if message.role == 'assistant' else '') }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '\\n\\nAssistant:' }}{%- endif %}"
    )
}
NO_ANSWERS = (
    "the chat template does not write a dialogue turn by turn, so the assistant's text cannot be located; put "
    "{% generation %} and {% endgeneration %} around it, or set task.chat_template"
)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
ROLES = {"Human": "user", "Assistant": "assistant"}


def choose_template(configured: str | None, tokenizer: PreTrainedTokenizer) -> str | None:
    """The template that ``task.chat_template`` names or contains; default: the tokenizer's, which may be None."""
    if configured is None:
        return tokenizer.chat_template
    if configured not in TEMPLATES and "{" not in configured:
        raise UserError(
            f"task.chat_template is {configured!r}, expected a Jinja template or one of {', '.join(TEMPLATES)}; "
            "leave it out to use the tokenizer's"
        )
    return TEMPLATES.get(configured, configured)


class RenderedDialogue(NamedTuple):
    """A dialogue as text, and the character spans ``[start, end)`` to be learned."""

    text: str
    learned: list[tuple[int, int]]


def strings(value: Any) -> Iterator[str]:
    """The texts in lists and dictionaries, however deep, without the keys.

    >>> list(strings([{"role": "tool", "content": "3"}, {"tool_calls": [{"name": "f"}]}]))
    ['tool', '3', 'f']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from strings(item)


def unread(template: str, messages: Sequence[Mapping[str, Any]], variables: Variables = NONE) -> list[str]:
    """The ``PARTS`` of a dialogue that a template does not name, and so leaves out."""
    given = {key for part in (variables, *messages) for key, value in part.items() if value}
    return [
        part
        for part, names in PARTS.items()
        if not given.isdisjoint(names) and not any(name in template for name in names)
    ]


class ChatWriter:
    """Renders dialogues with a chat template.

    Messages reach it with all their keys, and beside them the ``variables`` of a row: ``tools``, ``documents`` and
    others, as ``apply_chat_template`` of transformers has them.

    The assistant's text is what the template puts into ``{% generation %}`` blocks. A template without such blocks
    renders the dialogue turn by turn: an answer is what it adds to the text before that answer.

    Special tokens are variables of the template. A template that cannot render a dialogue is a ``UserError``.
    """

    def __init__(self, template: str | Mapping[str, str], tokenizer: PreTrainedTokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        self._special = special_tokens(tokenizer)
        self._variables: dict[str, Any] = named_special_tokens(tokenizer)
        # An error here is the template's fault, a later one the dialogue's.
        try:
            learned = self.write([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]).learned
        except BadRow as error:
            raise UserError(str(error)) from error
        if not any(end > start for start, end in learned):
            raise UserError("the chat template renders nothing for an assistant's message, expected its content")

    def template(self, variables: Variables = NONE) -> str:
        """The template, of several that for tools where there are some."""
        if isinstance(self._template, str):
            return self._template
        return str(self._tokenizer.get_chat_template(tools=variables.get("tools")))

    def _render(
        self, messages: Sequence[Message], prompt: bool, variables: Variables, mark: bool = False
    ) -> RenderedDialogue:
        """The rendered text; with ``mark``, the spans of its ``{% generation %}`` blocks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            template = self.template(variables)
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=mark and GENERATION.search(template) is not None,
                **{**self._variables, **variables},
            )
        except Exception as error:  # a template can raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadRow(f"the chat template fails or rejects the dialogue: {reason[:200]}") from error
        return RenderedDialogue(texts[0], [tuple(span) for span in spans[0]] if spans else [])

    def prompt(self, messages: Sequence[Message], variables: Variables = NONE) -> str:
        """The text before the answer to these messages; raises ``BadRow`` if the template rejects the dialogue."""
        return self._render(messages, True, variables).text

    def write(self, messages: Sequence[Message], first: int = 0, variables: Variables = NONE) -> RenderedDialogue:
        """The whole dialogue; the assistant's messages from number ``first`` on are to be learned.

        Raises ``BadRow`` if the template rejects the dialogue, ``UserError`` if the assistant's text cannot be located.
        """
        whole = self._render(messages, False, variables, mark=True)
        if whole.learned:
            begin = len(self._before(messages, first, whole.text, variables)) if first else 0
            return whole._replace(learned=[span for span in whole.learned if span[0] >= begin])
        learned = []
        for number in range(first, len(messages)):
            if messages[number]["role"] == "assistant":
                before = self._before(messages, number, whole.text, variables)
                after = self._render(messages[: number + 1], False, variables).text
                end = _end_of(str(messages[number].get("content", "")).strip(), before, after, whole.text)
                if end is None:
                    raise UserError(NO_ANSWERS)
                learned.append((len(before), end))
        return RenderedDialogue(whole.text, learned)

    def behind(self) -> str:
        """The text behind an answer that is learned, which should have its end."""
        answer = "It is 42."
        text, learned = self.write([{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}])
        return "".join(text[start:end] for start, end in learned).rpartition(answer)[2]

    def _before(self, messages: Sequence[Message], number: int, whole: str, variables: Variables) -> str:
        """The text before the message of this number."""
        before = self.prompt(messages[:number], variables)
        if not whole.startswith(before):
            raise UserError(NO_ANSWERS)
        return before

    def checked(self, messages: Any, variables: Variables = NONE) -> list[Message]:
        """Messages with a role and a text or ``tool_calls`` each, without keys that are null.

        Raises:
            BadRow: they are none, or a text in them or in the variables contains a special token.
        """
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise BadRow("expected a list of messages with role and content")
        found = []
        for number, message in enumerate(messages, 1):
            pairs = message.items() if isinstance(message, Mapping) else ()
            given: Message = {key: value for key, value in pairs if value is not None}
            calls = given.get("role") == "assistant" and given.get("tool_calls")
            text = given.get("content", "" if calls else None)
            if not isinstance(given.get("role"), str) or not isinstance(text, str):
                raise BadRow(f"message {number} has no text in role or content")
            if given["role"] == "assistant" and not text.strip() and not calls:
                raise BadRow("an answer is empty")
            found.append(given)
        for what, value in (("a message contains", found), ("tools or other variables of a row contain", variables)):
            special = next((token for text in strings(value) for token in self._special if token in text), None)
            if special is not None:
                raise BadRow(f"{what} the special token {special}")
        return found


def _end_of(answer: str, before: str, after: str, whole: str) -> int | None:
    """The place in a dialogue at which an answer ends, its end included; None if it cannot be located.

    ``before`` is what precedes the answer, ``after`` the dialogue up to and with it. A later turn may take away what
    precedes the answer's content: Qwen3 writes the reasoning of the last turn alone.
    """
    if not after.startswith(before):
        return None
    if whole.startswith(after):
        return len(after)
    place = whole.find(answer, len(before)) if answer else -1
    end = after[after.rfind(answer) + len(answer) :]  # what the template writes behind the content
    taken = place >= 0 and not whole[len(before) : place].strip() and whole.startswith(end, place + len(answer))
    return place + len(answer) + len(end) if taken and end.strip() and answer in after else None


def split_dialogue(text: str) -> list[Message]:
    """The messages of a dialogue in the format ``\\n\\nHuman: ...\\n\\nAssistant: ...``.

    >>> split_dialogue("\\n\\nHuman: Hi\\n\\nAssistant: Hello.")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello.'}]

    Raises:
        BadRow: another format.
    """
    messages: list[Message] = []
    for part in text.split("\n\n"):
        name, colon, content = part.partition(":")
        if colon and name in ROLES:
            messages.append({"role": ROLES[name], "content": content})
        elif messages:
            messages[-1]["content"] += "\n\n" + part
        elif part:
            break
    if not messages:
        raise BadRow("the dialogue does not begin with an empty line and Human:")
    return [{"role": message["role"], "content": message["content"].strip()} for message in messages]
