"""The frame of a text: the special tokens that a tokenizer puts around one text, a pair of texts, or a target."""

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import processors

from jaxformer.schema import UserError
from jaxformer.tokenizers.opening import PreTrainedTokenizer

Ids = Sequence[int]


class Framed(NamedTuple):
    """A text or a pair with its special tokens.

    Attributes:
        ids: all tokens.
        types: their token types, all 0 for a tokenizer of a model without types.
        first: place of the first token of the first text.
        second: place of the first token of the second text, or behind the last token where there is none.
    """

    ids: list[int]
    types: list[int]
    first: int
    second: int


class Frame(NamedTuple):
    """Special tokens before the first text, between two texts, and after the last one, each with their token types."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[int, ...]  # of before, the first text, between, the second text, and after
    first_keeps: bool = False  # at a tie the first text of a pair keeps one token more: tokenizers written in Python

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, first: Ids, second: Ids | None = None, length: int | None = None) -> Framed:
        """The texts in their frame, truncated to ``length`` tokens in all: a pair from its longer text first."""
        second = () if second is None else second
        if length is not None:
            a, b = pair_lengths(len(first), len(second), length - self.size, self.first_keeps)
            first, second = first[:a], second[:b]
        parts = (self.before, first, self.between, second, self.after)
        types = [kind for part, kind in zip(parts, self.types, strict=True) for _ in part]
        place = len(self.before) + len(first) + len(self.between)
        return Framed([token for part in parts for token in part], types, len(self.before), place)


def pair_lengths(first: int, second: int, budget: int, first_keeps: bool = False) -> tuple[int, int]:
    """Lengths of two texts truncated to ``budget`` tokens in all, from the longer one first.

    The ``longest_first`` truncation of the `tokenizers` library: what both lose goes half and half, and of an odd rest
    the longer text keeps one token more (at a tie the second). Tokenizers that are written in Python leave it to the
    first text, ``first_keeps``.

    >>> pair_lengths(9, 4, 10), pair_lengths(9, 9, 9), pair_lengths(9, 8, 9)
    ((6, 4), (4, 5), (5, 4))
    """
    if first + second <= budget:
        return first, second
    short, half = min(first, second), budget // 2
    kept = (short, budget - short) if short <= half else (half, budget - half)
    if first_keeps and short > half:
        return budget - half, half
    return kept if first <= second else kept[::-1]


def frame_of(tokenizer: PreTrainedTokenizer, *, pair: bool = False, target: bool = False) -> Frame:
    """The frame of one text, of a pair, or of a target (``text_target`` of transformers), found by a call.

    Raises:
        UserError: The tokenizer changes a text when it frames it.
    """
    texts = {"text_target": "a"} if target else {"text": "a"}
    plain = list(tokenizer(**texts, add_special_tokens=False)["input_ids"])
    batch = tokenizer(**texts, **({"text_pair": "a"} if pair else {}))
    ids = list(batch["input_ids"])
    types = list(batch["token_type_ids"]) if "token_type_ids" in batch else [0] * len(ids)
    first = _find(plain, ids, 0)
    second = _find(plain, ids, first + len(plain)) if pair and first >= 0 else first
    if first < 0 or second < 0:
        raise UserError(f"a {type(tokenizer).__name__} puts no fixed tokens around a text, expected one that does")
    end = second + len(plain)
    before, after = ids[:first], ids[end:]
    between = ids[first + len(plain) : second] if pair else []
    kinds = [types[0], types[first], types[second - 1], types[second], types[-1]]
    return Frame(before, between, after, tuple(kinds), first_keeps=not tokenizer.is_fast)


def _find(part: list[int], ids: list[int], start: int) -> int:
    """The first place of ``part`` in ``ids`` from ``start`` on, -1 if there is none."""
    places = range(start, len(ids) - len(part) + 1)
    return next((place for place in places if ids[place : place + len(part)] == part), -1)


def give_frame(tokenizer: PreTrainedTokenizer, first: str | None, last: str) -> None:
    """Gives a tokenizer that adds nothing the frame ``first text last`` and ``first text last text last``."""
    lead = [] if first is None else [first]
    single, pair = [*lead, "$A", last], [*lead, "$A", last, "$B:1", f"{last}:1"]
    if first is None:
        pair = ["$A", last, "$B", last]
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys((*lead, last))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(single), pair=" ".join(pair), special_tokens=ids
    )
