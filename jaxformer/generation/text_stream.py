"""Text while it is written: what can be shown already, and where a stop string ends it."""

from collections.abc import Sequence
from typing import Any

# What stands for bytes that are no character (yet).
_BROKEN = "�"
# Tokens whose text may still change when the next one comes are decoded anew, from so many before them on.
_OVERLAP = 6


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, without the special ones."""
    return str(tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)) if len(ids) else ""


def added_text(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text that tokens add to those before them: of a word that goes on with a blank, the blank, too."""
    first, both = decode(tokenizer, before), decode(tokenizer, [*before, *ids])
    return both[len(first) :] if both.startswith(first) else decode(tokenizer, ids)


class TextStream:
    """The text of tokens that come one by one, in pieces that never end inside a character.

    A piece is what the text of the last few tokens has more than it had, so that what a tokenizer does with blanks
    between tokens is kept. Bytes that are half a character wait for the others.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        """Takes the tokenizer that decodes, and the tokens that the text follows."""
        self.tokenizer = tokenizer
        self.ids = [int(i) for i in before[-_OVERLAP:]]
        self.text = ""
        self._from, self._shown = 0, len(self.ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self.tokenizer, ids)

    def put(self, ids: Sequence[int]) -> str:
        """The text that these further tokens complete."""
        self.ids += [int(i) for i in ids]
        before = self._decode(self.ids[self._from : self._shown])
        now = self._decode(self.ids[self._from :])
        if now.endswith(_BROKEN) or not now.startswith(before):
            return ""
        piece = now[len(before) :]
        self._shown = len(self.ids)
        self._from = max(self._from, self._shown - _OVERLAP)
        self.text += piece
        return piece

    def end(self) -> str:
        """What is still waiting, when no token follows."""
        before = self._decode(self.ids[self._from : self._shown])
        piece = self._decode(self.ids[self._from :])[len(before) :]
        self._shown = len(self.ids)
        self.text += piece
        return piece


def find_stop(text: str, stop_strings: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins; None if none is in the text."""
    places = [place for string in stop_strings if (place := text.find(string)) >= 0]
    return min(places, default=None)


def held_back(text: str, stop_strings: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop string."""
    longest = 0
    for string in stop_strings:
        for size in range(min(len(string) - 1, len(text)), longest, -1):
            if text.endswith(string[:size]):
                longest = size
                break
    return longest


def stopped_length(
    tokenizer: Any, ids: Sequence[int], stop_strings: Sequence[str], before: Sequence[int] = ()
) -> int | None:
    """How many tokens, behind those ``before``, it takes until a stop string is complete; None if it never is."""

    def complete(count: int) -> bool:
        return find_stop(added_text(tokenizer, before, ids[:count]), stop_strings) is not None

    if not complete(len(ids)):
        return None
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if complete(middle) else (middle + 1, high)
    return low
