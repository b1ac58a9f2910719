"""Span corruption (T5): spans of text are cut out, each leaving a sentinel, and the decoder tells what they were."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer.data.piece_rows import PieceRows, split_pieces
from jaxformer.data.token_cache import TokenCache
from jaxformer.families import build_model
from jaxformer.models.config import TransformerConfig
from jaxformer.tasks.base import Batch, LossSums, Rows, Task, TaskSchema, token_loss
from jaxformer.tasks.packing import packed_pairs
from jaxformer.tokenizers import PreTrainedTokenizer, Role, find_special, sentinel_ids, special_id

SENTINELS = 100  # as many as T5's vocabulary has


class SpanCorruptionConfig(TaskSchema):
    """Tell the spans that were cut out of the text."""

    architectures = ("encoder_decoder",)
    reads = "text"
    special_tokens: ClassVar = ("pad", "sep")
    sentinels: ClassVar = SENTINELS

    type: Literal["span_corruption"] = Field("span_corruption", description="objective")
    rate: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are cut out")
    mean_span: float = Field(3.0, ge=1, description="mean length of a span that is cut out, tokens")
    target_length: int | None = Field(
        None, ge=2, description="longest target of a row, tokens; default: what a row of one whole text needs"
    )
    chunk_tokens: int = Field(2048, ge=1, description="tokens whose logits are in memory at once, on a device")


def span_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """How many tokens are cut out of ``length``, and in how many spans; the same for every text of that length.

    ``round(rate * length)``, at least 1 and not all, in ``round(tokens / mean_span)`` spans, at least 1 and so few that
    a kept token stands before each (Raffel et al. 2020, section 3.1.4, and the code published with it).

    >>> span_counts(100, 0.15, 3.0)
    (15, 5)
    """
    noise = min(max(round(rate * length), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), length - noise, SENTINELS)


def corrupted_lengths(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Tokens of input and target that ``corrupt_spans`` makes of a text of ``length`` tokens, ends included.

    >>> corrupted_lengths(568, 0.15, 3.0)  # T5: 512 tokens in, 114 out
    (512, 114)
    """
    noise, spans = span_counts(length, rate, mean_span)
    return length - noise + spans + 1, noise + spans + 1


def random_segmentation(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """``total`` things in order, cut into ``parts`` that are not empty: their sizes, every cutting equally probable."""
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
    """Cuts spans out of a text: input ``a <0> d <1> </s>`` and target ``<0> b c <1> e f </s>`` for ``a b c d e f``.

    The text begins with a kept token and ends with a span, as in the code published with the paper; so the target needs
    no sentinel behind its last span.

    Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 3.1.4.

    Args:
        tokens: ``[T]``, at least 2.
        generator: what is drawn from.
        sentinel_ids: one for each span, in order.
        end_id: behind input and target.
        rate: share of the tokens to be cut out.
        mean_span: mean length of a span.

    Returns:
        Input and target, of the lengths ``corrupted_lengths`` says.
    """
    noise, spans = span_counts(len(tokens), rate, mean_span)
    kept_sizes = random_segmentation(len(tokens) - noise, spans, generator)
    cut_sizes = random_segmentation(noise, spans, generator)
    sizes = np.ravel(np.stack([kept_sizes, cut_sizes], axis=1))
    parts = np.split(tokens, np.cumsum(sizes)[:-1])
    inputs, targets = [], []
    for number in range(spans):
        sentinel = np.array([sentinel_ids[number]], tokens.dtype)
        inputs += [parts[2 * number], sentinel]
        targets += [sentinel, parts[2 * number + 1]]
    end = np.array([end_id], tokens.dtype)
    return np.concatenate([*inputs, end]), np.concatenate([*targets, end])


@dataclass(frozen=True)
class SpanCorruption(Task):
    """``-log p(spans cut out | the text without them)``, summed over the tokens of the target.

    Rows hold several texts where they fit, each with sentinels of its own and no attention between them.
    """

    config: SpanCorruptionConfig
    tokenizer: PreTrainedTokenizer
    sequence_length: int
    start: Role = "pad"

    @cached_property
    def target_length(self) -> int:
        """Places of the decoder."""
        c, T = self.config, self.sequence_length
        if c.target_length is not None:
            return c.target_length
        length = 2
        while self._lengths(length + 1)[0] <= T:
            length += 1
        return self._lengths(length)[1]

    def _lengths(self, length: int) -> tuple[int, int]:
        return corrupted_lengths(length, self.config.rate, self.config.mean_span)

    def model(self, config: TransformerConfig) -> nn.Module:
        """The encoder-decoder with its language-model head."""
        return build_model(config)

    def rows(self, data: TokenCache) -> PieceRows:
        """Texts that fit after they are corrupted: their lengths then are known ahead."""
        limits = (self.sequence_length, self.target_length)
        return PieceRows(data, self._lengths, limits, find_special(self.tokenizer, "eos"), smallest=2)

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """``input_ids``, ``segment_ids``, ``decoder_input_ids``, ``decoder_segment_ids`` and ``labels``."""
        c, end_id = self.config, special_id(self.tokenizer, "sep")
        pairs = []
        for tokens, segments, generator in zip(batch["tokens"], batch["segment_ids"], generators, strict=True):
            pairs.append(
                [
                    corrupt_spans(
                        piece,
                        generator,
                        sentinel_ids=sentinel_ids(self.tokenizer),
                        end_id=end_id,
                        rate=c.rate,
                        mean_span=c.mean_span,
                    )
                    for piece in split_pieces(tokens, segments)
                ]
            )
        start_id = special_id(self.tokenizer, self.start)
        return packed_pairs(pairs, self.sequence_length, self.target_length, start_id)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over the targets, nats."""
        return token_loss(model, params, batch, dropout_key, chunk_tokens=self.config.chunk_tokens)
