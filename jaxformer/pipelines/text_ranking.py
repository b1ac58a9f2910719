"""Text ranking: a cross-encoder's scores of texts for a query."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from jaxformer.pipelines.base_pipeline import Pipeline, require_text
from jaxformer.pipelines.batching import Row
from jaxformer.pipelines.text_classification import FUNCTIONS
from jaxformer.schema import Schema, UserError


class RankingOptions(Schema):
    """Options of text ranking."""

    top_k: int | None = Field(None, ge=1, description="texts to return, the best first; default: all")
    function_to_apply: Literal["sigmoid", "none"] | None = Field(
        None, description="from logit to score; default: as the model says, else sigmoid"
    )
    truncation: bool = Field(True, description="cut a pair that is too long")
    max_length: int | None = Field(None, ge=1, description="tokens of a pair; default: what the model reads")


class TextRanking(Pipeline):
    """The documents of ``{"query": ..., "documents": [...]}``, the best first: a list of ``corpus_id, score, text``.

    Also ``pipe(query, documents)``. The model reads query and document as a pair and gives one score (Nogueira and Cho
    2019, "Passage Re-ranking with BERT", section 3); the results are those of ``CrossEncoder.rank``.
    """

    Options: ClassVar[type[Any]] = RankingOptions
    takes = "{'query': ..., 'documents': [...]}"

    def prepare(self) -> None:
        """Refuses a model with several classes."""
        super().prepare()
        if self.model.num_labels != 1:
            raise UserError(
                f"{self.name} has {self.model.num_labels} classes, expected a model with one score, as ranking "
                "trains it; text-classification takes this one"
            )

    def __call__(self, inputs: Any, documents: Any = None, **options: Any) -> Any:
        """The ranking of one input or of many; the documents may be the second argument."""
        given = inputs if documents is None else {"query": inputs, "documents": documents}
        return super().__call__(given, **options)

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """A row for each document."""
        groups = [_parts(item) for item in items]
        queries = [query for query, documents in groups for _ in documents]
        texts = [text for _, documents in groups for text in documents]
        rows = iter(self.rows_of(queries, texts, options.truncation, options.max_length) if texts else [])
        return [[next(rows) for _ in documents] for _, documents in groups]

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> list[dict[str, Any]]:
        """The documents in the order of their scores."""
        if not outputs:
            return []
        scores = FUNCTIONS[options.function_to_apply or self.opened.score or "sigmoid"](np.concatenate(outputs))
        _, documents = _parts(item)
        order = np.argsort(-scores, kind="stable")[: options.top_k].tolist()
        return [{"corpus_id": n, "score": float(scores[n]), "text": documents[n]} for n in order]

    def from_record(self, record: Mapping[str, Any], column: str) -> Any:
        """The query and its documents."""
        return {key: Pipeline.from_record(self, record, key) for key in ("query", "documents")}


def _parts(item: Any) -> tuple[str, list[str]]:
    """The query and its documents."""
    if not isinstance(item, Mapping) or not {"query", "documents"} <= item.keys():
        raise UserError(f"the input is {item!r:.60}, expected {TextRanking.takes}")
    if not isinstance(item["documents"], list | tuple):
        raise UserError(f"documents is {item['documents']!r:.60}, expected a list of texts")
    return require_text(item["query"], "query"), [require_text(text, "a document") for text in item["documents"]]
