"""Entities from the scores of tokens: ``entity`` for each token, or neighbors grouped into ``entity_group``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxformer.tasks.tag_schemes import TagScheme, scheme_of


@dataclass(frozen=True)
class Token:
    """A token of a text and the scores of its labels."""

    text: str  # as the vocabulary writes it; for an unknown token the characters of the text
    scores: np.ndarray  # ``[C]``, which sum to 1
    start: int  # its first character
    end: int  # the character after its last
    index: int  # its position in the row
    continues: bool  # whether it belongs to the same word as the token before it


def entities(
    tokens: Sequence[Token], labels: Sequence[str], strategy: str, merge: Callable[[list[str]], str]
) -> list[dict[str, Any]]:
    """The entities of a text in their order, those of every label; ``merge`` makes text of tokens.

    A label ``B-X`` begins an entity X and ``I-X`` continues it; labels of other schemes (``E-X``, ``U-X``, ``X-B``) do
    what they do there. The strategy ``none`` gives one dictionary for each
    token; ``simple`` groups tokens; ``first``, ``max`` and ``average`` first give each word one label: that of its
    first token, of its most certain token, or of the mean of its tokens' scores.
    """
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.continues and strategy not in ("none", "simple"):
            words[-1].append(token)
        else:
            words.append([token])
    units = [_labelled(word, labels, strategy, merge) for word in words]
    if strategy == "none":
        order = ("entity", "score", "index", "word", "start", "end")
        found = ({**unit, "index": token.index} for unit, token in zip(units, tokens, strict=True))
        return [{key: one[key] for key in order} for one in found]
    scheme = scheme_of(labels)
    groups: list[list[dict[str, Any]]] = []
    for unit in units:
        if groups and continues(groups[-1][-1]["entity"], unit["entity"], scheme):
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return [
        {
            "entity_group": group_name(group[0]["entity"], scheme),
            "score": float(np.mean([unit["score"] for unit in group])),
            "word": merge([unit["word"] for unit in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _labelled(
    word: list[Token], labels: Sequence[str], strategy: str, merge: Callable[[list[str]], str]
) -> dict[str, Any]:
    """A token or a word with its most likely label."""
    scores = word[0].scores
    if strategy == "max":
        scores = max(word, key=lambda token: float(np.max(token.scores))).scores
    elif strategy == "average":
        scores = np.mean([token.scores for token in word], axis=0)
    best = int(np.argmax(scores))
    text = word[0].text if strategy in ("none", "simple") else merge([token.text for token in word])
    return {
        "entity": labels[best],
        "score": float(scores[best]),
        "word": text,
        "start": word[0].start,
        "end": word[-1].end,
    }


def split_tag(label: str) -> tuple[bool, str]:
    """Splits a label into whether it begins an entity, and the kind of entity.

    >>> split_tag("B-PER"), split_tag("I-PER"), split_tag("VERB")
    ((True, 'PER'), (False, 'PER'), (False, 'VERB'))
    """
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def continues(before: str, tag: str, scheme: TagScheme) -> bool:
    """Returns whether a label continues the entity of the label before it.

    >>> bilou = scheme_of(["O", "B-A", "I-A", "L-A", "U-A"])
    >>> [continues(*pair, bilou) for pair in (("B-A", "L-A"), ("L-A", "L-A"), ("U-A", "U-A"), ("O", "O"))]
    [True, False, False, True]
    """
    if not scheme.name or scheme.standard or scheme.split(tag) == scheme.split("O"):
        begins, kind = split_tag(tag)
        return not begins and kind == split_tag(before)[1]
    (ends, of_before), (letter, kind) = scheme.split(before), scheme.split(tag)
    return letter in ("I", "E") and ends in ("B", "I") and kind == of_before


def group_name(tag: str, scheme: TagScheme) -> str:
    """The kind of entity of a label, as transformers names it where labels are ``B-X`` and ``I-X``."""
    if scheme.standard or tag not in scheme.tags:
        return tag.split("-", 1)[-1]
    return scheme.split(tag)[1] or tag


def without_overlaps(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Removes overlaps between the entities of windows that share tokens.

    In the order of their starts each entity is compared with the one kept last; the longer one is kept, of equally long
    ones the more certain.
    """

    def weight(entity: dict[str, Any]) -> tuple[int, float]:
        return entity["end"] - entity["start"], entity["score"]

    kept: list[dict[str, Any]] = []
    for entity in sorted(found, key=lambda entity: entity["start"]):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        elif weight(entity) > weight(kept[-1]):
            kept[-1] = entity
    return kept
