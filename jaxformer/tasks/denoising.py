"""Denoising (BART): the text is shuffled and has holes, and the decoder tells the text as it was."""

from dataclasses import dataclass
from functools import partial
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
from jaxformer.tasks.packing import Pair, packed_pairs
from jaxformer.tokenizers import PreTrainedTokenizer, Role, find_special, sentence_ends, special_id


class DenoisingConfig(TaskSchema):
    """Tell the text that was shuffled and masked."""

    architectures = ("encoder_decoder",)
    reads = "text"
    special_tokens: ClassVar = ("pad", "cls", "sep", "mask")

    type: Literal["denoising"] = Field("denoising", description="objective")
    rate: float = Field(0.3, ge=0, lt=1, description="share of the tokens that are masked; 0: none")
    mean_span: float = Field(3.0, gt=0, description="mean of the Poisson distribution of the spans' lengths, tokens")
    permute_sentences: bool = Field(True, description="shuffle the sentences of each text")
    chunk_tokens: int = Field(2048, ge=1, description="tokens whose logits are in memory at once, on a device")


def permute_sentences(tokens: np.ndarray, ends: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The sentences of a text in random order (Lewis et al. 2020, section 2.2).

    Args:
        tokens: ``[T]``.
        ends: ``[T]`` bool, True at the last token of a sentence; the end of the text ends one too.
        generator: what is drawn from.
    """
    sentences = np.split(tokens, np.flatnonzero(ends[:-1]) + 1)
    return np.concatenate([sentences[index] for index in generator.permutation(len(sentences))])


def span_lengths(count: int, mean: float, generator: np.random.Generator) -> np.ndarray:
    """Poisson lengths drawn until they sum to ``count``, the last cut to fit; a length of 0 is a hole to be added."""
    lengths: list[int] = []
    left = count
    while left > 0:
        lengths.append(min(int(generator.poisson(mean)), left))
        left -= lengths[-1]
    return np.array(lengths, np.int64)


def infill_text(
    tokens: np.ndarray, generator: np.random.Generator, *, mask_id: int, rate: float = 0.3, mean_span: float = 3.0
) -> np.ndarray:
    """Text infilling: spans of Poisson length, ``round(rate * T)`` tokens in all, each become one mask token.

    A span of length 0 puts a mask token between two tokens. So many of them that the text would grow are left out.

    Lewis et al. 2020, "BART", section 2.2.

    Args:
        tokens: ``[T]``.
        generator: what is drawn from.
        mask_id: the mask token.
        rate: share of the tokens to be masked.
        mean_span: mean of the Poisson distribution.

    Returns:
        At most ``T`` tokens.
    """
    count = round(rate * len(tokens))
    lengths = span_lengths(count, mean_span, generator)
    holes = np.flatnonzero(lengths == 0)
    surplus = len(lengths) - count  # each span shortens the text by its length and lengthens it by one
    if surplus > 0:
        lengths = np.delete(lengths, holes[:surplus])
    # The last one drawn is never 0 and often cut; it must not always be the last of the text.
    lengths = generator.permutation(lengths)
    # Kept tokens and spans in a row: which of these places are spans is drawn, every choice equally probable.
    places = len(tokens) - count + len(lengths)
    is_span = np.zeros(places, bool)
    is_span[generator.choice(places, len(lengths), replace=False)] = True
    sizes = np.ones(places, np.int64)
    sizes[is_span] = lengths
    starts = np.cumsum(sizes) - sizes
    # A span at the very end may begin behind the last token; it is a mask token whatever stands there.
    return np.where(is_span, mask_id, tokens[np.minimum(starts, len(tokens) - 1)]).astype(tokens.dtype)


@dataclass(frozen=True)
class Denoising(Task):
    """``-log p(text | the text shuffled and masked)``, summed over the tokens of the text and its end.

    Rows hold several texts where they fit, without attention between them.
    """

    config: DenoisingConfig
    tokenizer: PreTrainedTokenizer
    sequence_length: int
    start: Role = "pad"

    def model(self, config: TransformerConfig) -> nn.Module:
        """The encoder-decoder with its language-model head."""
        return build_model(config)

    def rows(self, data: TokenCache) -> PieceRows:
        """Texts with a token before and behind them; what is masked never makes them longer."""
        T = self.sequence_length
        return PieceRows(data, lambda n: (n + 2,), (T,), find_special(self.tokenizer, "eos"))

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """``input_ids``, ``segment_ids``, ``decoder_input_ids``, ``decoder_segment_ids`` and ``labels``."""
        ends = sentence_ends(self.tokenizer)
        pairs = [
            [self._pair(piece, ends, generator) for piece in split_pieces(tokens, segments)]
            for tokens, segments, generator in zip(batch["tokens"], batch["segment_ids"], generators, strict=True)
        ]
        T = self.sequence_length
        return packed_pairs(pairs, T, T, special_id(self.tokenizer, self.start))

    def _pair(self, piece: np.ndarray, ends: np.ndarray, generator: np.random.Generator) -> Pair:
        c, special = self.config, partial(special_id, self.tokenizer)
        source = permute_sentences(piece, ends[piece], generator) if c.permute_sentences else piece
        source = infill_text(source, generator, mask_id=special("mask"), rate=c.rate, mean_span=c.mean_span)
        first, last = ([special("cls")], [special("sep")])
        return np.concatenate([first, source, last]), np.concatenate([first, piece, last])

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over the text, nats."""
        return token_loss(model, params, batch, dropout_key, chunk_tokens=self.config.chunk_tokens)
