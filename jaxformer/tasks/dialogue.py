"""Dialogues as text: the chat template of a tokenizer, and which characters of its text are the assistant's."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxformer.schema import UserError
from jaxformer.tasks.bad_rows import BadRow
from jaxformer.tokenizers import PreTrainedTokenizer, named_special_tokens, special_tokens

Message = dict[str, str]
# Templates by name, for tokenizers that bring none. The first is the form of Anthropic's HH-RLHF dialogues (Bai et al.
# 2022), each answer ended by the tokenizer's end of text.
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
    "the chat template does not write a dialogue turn by turn, so that what the assistant says cannot be told; put "
    "{% generation %} and {% endgeneration %} around it, or set task.chat_template"
)
ROLES = {"Human": "user", "Assistant": "assistant"}


def choose_template(configured: str | None, tokenizer: PreTrainedTokenizer) -> str | None:
    """The template that ``task.chat_template`` names or spells out, else the tokenizer's, else None.

    Raises:
        UserError: if it is neither a name nor a Jinja text.
    """
    if configured is None:
        return tokenizer.chat_template
    if configured not in TEMPLATES and "{" not in configured:
        raise UserError(
            f"task.chat_template is {configured!r}, expected a Jinja text or one of {', '.join(TEMPLATES)}; "
            "leave it out to take the tokenizer's"
        )
    return TEMPLATES.get(configured, configured)


class Written(NamedTuple):
    """A dialogue as text, and the characters ``[start, end)`` of it that are to be learned."""

    text: str
    learned: list[tuple[int, int]]


class ChatWriter:
    """Writes dialogues by a chat template.

    The assistant's part of the text is what the template puts into ``{% generation %}`` blocks. A template without such
    blocks is asked for the dialogue turn by turn: an answer is what it adds to what it writes before that answer.

    Args:
        template: the Jinja text.
        tokenizer: whose end-of-text token and other special tokens the template may write.

    Raises:
        UserError: if the template does not work at all.
    """

    def __init__(self, template: str, tokenizer: PreTrainedTokenizer) -> None:
        self._template = template
        self._special = special_tokens(tokenizer)
        self._variables: dict[str, Any] = named_special_tokens(tokenizer)
        # What fails here is the template's fault, what fails later the dialogue's.
        sample = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        if not any(end > start for start, end in self.write(sample).learned):
            raise UserError("the chat template writes nothing for an assistant's message, expected its content")

    def _render(self, messages: Sequence[Message], prompt: bool, mark: bool = False) -> Written:
        """What the template writes; with ``mark``, the characters within its ``{% generation %}`` blocks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self._template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=mark and "generation" in self._template,
                **self._variables,
            )
        except Exception as error:  # a template can raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the chat template fails or refuses the dialogue: {reason[:200]}") from error
        return Written(texts[0], [tuple(span) for span in spans[0]] if spans else [])

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text that an answer to these messages follows."""
        return self._render(messages, True).text

    def write(self, messages: Sequence[Message], first: int = 0) -> Written:
        """The whole dialogue; the assistant's messages from number ``first`` on are to be learned.

        Raises:
            BadRow: if the template refuses the dialogue.
            UserError: if it neither marks the assistant's text nor writes a dialogue turn by turn.
        """
        whole = self._render(messages, False, mark=True)
        if whole.learned:
            begin = len(self._before(messages, first, whole.text)) if first else 0
            return Written(whole.text, [span for span in whole.learned if span[0] >= begin])
        learned = []
        for number in range(first, len(messages)):
            if messages[number]["role"] == "assistant":
                before = self._before(messages, number, whole.text)
                after = self._render(messages[: number + 1], False).text
                if not (after.startswith(before) and whole.text.startswith(after)):
                    raise UserError(NO_ANSWERS)
                learned.append((len(before), len(after)))
        return Written(whole.text, learned)

    def _before(self, messages: Sequence[Message], number: int, whole: str) -> str:
        """What the template writes before the answer of this number."""
        before = self.prompt(messages[:number])
        if not whole.startswith(before):
            raise UserError(NO_ANSWERS)
        return before

    def checked(self, messages: Any) -> list[Message]:
        """Messages with a role and a text each.

        Raises:
            BadRow: if they are none, or a text holds a special token, which it would be read as.
        """
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise BadRow("expected a list of messages with role and content")
        found = []
        for number, message in enumerate(messages, 1):
            role, text = (message.get(k) if isinstance(message, Mapping) else None for k in ("role", "content"))
            if not isinstance(role, str) or not isinstance(text, str):
                raise BadRow(f"message {number} has no role and content of text")
            if role == "assistant" and not text.strip():
                raise BadRow("an answer is empty")
            special = next((token for token in self._special if token in text), None)
            if special is not None:
                raise BadRow(f"a message holds the special token {special}")
            found.append({"role": role, "content": text})
        return found


def split_dialogue(text: str) -> list[Message]:
    """The messages of a dialogue written as ``\\n\\nHuman: ...\\n\\nAssistant: ...``.

    >>> split_dialogue("\\n\\nHuman: Hi\\n\\nAssistant: Hello.")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello.'}]

    Raises:
        BadRow: if it does not begin so.
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
        raise BadRow("the dialogue does not begin with a blank line and Human:")
    return [{"role": message["role"], "content": message["content"].strip()} for message in messages]
