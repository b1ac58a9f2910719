"""Masked language modelling (BERT, RoBERTa, ALBERT): predict masked tokens from both sides."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from pydantic import Field, model_validator

from jaxformer import functional as F
from jaxformer.data.piece_rows import PieceRows
from jaxformer.data.token_cache import TokenCache
from jaxformer.models.config import TransformerConfig
from jaxformer.models.masked_lm import MaskedLM
from jaxformer.tasks.base import Batch, LossSums, Rows, Task, TaskSchema, apply, chunked_cross_entropy
from jaxformer.tasks.packing import pieces_of
from jaxformer.tokenizers import (
    PreTrainedTokenizer,
    find_special,
    special_id,
    special_ids,
    vocabulary_size,
    word_starts,
)


class Masking(NamedTuple):
    """Settings of ``mask_tokens``.

    Attributes:
        rate: share of tokens to be predicted.
        mask_share: share of those that become the mask token.
        random_share: share that become a random token; the rest is unchanged.
        mask_id: the mask token.
        random_ids: the tokens that a random token is drawn from.
        word_starts: ``[V]`` bool, tokens that begin a word, for whole-word masking; None masks single tokens.
    """

    rate: float
    mask_share: float
    random_share: float
    mask_id: int
    random_ids: np.ndarray
    word_starts: np.ndarray | None = None


def mask_tokens(
    tokens: np.ndarray, maskable: np.ndarray, masking: Masking, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Masks ``max(1, round(rate * maskable tokens))`` tokens, or with whole words at most as many.

    Each masked token becomes the mask token, a random token or itself (Devlin et al. 2019, section 3.1: 15 %, of them
    80/10/10). Whole-word masking masks all tokens of a word or none (BERT's models of May 2019).

    ``tokens`` are ``[T]``; ``maskable [T]`` is False at special tokens and padding, which are never masked.

    Returns:
        The model's input tokens, and the positions of the masked ones in ascending order.
    """
    places = np.flatnonzero(maskable)
    if len(places) == 0:
        return tokens.copy(), places
    count = max(1, round(masking.rate * len(places)))
    if masking.word_starts is None:
        hidden = generator.choice(places, count, replace=False)
    else:
        hidden = _whole_words(tokens, places, count, masking.word_starts, generator)
    hidden = np.sort(hidden)
    draw = generator.random(len(hidden))
    random_tokens = generator.choice(masking.random_ids, len(hidden))
    replaced = np.where(draw < masking.mask_share + masking.random_share, random_tokens, tokens[hidden])
    replaced = np.where(draw < masking.mask_share, masking.mask_id, replaced)
    inputs = tokens.copy()
    inputs[hidden] = replaced
    return inputs, hidden


def _whole_words(
    tokens: np.ndarray, places: np.ndarray, count: int, word_starts: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    # A word also begins after a special token.
    begins = word_starts[tokens[places]] | (np.diff(places, prepend=-2) > 1)
    words = np.split(places, np.flatnonzero(begins)[1:])
    hidden = [places[:0]]
    for index in generator.permutation(len(words)):
        if len(words[index]) <= count:
            hidden.append(words[index])
            count -= len(words[index])
    return np.concatenate(hidden)


class MaskingConfig(TaskSchema):
    """Settings of the objectives that mask tokens."""

    reads = "text"

    rate: float = Field(0.15, gt=0, lt=1, description="share of tokens that are masked and predicted")
    whole_words: bool = Field(False, description="mask all tokens of a word or none")
    chunk_tokens: int = Field(2048, ge=1, description="tokens per device whose logits are in memory at once")


class MaskedLMConfig(MaskingConfig):
    """Predict masked tokens from both sides."""

    architectures = ("encoder",)
    special_tokens: ClassVar = ("pad", "cls", "sep", "mask")

    type: Literal["masked_lm"] = Field("masked_lm", description="objective")
    mask_share: float = Field(0.8, ge=0, le=1, description="share of masked tokens that become the mask token")
    random_share: float = Field(
        0.1, ge=0, le=1, description="share of masked tokens that become a random token; the rest is unchanged"
    )
    sentence_pairs: Literal["none", "next_sentence", "sentence_order"] = Field(
        "none",
        description="additional objective on pairs of texts: next_sentence (BERT): does the second follow the first; "
        "sentence_order (ALBERT): are they swapped",
    )

    @model_validator(mode="after")
    def _shares_are_shares(self) -> "MaskedLMConfig":
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share is {self.mask_share} and random_share {self.random_share}, expected at most 1 together"
            )
        return self


