"""Calls of functions: as models write them, and as clients read them."""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxformer.schema import UserError
from jaxformer.serving.guide import compact


class Form(NamedTuple):
    """How a model writes its calls.

    Attributes:
        begin: what stands before a call.
        end: what stands after it; empty: the text ends there.
        several: True if one list holds all calls.
        arguments: the key of the arguments.
    """

    begin: str
    end: str
    several: bool
    arguments: str


# By what a chat template contains; the last one is for the others: nothing but a JSON object.
FORMS = {
    "<tool_call>": Form("<tool_call>", "</tool_call>", False, "arguments"),  # Hermes, Qwen
    "[TOOL_CALLS]": Form("[TOOL_CALLS]", "", True, "arguments"),  # Mistral
    '"parameters"': Form("", "", False, "parameters"),  # Llama 3
    "": Form("", "", False, "arguments"),
}


def form_of(template: str) -> Form:
    """The form of calls that a chat template shows."""
    return next(form for mark, form in FORMS.items() if mark in template)


class Call(NamedTuple):
    """One call."""

    name: str
    arguments: str  # a JSON object

    def as_message(self, index: int | None = None) -> dict[str, Any]:
        """The call in a message; of a stream with its number."""
        function = {"name": self.name, "arguments": self.arguments}
        call = {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        return call if index is None else {"index": index, **call}


def parse_calls(text: str, form: Form, names: Sequence[str]) -> tuple[str, list[Call]]:
    """The text without its calls, and the calls of functions that exist; all is text if one cannot be read."""
    before, rest = text, ""
    if form.begin:
        before, mark, rest = text.partition(form.begin)
        if not mark:
            return text, []
    elif text.lstrip().startswith(("{", "[")):
        before, rest = "", text
    parts = rest.split(form.begin) if form.begin and not form.several else [rest]
    calls: list[Call] = []
    for part in parts:
        body = part.partition(form.end)[0] if form.end else part
        try:
            found = json.loads(body.strip() or "null")
        except ValueError:
            return text, []
        for call in found if isinstance(found, list) else [found]:
            read = _call(call, names)
            if read is None:
                return text, []
            calls.append(read)
    return before.rstrip() if calls else text, calls


def _call(found: Any, names: Sequence[str]) -> Call | None:
    """A call from its JSON, None if it is none."""
    if not isinstance(found, Mapping) or found.get("name") not in names:
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    return Call(found["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def functions_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The functions by their names.

    Raises:
        UserError: a tool is no function with a name.
    """
    functions = {}
    for number, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, Mapping) or not function.get("name"):
            raise UserError(
                f"tool {number} is {json.dumps(tool)[:80]}, expected "
                '{"type": "function", "function": {"name": ...}}'
            )
        functions[str(function["name"])] = function
    return functions


def grammar_of(functions: Mapping[str, Mapping[str, Any]], form: Form, special: Sequence[str], several: bool) -> str:
    """A grammar (of llguidance's kind) of a text that is calls of these functions.

    ``special`` are the marks that are tokens of their own.
    """

    def mark(text: str) -> str:
        return text if text in special and text.startswith("<") else json.dumps(text)

    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                form.arguments: function.get("parameters") or {"type": "object", "properties": {}},
            },
            "required": ["name", form.arguments],
            "additionalProperties": False,
        }
        for name, function in functions.items()
    ]
    schema: dict[str, Any] = {"anyOf": calls}
    if form.several:
        schema = {"type": "array", "items": schema, "minItems": 1, **({} if several else {"maxItems": 1})}
    begin = f'{mark(form.begin)} "\\n"? ' if form.begin else ""
    end = f' "\\n"? {mark(form.end)}' if form.end else ""
    again = ' ("\\n"? one)*' if several and form.begin and not form.several else ""
    return f"start: one{again}\none: {begin}call{end}\ncall: %json {json.dumps(compact(schema))}\n"
