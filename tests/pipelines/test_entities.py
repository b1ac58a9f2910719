"""Entities of every scheme from the scores of tokens."""

import numpy as np
import pytest

from jaxformer.pipelines.entities import Token, entities

TAGS = ["B-PER", "I-PER", "E-PER", "O", "S-PER", "S-PER", "B-LOC", "E-LOC"]
SPELLINGS = {
    "IOBES": lambda tag: tag,
    "BILOU": lambda tag: tag.replace("E-", "L-").replace("S-", "U-"),
    "suffix": lambda tag: "-".join(reversed(tag.split("-"))),
    "lower case": str.lower,
}


def found(tags):
    labels = sorted(set(tags))
    scores = np.eye(len(labels))
    tokens = [Token(str(n), scores[labels.index(tag)], n, n + 1, n, False) for n, tag in enumerate(tags)]
    groups = entities(tokens, labels, "simple", "".join)
    return [(group["entity_group"], group["start"], group["end"]) for group in groups if group["entity_group"] != "O"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_entities_are_those_of_the_scheme(spelling):
    kinds = ("per", "loc") if spelling == "lower case" else ("PER", "LOC")
    tags = [tag if tag == "O" else SPELLINGS[spelling](tag) for tag in TAGS]
    assert found(tags) == [(kinds[0], 0, 3), (kinds[0], 4, 5), (kinds[0], 5, 6), (kinds[1], 6, 8)]


def test_others_are_grouped_as_in_transformers():
    assert found(["B-PER", "I-PER", "I-LOC", "B-LOC", "O", "I-LOC"]) == [
        ("PER", 0, 2),
        ("LOC", 2, 3),
        ("LOC", 3, 4),
        ("LOC", 5, 6),
    ]
    assert found(["VERB", "VERB", "NOUN"]) == [("VERB", 0, 2), ("NOUN", 2, 3)]
