"""Text to text with an encoder-decoder: in general, summaries, translations."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from jaxformer.pipelines.base_pipeline import require_text
from jaxformer.pipelines.batching import Row
from jaxformer.pipelines.generation_pipeline import GenerationOptions, GenerationPipeline
from jaxformer.schema import UserError, nearest


class Options(GenerationOptions):
    """Options of text to text."""

    prefix: str | None = Field(None, description="a text before every input; default: that of config.json")
    truncation: bool = Field(True, description="cut a text that is too long")
    src_lang: str | None = Field(None, description="translation: source language")
    tgt_lang: str | None = Field(None, description="translation: target language")


class Text2TextGeneration(GenerationPipeline):
    """A list of ``{"generated_text": ...}`` for a text; for a list of texts a list of such dictionaries.

    With ``num_return_sequences`` above 1 every text has a list. Without further options by beam search with 4 beams.
    """

    Options: ClassVar[type[Any]] = Options
    own_defaults: ClassVar[Mapping[str, Any]] = {"num_beams": 4}
    key: ClassVar[str] = "generated_text"

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """One row a text."""
        prefix = self.prefix if options.prefix is None else options.prefix
        texts = [prefix + require_text(item, "the input") for item in items]
        rows = self.rows_of(texts, None, options.truncation, None)
        for row in rows:
            self.room(row, options)
        return [[row] for row in rows]

    @property
    def prefix(self) -> str:
        """The text before every input that ``config.json`` names, for the task or for all."""
        return str(self.task_params.get("prefix") or self.opened.hf.get("prefix") or "")

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> list[dict[str, Any]]:
        """The texts."""
        return [{self.key: text} for text in outputs[0]]

    def of_list(self, results: list[Any]) -> Any:
        """A dictionary each where each has but one."""
        return [result[0] for result in results] if all(len(result) == 1 for result in results) else results


class Summarization(Text2TextGeneration):
    """``{"summary_text": ...}``, in lists as of ``text2text-generation``."""

    key = "summary_text"


class Translation(Text2TextGeneration):
    """``{"translation_text": ...}``, in lists as of ``text2text-generation``.

    ``translation_en_to_de`` names the languages, as do ``src_lang`` and ``tgt_lang``: T5 takes them in words, as its
    ``config.json`` has them, mBART by tokens.
    """

    key = "translation_text"

    @property
    def task_params(self) -> Mapping[str, Any]:
        """The entry of ``config.json`` for the two languages."""
        said = self.opened.hf.get("task_specific_params") or {}
        pair = f"translation_{self.given.get('src_lang')}_to_{self.given.get('tgt_lang')}"
        return said.get(pair) or {}

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """One row a text, with the code of its language where the tokenizer has such."""
        if hasattr(self.tokenizer, "src_lang") and options.src_lang is not None:
            self.tokenizer.src_lang = self._code(options.src_lang)
        return super().encode(items, options)

    def forced(self, options: Any) -> dict[str, Any]:
        """The code of the language to write."""
        if not hasattr(self.tokenizer, "src_lang") or options.tgt_lang is None:
            return {}
        return {"forced_bos_token_id": self.tokenizer.convert_tokens_to_ids(self._code(options.tgt_lang))}

    def _code(self, language: str) -> str:
        """The token of a language: itself, or the only one that begins with it."""
        codes = [
            token for token in self.tokenizer.all_special_tokens if re.fullmatch(r"[a-z]{2,3}_[A-Za-z]{2,4}", token)
        ]
        found = [code for code in codes if code == language] or [c for c in codes if c.startswith(f"{language}_")]
        if len(found) != 1:
            known = ", ".join(codes)
            raise UserError(
                f"{self.name} has no language {language!r}, expected one of {known}{nearest(language, codes)}"
            )
        return found[0]