class Text(NamedTuple):
    """One row of a model's input, ``[T]`` each, before masking, padded.

    Segments number the pieces from 1, 0 is padding; ``special`` is True at special tokens and padding.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    token_types: np.ndarray
    special: np.ndarray


def join(texts: list[list[np.ndarray]], tokenizer: PreTrainedTokenizer, length: int) -> Text:
    """``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]`` for each of ``texts``, concatenated."""
    cls_id, sep_id = special_id(tokenizer, "cls"), special_id(tokenizer, "sep")
    tokens, segments, types = np.zeros((3, length), np.int32)
    text = Text(tokens, segments, types, np.ones(length, bool))
    place = 0
    for number, parts in enumerate(texts, 1):
        text.tokens[place], text.segment_ids[place] = cls_id, number
        place += 1
        for kind, part in enumerate(parts):
            end = place + len(part)
            text.tokens[place:end], text.tokens[end] = part, sep_id
            text.special[place:end] = False
            text.segment_ids[place : end + 1], text.token_types[place : end + 1] = number, kind
            place = end + 1
    return text


@dataclass(frozen=True, eq=False)
class MaskedLanguageModelling(Task):
    """``-log p(token | masked row)``, summed over the masked tokens.

    A row is ``[CLS] piece [SEP] [CLS] piece [SEP] ...`` without attention across pieces; with ``sentence_pairs`` it is
    one pair, ``[CLS] a [SEP] b [SEP]``.
    """

    config: MaskedLMConfig

    @property
    def pairs(self) -> bool:
        """Rows are pairs of texts."""
        return self.config.sentence_pairs != "none"

    @cached_property
    def masking(self) -> Masking:
        """Settings of ``mask_tokens``."""
        return make_masking(self.config, self.tokenizer, self.config.mask_share, self.config.random_share)

    def model(self, config: TransformerConfig) -> nn.Module:
        """The encoder with its masked-language-model head."""
        return MaskedLM(config, sentence_pairs=self.pairs)

    def rows(self, data: TokenCache) -> PieceRows:
        """Pieces between two special tokens; a pair has a third in the middle."""
        T, eos_id = self.sequence_length, find_special(self.tokenizer, "eos")
        if self.pairs:
            return PieceRows(data, lambda n: (n + 3,), (T,), eos_id, pieces_per_row=1, smallest=2)
        return PieceRows(data, lambda n: (n + 2,), (T,), eos_id)

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """Inputs, and the positions and labels of the masked tokens: ``masked_positions`` and ``labels`` ``[B, M]``.

        ``M`` is ``round(rate * T)``; rows with fewer masked tokens are padded with label -100. With pairs,
        ``pair_labels`` ``[B]`` is 0 for consecutive texts, 1 for others (swapped, or the second of another document).
        """
        texts, pair_labels = [], []
        for pieces, row, generator in zip(pieces_of(batch), batch["row_ids"].tolist(), generators, strict=True):
            parts, label = [[piece] for piece in pieces], F.IGNORE
            if self.pairs and parts:
                assert isinstance(rows, PieceRows)
                pair, label = self._pair(pieces[0], row, generator, rows)
                parts = [pair]
            pair_labels.append(label)
            texts.append(join(parts, self.tokenizer, self.sequence_length))
        features = masked_features(texts, self.masking, generators)
        if self.pairs:
            features["token_type_ids"] = np.stack([text.token_types for text in texts])
            features["attention_mask"] = (features.pop("segment_ids") > 0).astype(np.int32)
            features["pair_labels"] = np.array(pair_labels, np.int32)
        return features

    def _pair(
        self, piece: np.ndarray, row: int, generator: np.random.Generator, rows: PieceRows
    ) -> tuple[list[np.ndarray], int]:
        cut = int(generator.integers(1, len(piece)))
        first, second = piece[:cut], piece[cut:]
        if generator.random() < 0.5:
            return [first, second], 0
        if self.config.sentence_pairs == "sentence_order":
            return [second, first], 1
        return [first, rows.text_of_another_document(row, generator)[: len(second)]], 1

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over the masked tokens, nats.

        The cross-entropy of pairs is added with the weight of the masked tokens of an average row, as BERT and ALBERT
        add the two means.
        """
        if not self.pairs:
            return super().loss(model, params, batch, dropout_key)
        inputs = {name: array for name, array in batch.items() if name not in ("labels", "pair_labels")}
        hidden, head, pair_logits = apply(model, params, inputs, dropout_key, "hidden_head_and_pairs")
        sums = chunked_cross_entropy(hidden, head, batch["labels"], chunk_tokens=self.config.chunk_tokens)
        masked_per_row = max(1, round(self.config.rate * (self.sequence_length - 3)))
        pairs = masked_per_row * F.cross_entropy(pair_logits, batch["pair_labels"]).total
        metrics = {
            "loss": sums.cross_entropy + pairs,
            "masked_lm_loss": sums.cross_entropy,
            "pair_loss": pairs,
            "pair_accuracy": (pair_logits.argmax(-1) == batch["pair_labels"]).sum() * float(masked_per_row),
        }
        return LossSums(sums.total + pairs, sums.tokens, metrics)


def make_masking(c: MaskingConfig, tokenizer: PreTrainedTokenizer, mask_share: float, random_share: float) -> Masking:
    """Settings of ``mask_tokens`` for a tokenizer."""
    ordinary = np.setdiff1d(np.arange(vocabulary_size(tokenizer)), list(special_ids(tokenizer)))
    starts = word_starts(tokenizer) if c.whole_words else None
    return Masking(c.rate, mask_share, random_share, special_id(tokenizer, "mask"), ordinary, starts)


def masked_features(texts: list[Text], masking: Masking, generators: list[np.random.Generator]) -> Batch:
    """Masks tokens in every text: ``input_ids``, ``segment_ids``, ``masked_positions`` and ``labels``."""
    size = max(1, round(masking.rate * len(texts[0].tokens)))
    positions = np.zeros((len(texts), size), np.int32)
    labels = np.full((len(texts), size), F.IGNORE, np.int32)
    inputs = np.zeros((len(texts), len(texts[0].tokens)), np.int32)
    for row, (text, generator) in enumerate(zip(texts, generators, strict=True)):
        inputs[row], hidden = mask_tokens(text.tokens, ~text.special, masking, generator)
        positions[row, : len(hidden)] = hidden
        labels[row, : len(hidden)] = text.tokens[hidden]
    segments = np.stack([text.segment_ids for text in texts])
    return {"input_ids": inputs, "segment_ids": segments, "masked_positions": positions, "labels": labels}
