"""Zero-shot classification: classes that the model never saw, by natural language inference (Yin et al. 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from jaxformer.pipelines.base_pipeline import Pipeline, require_text, softmax
from jaxformer.pipelines.batching import Row
from jaxformer.schema import Schema, UserError


class Options(Schema):
    """Options of zero-shot classification."""

    candidate_labels: list[str] = Field([], description="classes, a list or one text with commas between them")
    hypothesis_template: str = Field("This example is {}.", description="what the text may entail; {} is a class")
    multi_label: bool = Field(False, description="any number of classes may be right, each by itself")
    entailment_id: int | None = Field(None, ge=0, description="class of the model that says yes; default: by its name")

    @field_validator("candidate_labels", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return as_labels(value)

    @field_validator("hypothesis_template")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        try:
            if value.format("x") != value:
                return value
        except (IndexError, KeyError, ValueError):
            pass
        raise ValueError("expected one {} where the class goes")


class ZeroShotClassification(Pipeline):
    """``{"sequence", "labels", "scores"}`` for each text, the likeliest label first.

    The text is the premise and each class, in the template, a hypothesis. The logits of entailment are compared over
    the classes; with ``multi_label``, or one class, with the logit of contradiction.
    """

    Options: ClassVar[type[Any]] = Options

    def __call__(self, inputs: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """The result of one input or of many; the classes may be the second argument."""
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(inputs, **options)

    def entailment(self, options: Any) -> int:
        """The number of the class that says yes, as given or by its name."""
        if options.entailment_id is not None:
            if options.entailment_id >= len(self.labels):
                raise UserError(f"entailment_id is {options.entailment_id}, expected less than {len(self.labels)}")
            return int(options.entailment_id)
        found = [number for number, label in enumerate(self.labels) if label.lower().startswith("entail")]
        if not found:
            raise UserError(
                f"{self.name} has the classes {', '.join(self.labels)}, expected one called entailment: choose a "
                "model for natural language inference, or say which class it is with entailment_id="
            )
        return found[0]

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """One row for each class of each text."""
        self.entailment(options)
        texts, hypotheses, counts = [], [], []
        for item in items:
            text, labels = _parts(item, options)
            texts += [text] * len(labels)
            hypotheses += [options.hypothesis_template.format(label) for label in labels]
            counts.append(len(labels))
        found = self.tokenize(texts, hypotheses, truncation=False)
        if any(len(row) > self.longest for row in found):
            limit = f"{self.longest} tokens, hypothesis included"
            self.say_once("truncated", f"{self.task}: a text was truncated to {limit}. This is said once.")
            found = self.tokenize(texts, hypotheses, truncation="only_first", max_length=self.longest)
        rows = iter(found)
        return [[next(rows) for _ in range(count)] for count in counts]

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> dict[str, Any]:
        """The classes by likelihood."""
        text, labels = _parts(item, options)
        logits, yes = np.stack(outputs), self.entailment(options)
        if options.multi_label or len(labels) == 1:
            no = -1 if yes == 0 else 0
            scores = softmax(logits[:, [no, yes]])[:, 1]
        else:
            scores = softmax(logits[:, yes])
        order = np.argsort(-scores, kind="stable")
        return {
            "sequence": text,
            "labels": [labels[number] for number in order],
            "scores": [float(scores[number]) for number in order],
        }

    def from_record(self, record: Mapping[str, Any], column: str) -> Any:
        """The text, with ``candidate_labels`` if the line has its own."""
        text = super().from_record(record, column)
        own = record.get("candidate_labels")
        return text if own is None else {"text": text, "candidate_labels": own}


def as_labels(value: Any) -> list[str]:
    """A list of classes, from one or from a text with commas between them.

    >>> as_labels("new, old")
    ['new', 'old']
    """
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(label, str) for label in value):
        raise UserError(f"candidate_labels is {value!r:.80}, expected a list of texts, or one with commas")
    return list(value)


def _parts(item: Any, options: Any) -> tuple[str, list[str]]:
    """The text and its classes."""
    labels = options.candidate_labels
    if isinstance(item, Mapping):
        if "text" not in item or item.keys() - {"text", "candidate_labels"}:
            raise UserError(f"the input has the keys {', '.join(map(str, item))}, expected text and candidate_labels")
        labels = as_labels(item.get("candidate_labels", labels))
        item = item["text"]
    if not labels:
        raise UserError("there are no candidate_labels, expected at least one class")
    return require_text(item, "the input"), labels
