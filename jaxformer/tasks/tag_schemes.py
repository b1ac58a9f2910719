"""Schemes of tags that delimit entities, and how their labels are written: ``B-PER``, ``b-per``, ``PER_B``, ``B``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

OUTSIDE = "O"
NOTHING = frozenset({"O", "o", "-", "_"})  # labels of what is in no entity
# Letters by those of IOBES, as which all schemes are read.
LETTERS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I", "W": "S"}
# Schemes whose entities have marked ends: IOBES, BILOU, BMES, BMEWO.
MARKED = {"IOBES": set("BIES"), "BILOU": set("BILU"), "BMES": set("BMES"), "BMEWO": set("BMEW")}
_LETTER = f"(?P<letter>[{''.join(LETTERS)}])"
STANDARD = re.compile(rf"{_LETTER}-(?P<kind>.+)", re.DOTALL)
FORMS = (
    STANDARD,
    re.compile(rf"{_LETTER}[-_](?P<kind>.+)", re.DOTALL | re.IGNORECASE),
    re.compile(rf"(?P<kind>.+)[-_]{_LETTER}", re.DOTALL | re.IGNORECASE),
    re.compile(rf"{_LETTER}(?P<kind>)", re.IGNORECASE),
)


@dataclass(frozen=True)
class TagScheme:
    """The scheme of some labels.

    Attributes:
        name: ``IOB``, or that of a scheme with marked ends, which is scored strictly; empty for labels of no scheme.
        tags: letter of IOBES and kind of entity of each label that has them.
        others: labels of no scheme beside them.
        refusal: why there are no entities, else empty.
    """

    name: str = ""
    tags: dict[str, tuple[str, str]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    refusal: str = ""
    standard: bool = True  # labels are B-X and I-X, as transformers reads them

    @property
    def strict(self) -> bool:
        """The ends of entities are marked."""
        return self.name in MARKED

    def split(self, tag: str) -> tuple[str, str]:
        """Letter of IOBES and kind of entity, ``("O", "")`` outside.

        >>> scheme_of(["O", "U-PER", "B-PER", "L-PER"]).split("L-PER")
        ('E', 'PER')
        """
        return self.tags.get(tag, (OUTSIDE, ""))

    def canonical(self, tag: str) -> str:
        """The tag as seqeval writes it in IOBES or IOB."""
        letter, kind = self.split(tag)
        return OUTSIDE if letter == OUTSIDE else f"{letter}-{kind or '_'}"

    def label(self, letter: str, kind: str) -> str:
        """The label of a letter of IOBES and a kind of entity; ``O`` if there is none."""
        return next((label for label, found in self.tags.items() if found == (letter, kind)), OUTSIDE)

    def inside(self, tag: str) -> str:
        """The tag of further characters of a token whose first has this tag: ``I-X`` for ``B-X``; of no entity ``tag``.

        >>> scheme_of(["B-A", "I-A", "E-A", "O", "NN"]).inside("B-A"), scheme_of(["NN"]).inside("NN")
        ('I-A', 'NN')
        """
        letter, kind = self.split(tag)
        return tag if letter == OUTSIDE else self.label("I", kind) if letter in "BI" else OUTSIDE


def scheme_of(labels: Iterable[str]) -> TagScheme:
    """The scheme of labels.

    Where one is ``B-X`` or ``I-X``, others may be of no entity; any other spelling is that of all labels but the one
    for no entity.
    """
    everything = set(labels)
    entities = sorted(everything - NOTHING)
    for form in FORMS:
        found = {label: match for label in entities if (match := form.fullmatch(label))}
        letters = {match["letter"].upper() for match in found.values()}
        if not found or (len(found) < len(entities) and not (form is STANDARD and letters & set("BI"))):
            continue
        if form is FORMS[-1] and not {"B"} < {LETTERS[letter] for letter in letters}:
            continue  # a set of letters that are no scheme
        tags = {label: (LETTERS[match["letter"].upper()], match["kind"]) for label, match in found.items()}
        others = tuple(label for label in entities if label not in tags)
        name = _name(letters)
        if name is None:
            mixed = ", ".join(sorted(letters))
            return TagScheme(refusal=f"no entity metrics: the letters {mixed} of the tags mix schemes")
        return TagScheme(name, tags, others, standard=form is STANDARD and name == "IOB")
    if entities and len(entities) < len(everything):
        reason = f"no entity metrics: {entities[0]!r} is not written as in a scheme (B-X, I-X; X-B; B)"
        return TagScheme(refusal=reason)
    return TagScheme()


def _name(letters: set[str]) -> str | None:
    """The name of the scheme with these letters, None if there is none."""
    standard = {LETTERS[letter] for letter in letters}
    scheme = next((name for name, known in MARKED.items() if letters <= known), None)
    if scheme is None:
        return None
    # Without an end no entity of several words could be right; I and E alone are IOE, as lenient as IOB.
    unmarked = standard <= set("BIS") and standard != {"S"}
    return "IOB" if unmarked or letters <= set("IE") else scheme
