"""Tokens as texts that a reader knows."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from jaxformer.tokenizers.training import byte_characters

_BYTES = {character: byte for byte, character in enumerate(byte_characters())}
_SIGNS = {" ": "·", "▁": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}


def token_texts(tokens: Sequence[str], byte_level: bool | None = None) -> list[str]:
    """Tokens of a vocabulary as texts: bytes decoded, a blank as ``·``, a line end as ``↵``.

    A token with a part of a character shows that part's bytes; jamo that make up a syllable are one, others letters.

    Args:
        tokens: as ``tokenizer.convert_ids_to_tokens`` returns them, in the order of a text, or any texts.
        byte_level: whether each character stands for a byte, as in GPT-2; default: if all tokens together are such a
            text.

    >>> token_texts(["The", "Ġcat", "Ċ"]), token_texts(["▁The", "▁cat", "s"]), token_texts(["ìķĪ", "ëħķ"])
    (['The', '·cat', '↵'], ['·The', '·cat', 's'], ['안', '녕'])
    >>> token_texts(["ì", "ķĪ"]), token_texts(["kapı", "açık"])
    (['\\\\xec', '\\\\x95\\\\x88'], ['kapı', 'açık'])
    """
    if byte_level is None:
        byte_level = _is_byte_level(tokens)
    texts = [_decoded(token) if byte_level else token for token in tokens]
    return ["".join(map(_visible, unicodedata.normalize("NFC", text))) for text in texts]


def vocabulary_texts(tokens: Any, ids: Sequence[int]) -> list[str]:
    """The texts of ids: of a tokenizer, or of a list of the texts of all ids.

    A spare row of a model's table, which has no token, is ``#`` and its number.
    """
    backend = getattr(tokens, "backend_tokenizer", None)
    if hasattr(tokens, "convert_ids_to_tokens"):
        names = tokens.convert_ids_to_tokens(list(ids))
        byte_level = backend is not None and b'"ByteLevel"' in (backend.decoder.__getstate__() or b"")
    else:
        names = [tokens[i] if i < len(tokens) else None for i in ids]
        byte_level = _BYTES.keys() <= set(tokens)
    found = token_texts([name or "" for name in names], byte_level)
    return [text if name else f"#{i}" for text, name, i in zip(found, names, ids, strict=True)]


def _is_byte_level(tokens: Sequence[str]) -> bool:
    """True if some characters may be stand-ins for bytes, and all bytes together are a text but for its ends."""
    text = "".join(token for token in tokens if not _is_special(token))
    if not any(ord(character) >= 256 for character in text) or not _BYTES.keys() >= set(text):
        return False
    data = bytes(_BYTES[character] for character in text)
    start = next((i for i, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), 3)
    try:
        read = data[start:].decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        read = data[start : start + error.start].decode()
    return read != "" and all(character in _SIGNS or character >= " " for character in read)


def _is_special(token: str) -> bool:
    return len(token) > 2 and token[0] + token[-1] in ("<>", "[]")


def _decoded(token: str) -> str:
    if _is_special(token) or not _BYTES.keys() >= set(token):
        return token
    return bytes(_BYTES[character] for character in token).decode(errors="backslashreplace")


def _visible(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    name = unicodedata.name(character, "")
    for part in ("CHOSEONG", "JUNGSEONG", "JONGSEONG"):  # of a syllable, which fonts draw at its place in one
        if name.startswith(f"HANGUL {part} "):
            letter = name.replace(part, "LETTER")
            try:
                return unicodedata.lookup(letter)
            except KeyError:
                return character
    return character if character.isprintable() else character.encode("unicode_escape").decode()
