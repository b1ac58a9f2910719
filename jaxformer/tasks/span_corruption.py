"""Span corruption (T5): spans of a text are replaced by sentinels; the decoder predicts the spans."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from jaxformer.data.piece_rows import PieceRows
from jaxformer.data.token_cache import TokenCache
from jaxformer.tasks.base import Batch, Rows, Task, TaskSchema
from jaxformer.tasks.packing import packed_pairs, pieces_of
from jaxformer.tokenizers import find_special, sentinel_ids, special_id

SENTINELS = 100  # as in the vocabulary of T5


class SpanCorruptionConfig(TaskSchema):
    """Predict the spans removed from a text."""

    architectures = ("encoder_decoder",)
    reads = "text"
    special_tokens: ClassVar = ("pad", "sep")
    sentinels: ClassVar = SENTINELS

    type: Literal["span_corruption"] = Field("span_corruption", description="objective")
    rate: float = Field(0.15, gt=0, lt=1, description="share of removed tokens")
    mean_span: float = Field(3.0, ge=1, description="mean length of a removed span, tokens")
    target_length: int | None = Field(
        None, ge=2, description="length of the decoder's rows, tokens; default: as needed for one text that fills a row"
    )
    chunk_tokens: int = Field(2048, ge=1, description="tokens per device whose logits are in memory at once")

    def longest_target(self, sequence_length: int) -> int:
        """Length of the decoder's rows: ``target_length``, else as needed for one text that fills a row."""
        if self.target_length is not None:
            return self.target_length
        length = 2
        while corrupted_lengths(length + 1, self.rate, self.mean_span)[0] <= sequence_length:
            length += 1
        return corrupted_lengths(length, self.rate, self.mean_span)[1]


def span_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Numbers of tokens and of spans removed from a text of ``length`` tokens.

    ``round(rate * length)`` tokens, at least 1 and not all, in ``round(tokens / mean_span)`` spans, at least 1 and few
    enough for a kept token before each (Raffel et al. 2020, section 3.1.4, and the code published with it).

    >>> span_counts(100, 0.15, 3.0)
    (15, 5)
    """
    noise = min(max(round(rate * length), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), length - noise, SENTINELS)


def corrupted_lengths(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Lengths of the input and target of ``corrupt_spans`` for a text of ``length`` tokens, end tokens included.

    >>> corrupted_lengths(568, 0.15, 3.0)  # T5: 512 tokens in, 114 out
    (512, 114)
    """
    noise, spans = span_counts(length, rate, mean_span)
    return length - noise + spans + 1, noise + spans + 1


def random_segmentation(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """Sizes of ``parts`` non-empty segments of ``total`` items; every segmentation is equally probable."""
    cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def corrupt_spans(
    tokens: np.ndarray,
    generator: np.random.Generator,
    *,
    sentinel_ids: list[int],
    end_id: int,
    rate: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Replaces spans by sentinels: input ``a <0> d <1> </s>``, target ``<0> b c <1> e f </s>`` for ``a b c d e f``.

    The text begins with a kept token and ends with a span, as in the code published with the paper, so that the target
    needs no sentinel after its last span.

    ``tokens`` are ``[T]``, at least 2; input and target have ``corrupted_lengths``. Raffel et al. 2020, "Exploring the
    Limits of Transfer Learning", section 3.1.4.
    """
    noise, spans = span_counts(len(tokens), rate, mean_span)
    kept_sizes = random_segmentation(len(tokens) - noise, spans, generator)
    cut_sizes = random_segmentation(noise, spans, generator)
    sizes = np.ravel(np.stack([kept_sizes, cut_sizes], axis=1))
    parts = np.split(tokens, np.cumsum(sizes)[:-1])
    sentinels = [np.array([sentinel], tokens.dtype) for sentinel in sentinel_ids[:spans]]
    inputs = [array for both in zip(parts[::2], sentinels, strict=True) for array in both]
    targets = [array for both in zip(sentinels, parts[1::2], strict=True) for array in both]
    end = np.array([end_id], tokens.dtype)
    return np.concatenate([*inputs, end]), np.concatenate([*targets, end])


@dataclass(frozen=True, eq=False)
class SpanCorruption(Task):
    """``-log p(removed spans | the text without them)``, summed over the tokens of the target.

    Rows hold several texts where they fit, each with its own sentinels and no attention between them.
    """

    config: SpanCorruptionConfig

    @cached_property
    def target_length(self) -> int:
        """Length of the decoder's rows."""
        return self.config.longest_target(self.sequence_length)

    def _lengths(self, length: int) -> tuple[int, int]:
        return corrupted_lengths(length, self.config.rate, self.config.mean_span)

    def rows(self, data: TokenCache) -> PieceRows:
        """Texts that fit after corruption; their lengths are known in advance."""
        limits = (self.sequence_length, self.target_length)
        return PieceRows(data, self._lengths, limits, find_special(self.tokenizer, "eos"), smallest=2)

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """The columns of ``packed_pairs``."""
        settings: dict[str, Any] = {
            "sentinel_ids": sentinel_ids(self.tokenizer),
            "end_id": special_id(self.tokenizer, "sep"),
            "rate": self.config.rate,
            "mean_span": self.config.mean_span,
        }
        rows_of_pieces = zip(pieces_of(batch), generators, strict=True)
        pairs = [[corrupt_spans(piece, g, **settings) for piece in pieces] for pieces, g in rows_of_pieces]
        return packed_pairs(pairs, self.sequence_length, self.target_length, self.start_id)
