"""Entities from the scores of tokens: ``entity`` for each token, or neighbours grouped into ``entity_group``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Merge = Callable[[list[str]], str]


@dataclass(frozen=True)
class Token:
    """A token of a text and what the model says of it.

    Attributes:
        text: as the vocabulary writes it; of an unknown token what stands in the text.
        scores: ``[C]``, which sum to 1.
        start: its first character.
        end: the character behind its last.
        index: its place in the row.
        goes_on: whether it goes on with the word of the token before it.
    """

    text: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    goes_on: bool


@dataclass(frozen=True)
class Labelled:
    """A token, or a word, with one label."""

    label: str
    score: float
    text: str
    start: int
    end: int


def entities(tokens: Sequence[Token], labels: Sequence[str], strategy: str, merge: Merge) -> list[dict[str, Any]]:
    """What the tokens of a text say, in their order; labels are not left out here.

    Args:
        tokens: of one text.
        labels: names of the classes; ``B-X`` begins an entity X and ``I-X`` goes on with it.
        strategy: ``none`` a dictionary each token; ``simple`` groups tokens; ``first``, ``max`` and ``average`` give a
            word one label before that: of its first token, of its surest token, of the mean of its tokens' scores.
        merge: tokens to text.
    """
    if strategy == "none":
        return [_token(token, labels) for token in tokens]
    if strategy == "simple":
        units = [_labelled([token], token.scores, labels, token.text) for token in tokens]
    else:
        units = [_word(word, labels, strategy, merge) for word in _words(tokens)]
    return [_group(group, merge) for group in _groups(units)]


def _token(token: Token, labels: Sequence[str]) -> dict[str, Any]:
    best = int(np.argmax(token.scores))
    return {
        "entity": labels[best],
        "score": float(token.scores[best]),
        "index": token.index,
        "word": token.text,
        "start": token.start,
        "end": token.end,
    }


def _labelled(tokens: Sequence[Token], scores: np.ndarray, labels: Sequence[str], text: str) -> Labelled:
    best = int(np.argmax(scores))
    return Labelled(labels[best], float(scores[best]), text, tokens[0].start, tokens[-1].end)


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.goes_on:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word(tokens: list[Token], labels: Sequence[str], strategy: str, merge: Merge) -> Labelled:
    if strategy == "first":
        scores = tokens[0].scores
    elif strategy == "max":
        scores = max(tokens, key=lambda token: float(np.max(token.scores))).scores
    else:
        scores = np.mean([token.scores for token in tokens], axis=0)
    return _labelled(tokens, scores, labels, merge([token.text for token in tokens]))


def split_tag(label: str) -> tuple[bool, str]:
    """Whether the label begins an entity, and of which kind.

    >>> split_tag("B-PER"), split_tag("I-PER"), split_tag("VERB")
    ((True, 'PER'), (False, 'PER'), (False, 'VERB'))
    """
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _groups(units: Sequence[Labelled]) -> Iterator[list[Labelled]]:
    """Neighbours of one kind, of which none but the first begins an entity."""
    group: list[Labelled] = []
    for unit in units:
        begins, kind = split_tag(unit.label)
        if group and not begins and kind == split_tag(group[-1].label)[1]:
            group.append(unit)
            continue
        if group:
            yield group
        group = [unit]
    if group:
        yield group


def _group(group: list[Labelled], merge: Merge) -> dict[str, Any]:
    return {
        "entity_group": group[0].label.split("-", 1)[-1],
        "score": float(np.mean([unit.score for unit in group])),
        "word": merge([unit.text for unit in group]),
        "start": group[0].start,
        "end": group[-1].end,
    }


def without_overlaps(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of entities that overlap the longest, of equally long ones the surest.

    They come from windows of one text that share tokens. One entity after the other, in the order of their starts, is
    compared with the one kept last.
    """
    kept: list[dict[str, Any]] = []
    for entity in sorted(found, key=lambda entity: entity["start"]):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        elif _weight(entity) > _weight(kept[-1]):
            kept[-1] = entity
    return kept


def _weight(entity: dict[str, Any]) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
