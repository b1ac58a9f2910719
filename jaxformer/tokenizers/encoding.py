"""Text to token ids for training: nothing is added, truncated or padded."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from jaxformer.schema import UserError
from jaxformer.tokenizers.opening import PreTrainedTokenizer

Span = tuple[int, int]


def splits_special_tokens(tokenizer: PreTrainedTokenizer) -> bool:
    """True if a special token that a text contains is cut into pieces like other text, False if it is one token.

    The setting of transformers, which is saved with the tokenizer, so that training and prediction agree. It is true
    for tokenizers that are trained here.
    """
    return bool(tokenizer.split_special_tokens)


def encode(tokenizer: PreTrainedTokenizer, text: str) -> list[int]:
    """The ids of a text without those that frame it; special tokens in it are read by `splits_special_tokens`."""
    return encode_batch(tokenizer, [text])[0]


def encode_batch(tokenizer: PreTrainedTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, as `encode`, on all cores."""
    backend = _prepared(tokenizer, special_as_text=splits_special_tokens(tokenizer))
    if backend is None:
        return [_python_ids(tokenizer, text) for text in texts]
    # The "fast" variant is the same but for the offsets, which are not needed here.
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def encode_with_offsets(tokenizer: PreTrainedTokenizer, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
    """The ids of each text, and for each id the characters `[start, end)` of the text that it stands for.

    Blanks at the ends of a token do not count, unless it holds nothing else. Tokens that are parts of one character
    all have that character. Characters that the normalizer adds or removes are mapped back to the text as given; an
    accent or jamo that it composes with the character before, or removes, belongs to the token of that character.
    """
    backend = _prepared(tokenizer, special_as_text=splits_special_tokens(tokenizer))
    if backend is None:
        rows = [_python_ids(tokenizer, text) for text in texts]
        return [(ids, _byte_offsets(tokenizer, text, ids)) for text, ids in zip(texts, rows, strict=True)]
    encoded = backend.encode_batch(list(texts), add_special_tokens=False)
    return [
        (encoding.ids, whole_characters(text, [_without_blanks(text, *offsets) for offsets in encoding.offsets]))
        for text, encoding in zip(texts, encoded, strict=True)
    ]


def shorten(tokenizer: PreTrainedTokenizer, text: str, most: int) -> str:
    """The beginning of a text that has at most `most` tokens: the text ends where the last of them does."""
    while True:
        ids, offsets = encode_with_offsets(tokenizer, [text])[0]
        if len(ids) <= most:
            return text
        end = offsets[most - 1][1]
        # Parts of one character end where it does, and a shorter text may have other tokens.
        text = text[: end if end < len(text) else -1]


def encode_marked(tokenizer: PreTrainedTokenizer, text: str) -> tuple[list[int], list[Span]]:
    """The ids of a text in which special tokens are read as such, and the characters `[start, end)` of each.

    For what the library or a chat template wrote.

    Raises:
        UserError: The tokenizer has no offsets.
    """
    backend = _prepared(tokenizer, special_as_text=False)
    if backend is None:
        raise UserError(
            f"a {type(tokenizer).__name__} does not say which characters a token stands for, expected a tokenizer with "
            "a tokenizer.json"
        )
    encoding = backend.encode(text, add_special_tokens=False)
    return list(encoding.ids), list(encoding.offsets)


def whole_characters(text: str, spans: Sequence[Span], tokens: Sequence[Span] | None = None) -> list[Span]:
    """Spans ``[start, end)`` of a text, lengthened by the marks and jamo behind them that no token has.

    Normalizers that compose (NFC, NFKC, those of SentencePiece) place a composed character where its first part is, and
    no more; those that remove accents say nothing of them.

    Args:
        text: as given to the tokenizer.
        spans: the spans to lengthen.
        tokens: the spans of all tokens of the text; default: ``spans``.
    """
    if text.isascii():
        return list(spans)
    covered = bytearray(len(text))
    for start, end in spans if tokens is None else tokens:
        covered[start:end] = b"\1" * (end - start)
    found = []
    for start, end in spans:
        while start < end < len(text) and not covered[end] and _joins(text, end):
            end += 1
        found.append((start, end))
    return found


def _joins(text: str, place: int) -> bool:
    """Returns whether the character at ``place`` is a mark, or composes with the one or two characters before it."""
    if unicodedata.category(text[place]).startswith("M"):
        return True
    starts = [start for start in (place - 1, place - 2) if start >= 0]
    return any(len(unicodedata.normalize("NFKC", text[start : place + 1])) == 1 for start in starts)


def decode(tokenizer: PreTrainedTokenizer, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
    """The text of ids, by default without special tokens; ids of a model's spare rows have none."""
    ids = [int(i) for i in ids]
    if not getattr(tokenizer, "is_fast", True):  # one that is written in Python may raise at a spare id
        ids = [i for i in ids if i < len(tokenizer)]
    return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)) if ids else ""


def _prepared(tokenizer: PreTrainedTokenizer, special_as_text: bool) -> Any:
    """The backend set for the next call, None for a tokenizer written in Python.

    `transformers` sets truncation, padding and this flag anew in each call of its own.
    """
    if hasattr(tokenizer, "spm_target"):
        raise UserError(
            f"a {type(tokenizer).__name__} cuts source and target with two models, expected one tokenizer.json for all "
            "texts; make the rows with the tokenizer itself, or train with another tokenizer"
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = special_as_text
    return backend


def _python_ids(tokenizer: PreTrainedTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _byte_offsets(tokenizer: PreTrainedTokenizer, text: str, ids: Sequence[int]) -> list[Span]:
    """ByT5's: the character of each byte, and the characters of a special token; blanks beside one may be left out."""
    owners = [i for i, character in enumerate(text) for _ in character.encode()]
    data, place, spans = text.encode(), 0, []
    for token in tokenizer.convert_ids_to_tokens(ids):
        part = token.encode() if token in tokenizer.added_tokens_encoder else bytes([ord(token)])
        place = data.index(part, place)
        spans.append((owners[place], owners[place + len(part) - 1] + 1))
        place += len(part)
    return spans


def _without_blanks(text: str, start: int, end: int) -> Span:
    part = text[start:end]
    if not part or part.isspace():
        return start, end
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
