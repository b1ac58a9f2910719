"""Text classification: the label of a text or of a pair of texts, its number for a regression."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from jaxformer.pipelines.base_pipeline import Pipeline, require_text, softmax
from jaxformer.pipelines.batching import Row
from jaxformer.schema import Schema, UserError

FUNCTIONS = {"softmax": softmax, "sigmoid": lambda logits: 1 / (1 + np.exp(-logits)), "none": lambda logits: logits}


class Options(Schema):
    """Options of text classification."""

    top_k: int | None = Field(1, ge=1, description="labels to return, the most likely first; null: all")
    function_to_apply: Literal["default", "softmax", "sigmoid", "none"] | None = Field(
        None, description="from logits to scores; default: none for regression, sigmoid for independent labels"
    )
    truncation: bool = Field(True, description="cut a text that is too long")
    max_length: int | None = Field(None, ge=1, description="tokens of a text; default: what the model reads")


class TextClassification(Pipeline):
    """``{"label": ..., "score": ...}`` for each text.

    A pair of texts is ``{"text": ..., "text_pair": ...}``. One text gives a list of one dictionary, as in
    ``transformers``; with ``top_k`` every result is a list, the likeliest first.
    """

    Options: ClassVar[type[Any]] = Options
    takes = "a text or {'text': ..., 'text_pair': ...}"

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """One row an input."""
        texts = [_parts(item) for item in items]
        rows: list[list[Row]] = [[] for _ in items]
        for paired in (False, True):
            numbers = [number for number, (_, pair) in enumerate(texts) if (pair is not None) == paired]
            if not numbers:
                continue
            pairs = [str(texts[number][1]) for number in numbers] if paired else None
            found = self.rows_of(
                [texts[number][0] for number in numbers], pairs, options.truncation, options.max_length
            )
            for number, row in zip(numbers, found, strict=True):
                rows[number] = [row]
        return rows

    @property
    def default_function(self) -> str:
        """The function from logits to scores that the model was trained with."""
        if self.opened.problem == "regression":
            return "none"
        alone = self.opened.problem == "multi_label_classification" or self.model.num_labels == 1
        return "sigmoid" if alone else "softmax"

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> Any:
        """The likeliest label, or a list of them."""
        name = options.function_to_apply
        scores = FUNCTIONS[self.default_function if name in (None, "default") else name](outputs[0])
        order = np.argsort(-scores, kind="stable")[: options.top_k]
        found = [{"label": self.labels[number], "score": float(scores[number])} for number in order]
        return found if "top_k" in options.model_fields_set else found[0]

    def of_one(self, result: Any, inputs: Any, given: Mapping[str, Any]) -> Any:
        """A list of one for a text, unless the call itself has ``top_k``."""
        return [result] if isinstance(inputs, str) and "top_k" not in given else result

    def from_record(self, record: Mapping[str, Any], column: str) -> Any:
        """The text, with ``text_pair`` if the line has one."""
        text = super().from_record(record, column)
        return {"text": text, "text_pair": record["text_pair"]} if "text_pair" in record else text


def _parts(item: Any) -> tuple[str, str | None]:
    """The text and its pair, None if it has none."""
    if isinstance(item, Mapping):
        if "text" not in item or item.keys() - {"text", "text_pair"}:
            raise UserError(f"the input has the keys {', '.join(map(str, item))}, expected text, or text and text_pair")
        pair = item.get("text_pair")
        return require_text(item["text"], "text"), None if pair is None else require_text(pair, "text_pair")
    if isinstance(item, list | tuple):
        raise UserError("a list was given as a text; for a pair of texts give {'text': ..., 'text_pair': ...}")
    return require_text(item, "the input"), None
