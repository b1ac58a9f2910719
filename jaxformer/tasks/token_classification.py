"""Token classification: a tag for each word or character of a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import ExampleRows
from jaxformer.models import heads
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError
from jaxformer.tasks import metrics
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch, LossSums, Report, Rows
from jaxformer.tasks.tag_schemes import OUTSIDE, TagScheme, scheme_of
from jaxformer.tokenizers import Frame, encode_with_offsets, frame_of


class TokenClassificationConfig(R.LabelledConfig):
    """Tag the words or characters of a sentence."""

    labels_tokens = True

    type: Literal["token_classification"] = Field("token_classification", description="objective")
    words_column: str = Field("words", description="column with the list of words (with joined: characters)")
    tags_column: str = Field("tags", description="column with the list of their tags")
    joined: bool = Field(
        False, description="the words are the characters of a text, spaces included; the text is tokenised as a whole"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread evenly over the tags")

    def words_of(self, record: R.Record) -> list[str]:
        """The words of a record."""
        words = R.items(record, self.words_column, "words_column")
        if self.joined and any(len(word) != 1 for word in words):
            odd = next(word for word in words if len(word) != 1)
            raise UserError(f"{R.where(record)}: task.joined takes single characters, got {odd!r}: set it to false")
        return words

    def tags_of(self, record: R.Record) -> list[str]:
        """The tags of a record, one per word; raises ``BadRow`` if one is missing."""
        found, words = R.answer(record, self.tags_column, "tags_column"), self.words_of(record)
        if R.is_missing(found):
            raise R.BadRow(f"column {self.tags_column!r} (task.tags_column) holds no tags but {R.said(found)}")
        if isinstance(found, list | tuple | np.ndarray) and any(map(R.is_missing, found)):
            named = [self.label(tag, self.tags_column, "tags_column") for tag in found]
            record = {**record, self.tags_column: named}
        tags = R.items(record, self.tags_column, "tags_column")
        if len(tags) != len(words):
            raise UserError(f"{R.where(record)} has {len(tags)} tags for {len(words)} words, expected one per word")
        return tags

    def texts(self, record: R.Record) -> list[str]:
        """The sentence."""
        return [("" if self.joined else " ").join(self.words_of(record))]


class Aligned(NamedTuple):
    """A tokenised sentence: ids without special tokens, truncated, and the words of its tokens.

    A span ``(token, first, end)`` gives the token the tag of the word ``first``; it stands for ``[first, end)``.
    """

    ids: list[int]
    spans: list[tuple[int, int, int]]


def word_places(words: Sequence[str]) -> list[int]:
    """The number of the word that each character of the words with spaces between them belongs to, -1 for a space.

    >>> word_places(["a", "cat"])
    [0, -1, 1, 1, 1]
    """
    places: list[int] = []
    for number, word in enumerate(words):
        places += [-1] * (number > 0) + [number] * len(word)
    return places


@dataclass(frozen=True, eq=False)
class TokenClassification(R.LabelledTask):
    """Cross-entropy of the tags, summed over the tokens that have one.

    The words are tokenised as one text with spaces between them, and the first token that begins in a word and is not a
    space has its tag. With ``joined`` a token has the tag of its first character that no earlier token covers (a
    byte-level token may be part of a character). The model's output has ``logits [B, T, C]``.
    """

    config: TokenClassificationConfig

    def __post_init__(self) -> None:
        R.check_length(self, 1)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The tags by number."""
        records = self.train_records if self.config.labels is None else ()
        known = R.read_rows(records, self.config.tags_of, R.Tally())
        labels = R.find_labels(self.config.labels, (tag for _, tags in known for tag in tags))
        if len(labels) < 2:
            raise UserError(f"the training records have the tags {list(labels)}, expected at least two")
        return labels

    @cached_property
    def scheme(self) -> TagScheme:
        """The scheme of the tags."""
        return scheme_of(self.labels)

    @cached_property
    def frame(self) -> Frame:
        """Special tokens around a sentence."""
        return frame_of(self.tokenizer)

    @property
    def room(self) -> int:
        """Tokens of a sentence that fit a row."""
        return self.sequence_length - self.frame.size

    def align(self, data: Sequence[R.Record]) -> list[Aligned]:
        """The tokenised sentences."""
        texts = [self.config.texts(record)[0] for record in data]
        aligned = []
        for record, text, (ids, offsets) in zip(data, texts, encode_with_offsets(self.tokenizer, texts), strict=True):
            spans, covered = [], 0
            places = range(len(text)) if self.config.joined else word_places(self.config.words_of(record))
            for token, (start, end) in enumerate(offsets[: self.room]):
                if self.config.joined or text[start:end].strip():
                    own = [place for place in places[start:end] if place >= covered]
                    if own:
                        spans.append((token, own[0], own[-1] + 1))
                        covered = own[-1] + 1
            aligned.append(Aligned(ids[: self.room], spans))
        return aligned

    def model(self, config: TransformerConfig) -> nn.Module:
        """The backbone with a classification head for each token."""
        return heads.TokenClassifier(config, len(self.labels), self.labels)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row per record with tags."""
        usable, tally = R.read_answers(data, self.config.tags_of, self.config.bad_rows)
        examples = []
        aligned = self.align([record for record, _ in usable])
        for (record, tags), sentence in zip(usable, aligned, strict=True):
            numbers = [self.label_number(tag, record) for tag in tags]
            inputs = R.encoder_input(self.frame, sentence.ids, None, self.sequence_length)
            labels = np.full(len(inputs["input_ids"]), F.IGNORE, np.int32)
            for token, first, _ in sentence.spans:
                labels[len(self.frame.before) + token] = numbers[first]
            examples.append({**inputs, "labels": labels})
        rows = ExampleRows(examples, self.sequence_length, R.encoder_fill(self.tokenizer))
        return R.answered_rows(rows, usable, tally)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over the tokens that have a tag, nats."""
        logits = R.apply(model, params, batch, dropout_key).logits
        sums = F.cross_entropy(logits, batch["labels"], label_smoothing=self.config.label_smoothing)
        further = {"objective": sums.total} if self.config.label_smoothing else {}
        return LossSums(sums.total, sums.tokens, {"loss": sums.cross_entropy, **further})

    def label_losses(self, model: nn.Module, params: Any, batch: Batch) -> jax.Array | None:
        """Cross-entropy of each tag, nats."""
        return -F.token_log_probs(R.apply(model, params, batch, None).logits, batch["labels"])

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``predicted [B, sequence_length]``: the number of each token's most likely tag."""
        logits = R.apply(model, params, batch, None).logits
        predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return {"predicted": R.pad_tokens(predicted, self.sequence_length, 0)}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """Metrics over words (or characters); the prediction for truncated ones is ``O``."""
        tags = [self.config.tags_of(record) for record in data]
        predicted = [
            self.tags_from(sentence, row[len(self.frame.before) :], self.config.words_of(record))
            for sentence, row, record in zip(self.align(data), outputs["predicted"], data, strict=True)
        ]
        words = self.config.words_column
        predictions = [
            {words: list(record[words]), "tags": tags_, "predicted": predicted_}
            for record, tags_, predicted_ in zip(data, tags, predicted, strict=True)
        ]
        # "O" is the prediction for truncated words even if it is not a tag of the data.
        names = self.labels if OUTSIDE in self.labels else (*self.labels, OUTSIDE)
        numbers = {name: number for number, name in enumerate(names)}
        right, ours = (np.array([numbers[tag] for tag in chain.from_iterable(p)], int) for p in (tags, predicted))
        confusion = metrics.confusion(right, ours, len(names))
        found, notes = metrics.tagging(tags, predicted, self.labels)
        entities = metrics.entity_errors(tags, predicted, self.labels)
        return Report(found, predictions, names, confusion, notes, entities=entities)

    def tags_from(self, sentence: Aligned, predicted: np.ndarray, words: Sequence[str]) -> list[str]:
        """Tags of the words (or characters) from the number of each token's tag.

        The first character of a token has its tag, the others continue that entity; a space between tokens is inside an
        entity if the next character continues that of the previous one. Where ends are marked, an entity ends with the
        last of several characters of a token if the next token does not continue it.
        """
        split, inside = self.scheme.split, self.scheme.inside
        tags = [OUTSIDE] * len(words)
        for token, first, end in sentence.spans:
            tags[first] = self.labels[int(predicted[token])]
            tags[first + 1 : end] = [inside(tags[first])] * (end - first - 1)
        if self.config.joined:
            covered = {i for _, first, end in sentence.spans for i in range(first, end)}
            for i in range(len(words) - 1, -1, -1):
                if i not in covered and 0 < i < len(words) - 1 and split(tags[i + 1])[0] in ("I", "E"):
                    before = next((tags[j] for j in range(i - 1, -1, -1) if j in covered), OUTSIDE)
                    (letter, kind), (_, going_on) = split(before), split(tags[i + 1])
                    if letter in ("B", "I") and kind == going_on:
                        tags[i] = inside(before)
        if self.scheme.strict:
            for _, first, end in sentence.spans:
                letter, kind = split(tags[end - 1])
                goes_on = end < len(tags) and split(tags[end]) in (("I", kind), ("E", kind))
                if end - first > 1 and letter == "I" and not goes_on:
                    tags[end - 1] = self.scheme.label("E", kind)
        return tags
