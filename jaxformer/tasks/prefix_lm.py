"""Prefix language modelling: bidirectional attention over the prefix of a text, causal prediction of the rest."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.piece_rows import PieceRows, pack
from jaxformer.data.token_cache import TokenCache
from jaxformer.tasks.base import Batch, Rows, Task, TaskSchema
from jaxformer.tasks.packing import packed_pairs, pieces_of, stacked
from jaxformer.tokenizers import find_special, special_id


class PrefixLMConfig(TaskSchema):
    """Predict the rest of a text from its beginning."""

    architectures = ("decoder", "encoder_decoder")
    predicts_tokens = True
    reads = "text"
    special_tokens: ClassVar = ("pad", "sep")

    type: Literal["prefix_lm"] = Field("prefix_lm", description="objective")
    chunk_tokens: int = Field(2048, ge=1, description="tokens per device whose logits are in memory at once")


@dataclass(frozen=True, eq=False)
class PrefixLM(Task):
    """``-log p(rest | prefix)``, summed over the tokens of the rest and its end; the split is drawn uniformly.

    A decoder reads prefix and rest as one text in which every token sees the whole prefix; an encoder-decoder has the
    prefix in its encoder (Raffel et al. 2020, section 3.2.1).
    """

    config: PrefixLMConfig

    def rows(self, data: TokenCache) -> PieceRows:
        """Texts with an end token."""
        eos_id = find_special(self.tokenizer, "eos")
        return PieceRows(data, lambda n: (n + 1,), (self.sequence_length,), eos_id, smallest=2)

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """For a decoder ``input_ids``, ``segment_ids``, ``prefix_mask`` and ``labels``; else those of a pair."""
        end, T = np.array([special_id(self.tokenizer, "sep")], np.int32), self.sequence_length
        texts = []  # of each row, with the length of the prefix
        for pieces, generator in zip(pieces_of(batch), generators, strict=True):
            cuts = [int(generator.integers(1, len(piece))) for piece in pieces]
            texts.append([(np.concatenate([piece, end]), cut) for piece, cut in zip(pieces, cuts, strict=True)])
        if self.two_sided:
            pairs = [[(np.concatenate([text[:cut], end]), text[cut:]) for text, cut in row] for row in texts]
            # A prefix with its end is never longer than the text with its end.
            return packed_pairs(pairs, T, T, self.start_id)
        names = ("input_ids", "segment_ids", "prefix_mask", "labels")
        return stacked([_with_prefix(row, T) for row in texts], names)


def _with_prefix(texts: list[tuple[np.ndarray, int]], length: int) -> tuple[np.ndarray, ...]:
    tokens, segments = pack([text for text, _ in texts], length)
    prefix, _ = pack([(np.arange(len(text)) < cut).astype(np.int32) for text, cut in texts], length)
    # The last token of the prefix predicts the first of the rest; the last of a text predicts nothing.
    labels, _ = pack([np.append(text[1:], 0) for text, _ in texts], length)
    trained = [(np.arange(len(text)) >= cut - 1) & (np.arange(len(text)) < len(text) - 1) for text, cut in texts]
    is_label, _ = pack([row.astype(np.int32) for row in trained], length)
    return tokens, segments, prefix, np.where(is_label > 0, labels, F.IGNORE).astype(np.int32)
