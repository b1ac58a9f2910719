"""Prefix language modelling: the first part of a text is read from both sides, the rest is predicted in order."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.piece_rows import PieceRows, pack, split_pieces
from jaxformer.data.token_cache import TokenCache
from jaxformer.families import build_model
from jaxformer.models.config import Architecture, TransformerConfig
from jaxformer.tasks.base import Batch, LossSums, Rows, Task, TaskSchema, token_loss
from jaxformer.tasks.packing import packed_pairs
from jaxformer.tokenizers import PreTrainedTokenizer, Role, find_special, special_id


class PrefixLMConfig(TaskSchema):
    """Predict the rest of a text from its beginning."""

    architectures = ("decoder", "encoder_decoder")
    reads = "text"
    special_tokens: ClassVar = ("pad", "sep")

    type: Literal["prefix_lm"] = Field("prefix_lm", description="objective")
    chunk_tokens: int = Field(2048, ge=1, description="tokens whose logits are in memory at once, on a device")


@dataclass(frozen=True)
class PrefixLM(Task):
    """``-log p(rest | prefix)``, summed over the tokens of the rest and its end; where a text is cut is drawn evenly.

    A decoder reads prefix and rest as one text in which every token sees the whole prefix; an encoder-decoder has the
    prefix in its encoder (Raffel et al. 2020, section 3.2.1).
    """

    config: PrefixLMConfig
    tokenizer: PreTrainedTokenizer
    sequence_length: int
    architecture: Architecture
    start: Role = "pad"

    def model(self, config: TransformerConfig) -> nn.Module:
        """The model with its language-model head."""
        return build_model(config)

    def rows(self, data: TokenCache) -> PieceRows:
        """Texts with the token that ends them."""
        return PieceRows(
            data, lambda n: (n + 1,), (self.sequence_length,), find_special(self.tokenizer, "eos"), smallest=2
        )

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """For a decoder ``input_ids``, ``segment_ids``, ``prefix_mask`` and ``labels``; else those of a pair."""
        end = np.array([special_id(self.tokenizer, "sep")], np.int32)
        texts, cuts = [], []
        for tokens, segments, generator in zip(batch["tokens"], batch["segment_ids"], generators, strict=True):
            pieces = split_pieces(tokens, segments)
            cuts.append([int(generator.integers(1, len(piece))) for piece in pieces])
            texts.append([np.concatenate([piece, end]) for piece in pieces])
        T = self.sequence_length
        both = [list(zip(row, row_cuts, strict=True)) for row, row_cuts in zip(texts, cuts, strict=True)]
        if self.architecture == "encoder_decoder":
            pairs = [[(np.concatenate([text[:cut], end]), text[cut:]) for text, cut in row] for row in both]
            # A prefix and its end together are never longer than the text and its end.
            return packed_pairs(pairs, T, T, special_id(self.tokenizer, self.start))
        packed = [_with_prefix(row, T) for row in both]
        names = ("input_ids", "segment_ids", "prefix_mask", "labels")
        return {name: np.stack(arrays) for name, arrays in zip(names, zip(*packed, strict=True), strict=True)}

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over what follows the prefixes, nats."""
        return token_loss(model, params, batch, dropout_key, chunk_tokens=self.config.chunk_tokens)


def _with_prefix(texts: list[tuple[np.ndarray, int]], length: int) -> tuple[np.ndarray, ...]:
    tokens, segments = pack([text for text, _ in texts], length)
    prefix, _ = pack([(np.arange(len(text)) < cut).astype(np.int32) for text, cut in texts], length)
    # The last token of the prefix is asked for the first of the rest, the last of a text for nothing.
    asked = [np.append(text[1:], 0) for text, _ in texts]
    trained = [(np.arange(len(text)) >= cut - 1) & (np.arange(len(text)) < len(text) - 1) for text, cut in texts]
    labels, _ = pack(asked, length)
    is_label, _ = pack([row.astype(np.int32) for row in trained], length)
    return tokens, segments, prefix, np.where(is_label > 0, labels, F.IGNORE).astype(np.int32)
