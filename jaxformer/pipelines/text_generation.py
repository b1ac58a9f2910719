"""Text generation: the continuation of a text or a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from jaxformer.pipelines.base_pipeline import Pipeline, require_text
from jaxformer.pipelines.batching import Row
from jaxformer.pipelines.generation_pipeline import GenerationOptions, GenerationPipeline
from jaxformer.schema import UserError


class Options(GenerationOptions):
    """Options of text generation."""

    return_full_text: bool = Field(True, description="return the prompt too, not only the new text")
    prefix: str = Field("", description="a text before every prompt, which is not returned")
    add_special_tokens: bool = Field(True, description="add the tokenizer's special tokens; not in conversations")
    continue_final_message: bool | None = Field(
        None, description="continue the last message of a conversation; default: if it is the assistant's"
    )


class TextGeneration(GenerationPipeline):
    """A list of ``{"generated_text": ...}`` for each prompt, ``num_return_sequences`` long.

    A conversation, a list of ``{"role": ..., "content": ...}``, gives the conversation with the assistant's message.
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
                go_on = _goes_on(item, options)
                template = {"add_generation_prompt": not go_on, "continue_final_message": go_on}
                batch = self.tokenizer.apply_chat_template(item, **template)
                rows[number] = [Row({"input_ids": list(batch["input_ids"])})]
        begin = options.bos_token_id or self.tokenizer.bos_token_id
        for row in (row for group in rows for row in group):
            if not len(row):
                if begin is None:
                    raise UserError("the prompt is empty and no token begins a text, expected at least one token")
                row.inputs["input_ids"] = [begin]
            self.room(row, options)
        return rows

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> list[dict[str, Any]]:
        """The texts."""
        found: list[dict[str, Any]] = []
        for text in outputs[0]:
            if options.return_full_text and _is_chat(item):
                if _goes_on(item, options):
                    text = [*item[:-1], {**item[-1], "content": item[-1]["content"] + text}]
                else:
                    text = [*item, {"role": "assistant", "content": text}]
            elif options.return_full_text:
                text = item + text
            found.append({"generated_text": text})
        return found

    def from_record(self, record: Mapping[str, Any], column: str) -> Any:
        """The text, or the conversation under ``messages``."""
        if column not in record and "messages" in record:
            column = "messages"
        return Pipeline.from_record(self, record, column)


def _is_chat(item: Any) -> bool:
    if not isinstance(item, list | tuple) or not item:
        return False
    return isinstance(item[0], Mapping) and {"role", "content"} <= item[0].keys()


def _goes_on(messages: Sequence[Mapping[str, Any]], options: Any) -> bool:
    if options.continue_final_message is not None:
        return bool(options.continue_final_message)
    if "role" not in messages[-1]:
        raise UserError(f"the last message is {messages[-1]!r:.60}, expected a role and content")
    return bool(messages[-1]["role"] == "assistant")
