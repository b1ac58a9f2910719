"""Streamed text: complete pieces, and the places of stop strings."""

from collections.abc import Sequence
from typing import Any

from jaxformer.tokenizers import decode

# Stands for bytes that are not (yet) a character.
_BROKEN = "�"
# Number of tokens before the new ones that are decoded again, because their text may still change.
_OVERLAP = 6


def added_text(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text that tokens add to those before them, with the space before a new word."""
    first, both = decode(tokenizer, before), decode(tokenizer, [*before, *ids])
    return both[len(first) :] if both.startswith(first) else decode(tokenizer, ids)


class TextStream:
    """The text of tokens that arrive one by one, in pieces that never end inside a character.

    A piece is what new tokens add to the text of the last few, so that spaces between tokens are right. Bytes of an
    incomplete character wait for the others.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = (), skip_special_tokens: bool = True) -> None:
        """Takes the tokenizer and the tokens before the text."""
        self.tokenizer, self.skip_special_tokens = tokenizer, skip_special_tokens
        self.ids = [int(i) for i in before[-_OVERLAP:]]
        self.text = ""
        self._from, self._shown = 0, len(self.ids)

    def put(self, ids: Sequence[int], *, end: bool = False) -> str:
        """The text that these tokens complete; all that is left if no token follows."""
        self.ids += [int(i) for i in ids]
        before = self._decode(self.ids[self._from : self._shown])
        now = self._decode(self.ids[self._from :])
        if not end and (now.endswith(_BROKEN) or not now.startswith(before)):
            return ""
        piece = now[len(before) :]
        self._shown = len(self.ids)
        self._from = max(self._from, self._shown - _OVERLAP)
        self.text += piece
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self.tokenizer, ids, self.skip_special_tokens)


def find_stop(text: str, stop_strings: Sequence[str]) -> int | None:
    """Start of the first stop string in the text; None if there is none."""
    places = [place for string in stop_strings if (place := text.find(string)) >= 0]
    return min(places, default=None)


def held_back(text: str, stop_strings: Sequence[str]) -> int:
    """Number of characters at the end that may begin a stop string."""
    begun = (string[:size] for string in stop_strings for size in range(1, len(string)))
    return max((len(part) for part in begun if text.endswith(part)), default=0)


def stopped_length(
    tokenizer: Any, ids: Sequence[int], stop_strings: Sequence[str], before: Sequence[int] = ()
) -> int | None:
    """Number of tokens, after those ``before``, until a stop string is complete; None if there is none."""

    def complete(count: int) -> bool:
        return find_stop(added_text(tokenizer, before, ids[:count]), stop_strings) is not None

    if not complete(len(ids)):
        return None
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if complete(middle) else (middle + 1, high)
    return low
