"""Conversations as text: the chat template of a tokenizer applied to a list of messages."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxformer.hub.chat_sandbox import CUT, END, START, write
from jaxformer.schema import UserError, nearest


@dataclass
class Rendered:
    """A conversation as text.

    Attributes:
        text: what the template wrote.
        generated: the characters ``[start, end)`` within ``{% generation %}`` blocks: what the assistant said.
    """

    text: str
    generated: list[tuple[int, int]] = field(default_factory=list)


def _plain(value: Any) -> Any:
    """The value made of JSON's types alone, so that a template meets no methods but those of strings and the like."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump())
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _plain(value.item())
    raise UserError(f"a chat template was given a {type(value).__name__}, expected text, numbers, lists and mappings")


def _take_marks(marked: str) -> Rendered:
    """The text without its marks, and where they were."""
    text: list[str] = []
    spans: list[tuple[int, int]] = []
    length, start = 0, None
    for piece in re.split(f"({START}|{END})", marked):
        if piece == START:
            start = length if start is None else start
        elif piece == END:
            if start is not None:
                spans.append((start, length))
            start = None
        else:
            text.append(piece)
            length += len(piece)
    return Rendered("".join(text), spans)


def _with_cut(messages: list[dict[str, Any]], key: str) -> str:
    """Puts the mark of the end behind the last message's text, and returns that text."""
    content = messages[-1].get(key)
    if isinstance(content, list):
        block = next((b for b in reversed(content) if isinstance(b, dict) and "text" in b), None)
        if block is not None:
            text, block["text"] = str(block["text"]), f"{block['text']}{CUT} "
            return text
    elif content is not None:
        messages[-1][key] = f"{content}{CUT} "
        return str(content)
    raise UserError(f"continue_final_message needs text in the {key!r} of the last message, got none")


def _cut(rendered: str, final: str) -> str:
    """The text up to the mark. A template that trims the message has trimmed the blank behind the mark too."""
    at = rendered.rfind(CUT)
    if at < 0 or final.strip() not in rendered:
        raise UserError("continue_final_message: the chat template leaves out or changes the last message's text")
    return rendered[:at] if rendered[at + 1 : at + 2] == " " else rendered[:at].rstrip()


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    continue_final_message: bool | str = False,
    mark_generation: bool = False,
) -> Rendered:
    """Renders one conversation.

    Args:
        template: the Jinja text.
        messages: the messages; keys whose value is None are left out, as templates expect.
        variables: what else the template may read: ``tools``, ``add_generation_prompt``, ``bos_token`` ...
        continue_final_message: end right behind the last message's text (or its field of that name).
        mark_generation: find the ``{% generation %}`` blocks.

    Returns:
        The text, and the characters that the assistant generated.

    Raises:
        UserError: the conversation is none, or the template is wrong, refuses it or is stopped.
    """
    if not messages or not all(isinstance(message, Mapping) for message in messages):
        raise UserError("a conversation is a list of at least one message like {'role': 'user', 'content': 'Hi'}")
    try:
        plain = [{k: v for k, v in _plain(message).items() if v is not None} for message in messages]
        given = {key: _plain(value) for key, value in variables.items()}
        text = json.dumps([plain, given], ensure_ascii=False)
    except RecursionError:
        raise UserError("the conversation holds lists within lists without end, expected messages") from None
    if any(mark in text for mark in (START, END, CUT)):
        raise UserError("the conversation has the characters U+FDD0 to U+FDD2, which no text has; remove them")
    reserved = sorted({"messages", "range", "mark_generation"} & given.keys())
    if reserved:
        raise UserError(f"{reserved[0]} is not free as a variable of a chat template; use another name")
    final = None
    if continue_final_message:
        final = _with_cut(plain, continue_final_message if isinstance(continue_final_message, str) else "content")
    written = write(template, {**given, "messages": plain, "mark_generation": mark_generation})
    return Rendered(_cut(written, final)) if final is not None else _take_marks(written)


def choose_template(templates: str | Mapping[str, str] | None, wanted: str | None, has_tools: bool) -> str:
    """The template to use: the one wanted, by its name or as text, else ``tool_use`` for tools, else ``default``.

    Raises:
        UserError: there is none.
    """
    if wanted is not None:
        named = templates if isinstance(templates, Mapping) else {}
        if wanted not in named and "{" not in wanted:
            raise UserError(
                f"chat_template is {wanted!r}, expected a Jinja text"
                + (f" or one of {', '.join(sorted(named))}{nearest(wanted, named)}" if named else "")
            )
        return named.get(wanted, wanted)
    if isinstance(templates, Mapping):
        name = "tool_use" if has_tools and "tool_use" in templates else "default"
        if name not in templates:
            raise UserError(
                f"the tokenizer has the chat templates {', '.join(sorted(templates))} and none of them is the default; "
                "name one with chat_template="
            )
        return templates[name]
    if templates is None:
        raise UserError("the tokenizer has no chat template; give one with chat_template=, or use a model made to chat")
    return templates


def read_templates(value: Any, where: str) -> str | dict[str, str] | None:
    """The ``chat_template`` of a ``tokenizer_config.json``: one text, or a list of named ones.

    Raises:
        UserError: it is something else.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values()):
        return {str(name): text for name, text in value.items()}
    if isinstance(value, list):
        named = [t for t in value if isinstance(t, dict) and isinstance(t.get("template"), str)]
        if len(named) == len(value) and all(isinstance(t.get("name"), str) for t in named):
            return {t["name"]: t["template"] for t in named}
    raise UserError(f"{where}: chat_template is a {type(value).__name__}, expected text or a list of named templates")


def require_tools(tools: Any) -> list[dict[str, Any]] | None:
    """The tools as JSON schemas, None for none.

    Raises:
        UserError: one is not a mapping: a function's schema is not derived here.
    """
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError("tools is a list of JSON schemas, expected mappings; write a function's schema out")
    return [dict(tool) for tool in tools]
