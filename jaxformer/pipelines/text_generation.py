"""Text generation: the continuation of a text or a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from jaxformer.pipelines.base_pipeline import Pipeline, require_text
from jaxformer.pipelines.batching import Row
from jaxformer.pipelines.generation_pipeline import GenerationOptions, GenerationPipeline
from jaxformer.schema import UserError
from jaxformer.tasks.chat_template import strings, unread
from jaxformer.tasks.records import BadRow
from jaxformer.tasks.row_readers import ColumnReader
from jaxformer.tokenizers import special_tokens, splits_special_tokens


class Options(GenerationOptions):
    """Options of text generation."""

    return_full_text: bool = Field(True, description="return the prompt too, not only the new text")
    prefix: str = Field("", description="a text before every prompt, which is not returned")
    add_special_tokens: bool = Field(True, description="add the tokenizer's special tokens; not in conversations")
    continue_final_message: bool | None = Field(
        None, description="continue the last message of a conversation; default: if it is the assistant's"
    )
    tools: list[Any] | None = Field(
        None, description="functions that a conversation may call, in Python or as JSON schemas, for the chat template"
    )
    documents: list[dict[str, Any]] | None = Field(
        None, description="title and text of documents, for the chat template"
    )
    chat_template_kwargs: dict[str, Any] = Field({}, description="other variables of the chat template")


class TextGeneration(GenerationPipeline):
    """A list of ``{"generated_text": ...}`` for each prompt, ``num_return_sequences`` long.

    A conversation, a list of ``{"role": ..., "content": ...}``, gives the conversation with the assistant's message.
    Its messages reach the chat template with all their keys, and ``tools`` with them; a conversation with tools of its
    own is ``{"messages": [...], "tools": [...]}``.
    Without further options 256 tokens are drawn at a temperature of 0.7, as in ``transformers``; draws depend on the
    prompt and ``seed`` alone.
    """

    Options: ClassVar[type[Any]] = Options
    own_defaults: ClassVar[Mapping[str, Any]] = {"do_sample": True, "temperature": 0.7}
    takes = "a text or a conversation"

    def is_one(self, inputs: Any, options: Any) -> bool:
        """A text, or a list of messages."""
        return isinstance(inputs, str | Mapping) or _is_chat(inputs)

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """One row a prompt."""
        rows: list[list[Row]] = [[] for _ in items]
        texts = [number for number, item in enumerate(items) if not _is_chat(item)]
        prompts = [options.prefix + require_text(items[number], "the input") for number in texts]
        found = self.tokenize(prompts, truncation=False, add_special_tokens=options.add_special_tokens) if texts else []
        for number, row in zip(texts, found, strict=True):
            rows[number] = [row]
        for number, item in enumerate(items):
            if _is_chat(item):
                rows[number] = [Row({"input_ids": self.chat_ids(item, options)})]
        begin = options.bos_token_id or self.tokenizer.bos_token_id
        for row in (row for group in rows for row in group):
            if not len(row):
                if begin is None:
                    raise UserError("the prompt is empty and no token begins a text, expected at least one token")
                row.inputs["input_ids"] = [begin]
            self.room(row, options)
        return rows

    def chat_ids(self, item: Any, options: Any) -> list[int]:
        """The tokens of a conversation; a ``UserError`` if the chat template cannot render it."""
        messages, own = _messages(item), _variables(item)
        go_on = _goes_on(messages, options)
        given = {**options.chat_template_kwargs, "tools": options.tools, "documents": options.documents, **own}
        if splits_special_tokens(self.tokenizer):
            # Those of the template are tokens, as in training; one in a message could not be told from them.
            given["tokenizer_kwargs"] = {"split_special_tokens": False}
            special = next(
                (s for text in strings([messages, own]) for s in special_tokens(self.tokenizer) if s in text), None
            )
            if special is not None:
                raise UserError(f"a message contains the special token {special}, expected text without one")
        try:
            batch = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=not go_on, continue_final_message=go_on, **given
            )
            template = self.tokenizer.get_chat_template(tools=given["tools"])
        except Exception as error:  # a template can raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the chat template of {self.name} rejects the conversation: {reason[:200]}") from error
        for part in unread(template, messages, given):
            self.say_once(part, f"the chat template of {self.name} leaves out {part}: the model does not see them")
        return list(batch["input_ids"])

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> list[dict[str, Any]]:
        """The texts."""
        found: list[dict[str, Any]] = []
        for text in outputs[0]:
            if options.return_full_text and _is_chat(item):
                messages = _messages(item)
                if _goes_on(messages, options):
                    text = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + text}]
                else:
                    text = [*messages, {"role": "assistant", "content": text}]
            elif options.return_full_text:
                text = item + text
            found.append({"generated_text": text})
        return found

    def from_record(self, record: Mapping[str, Any], column: str) -> Any:
        """The text, or the conversation under ``messages`` with its ``tools``."""
        if column not in record and "messages" in record:
            column = "messages"
        return with_variables(Pipeline.from_record(self, record, column), record)


def with_variables(item: Any, record: Mapping[str, Any]) -> Any:
    """A conversation with the ``tools`` and other variables of its record, if there are any; another item as it is."""
    try:
        variables = ColumnReader({}).variables(record) if _is_chat(item) else {}
    except BadRow as reason:
        raise UserError(str(reason)) from None
    return {"messages": item, **variables} if variables else item


def _is_chat(item: Any) -> bool:
    item = _messages(item)
    if not isinstance(item, list | tuple) or not item:
        return False
    return isinstance(item[0], Mapping) and {"role", "content"} <= item[0].keys()


def _messages(item: Any) -> Any:
    """The messages of a conversation that is given with its variables, else the item itself."""
    return item["messages"] if isinstance(item, Mapping) and "messages" in item else item


def _variables(item: Any) -> dict[str, Any]:
    """The variables of the chat template that a conversation has."""
    return {key: value for key, value in item.items() if key != "messages"} if isinstance(item, Mapping) else {}


def _goes_on(messages: Sequence[Mapping[str, Any]], options: Any) -> bool:
    if options.continue_final_message is not None:
        return bool(options.continue_final_message)
    if "role" not in messages[-1]:
        raise UserError(f"the last message is {messages[-1]!r:.60}, expected a role and content")
    return bool(messages[-1]["role"] == "assistant")
