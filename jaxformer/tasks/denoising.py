"""Denoising (BART): reconstruct a text from its shuffled sentences with masked spans."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from jaxformer.data.piece_rows import PieceRows
from jaxformer.data.token_cache import TokenCache
from jaxformer.tasks.base import Batch, Rows, Task, TaskSchema
from jaxformer.tasks.packing import Pair, packed_pairs, pieces_of
from jaxformer.tokenizers import find_special, sentence_ends, special_id


class DenoisingConfig(TaskSchema):
    """Reconstruct a shuffled and masked text."""

    architectures = ("encoder_decoder",)
    reads = "text"
    special_tokens: ClassVar = ("pad", "cls", "sep", "mask")

    type: Literal["denoising"] = Field("denoising", description="objective")
    rate: float = Field(0.3, ge=0, lt=1, description="share of masked tokens")
    mean_span: float = Field(3.0, gt=0, description="mean span length (Poisson), tokens")
    permute_sentences: bool = Field(True, description="shuffle the sentences of each text")
    chunk_tokens: int = Field(2048, ge=1, description="tokens per device whose logits are in memory at once")


def permute_sentences(tokens: np.ndarray, ends: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The sentences of ``tokens [T]`` in random order; ``ends [T]`` is True at the last token of a sentence.

    Lewis et al. 2020, section 2.2.
    """
    sentences = np.split(tokens, np.flatnonzero(ends[:-1]) + 1)
    return np.concatenate([sentences[index] for index in generator.permutation(len(sentences))])


def span_lengths(count: int, mean: float, generator: np.random.Generator) -> np.ndarray:
    """Poisson lengths that sum to ``count``, the last one truncated; a length of 0 inserts a mask token."""
    lengths: list[int] = []
    left = count
    while left > 0:
        lengths.append(min(int(generator.poisson(mean)), left))
        left -= lengths[-1]
    return np.array(lengths, np.int64)


def infill_text(
    tokens: np.ndarray, generator: np.random.Generator, *, mask_id: int, rate: float = 0.3, mean_span: float = 3.0
) -> np.ndarray:
    """Text infilling: spans of Poisson length, ``round(rate * T)`` tokens in all, become one mask token each.

    A span of length 0 inserts a mask token between two tokens; spans by which the text would grow are dropped.

    ``tokens`` are ``[T]``, the result has at most ``T`` tokens. Lewis et al. 2020, "BART", section 2.2.
    """
    count = round(rate * len(tokens))
    lengths = span_lengths(count, mean_span, generator)
    holes = np.flatnonzero(lengths == 0)
    surplus = len(lengths) - count  # each span shortens the text by its length and lengthens it by one
    if surplus > 0:
        lengths = np.delete(lengths, holes[:surplus])
    # The last one drawn is never 0 and often truncated; it must not always be the last of the text.
    lengths = generator.permutation(lengths)
    # The result is a sequence of kept tokens and spans; every choice of the places of the spans is equally probable.
    places = len(tokens) - count + len(lengths)
    is_span = np.zeros(places, bool)
    is_span[generator.choice(places, len(lengths), replace=False)] = True
    sizes = np.ones(places, np.int64)
    sizes[is_span] = lengths
    starts = np.cumsum(sizes) - sizes
    # A span at the very end may begin after the last token; its token is not used.
    return np.where(is_span, mask_id, tokens[np.minimum(starts, len(tokens) - 1)]).astype(tokens.dtype)


@dataclass(frozen=True, eq=False)
class Denoising(Task):
    """``-log p(text | shuffled and masked text)``, summed over the tokens of the text and its end.

    Rows hold several texts where they fit, without attention between them.
    """

    config: DenoisingConfig

    def rows(self, data: TokenCache) -> PieceRows:
        """Texts between two special tokens; masking never makes them longer."""
        return PieceRows(data, lambda n: (n + 2,), (self.sequence_length,), find_special(self.tokenizer, "eos"))

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """The columns of ``packed_pairs``."""
        c, ends = self.config, sentence_ends(self.tokenizer)
        mask_id, cls, sep = (special_id(self.tokenizer, role) for role in ("mask", "cls", "sep"))

        def pair(piece: np.ndarray, generator: np.random.Generator) -> Pair:
            source = permute_sentences(piece, ends[piece], generator) if c.permute_sentences else piece
            source = infill_text(source, generator, mask_id=mask_id, rate=c.rate, mean_span=c.mean_span)
            return np.concatenate([[cls], source, [sep]]), np.concatenate([[cls], piece, [sep]])

        pairs = [[pair(p, g) for p in pieces] for pieces, g in zip(pieces_of(batch), generators, strict=True)]
        return packed_pairs(pairs, self.sequence_length, self.sequence_length, self.start_id)
