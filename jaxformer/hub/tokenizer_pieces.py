"""A SentencePiece model used for its pieces alone, as Marian does: their ids come from elsewhere."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers as hf
from tokenizers import models, normalizers, processors

from jaxformer.hub.repository import Repository
from jaxformer.hub.tokenizer_backends import read_vocabulary
from jaxformer.hub.tokenizer_encode import guarded
from jaxformer.hub.tokenizer_sentencepiece import BLANK, BPE, SentencePieceModel, read_sentencepiece
from jaxformer.schema import UserError

SOURCE, TARGET, VOCABULARY = "source.spm", "target.spm", "vocab.json"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6


class Charsmap:
    """A compiled normalization: at each place the longest of its sequences is replaced by what stands for it.

    The ``Precompiled`` of the ``tokenizers`` library goes by what is drawn as one character, and of one that a sequence
    begins it drops the marks behind: a capital with an accent of its own loses the accent with ``nmt_nfkc_cf``.
    """

    def __init__(self, data: bytes) -> None:
        """Reads the double array (Aoe 1989, as darts-clone packs it) and the replacements behind it.

        Raises:
            UserError: it is cut off.
        """
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 + size or size % 4:
            raise UserError("the normalization of a SentencePiece model is cut off; download the model again")
        self._units: list[int] = np.frombuffer(data[4 : 4 + size], "<u4").tolist()
        self._replacements = data[4 + size :]
        self._alone: dict[str, str | None] = {}

    def __call__(self, text: str) -> str:
        """The text, normalized."""
        found, place = [], 0
        while place < len(text):
            one = text[place]
            known = self._alone.get(one)
            if known is None:
                if one not in self._alone:
                    self._alone[one] = known = self._replaced_alone(one)
                if known is None:
                    known, size = self._longest(text[place : place + 32])  # no sequence of Unicode is as long
                    place += size - 1
            found.append(known)
            place += 1
        return "".join(found)

    def _replaced_alone(self, one: str) -> str | None:
        """What stands for a character, None if longer sequences begin with it."""
        matches, goes_on = self._walk(one.encode())
        if goes_on:
            return None
        return self._text(matches[-1][1]) if matches else one

    def _longest(self, text: str) -> tuple[str, int]:
        """What stands for the longest sequence that the text begins with, and its number of characters."""
        data = text.encode()
        matches, _ = self._walk(data)
        if not matches:
            return text[0], 1
        size, place = matches[-1]
        return self._text(place), max(1, len(data[:size].decode("utf-8", "ignore")))

    def _walk(self, data: bytes) -> tuple[list[tuple[int, int]], bool]:
        """Length and replacement of each sequence that the bytes begin with, and whether one goes on behind them."""
        units, matches = self._units, list[tuple[int, int]]()
        node = _offset(units[0]) if units else 0
        for number, byte in enumerate(data, 1):
            node ^= byte
            if node >= len(units) or units[node] & 0x8000_00FF != byte:
                return matches, False
            unit = units[node]
            node ^= _offset(unit)
            if unit >> 8 & 1 and node < len(units):
                matches.append((number, units[node] & 0x7FFF_FFFF))
        nexts = (node ^ byte for byte in range(1, 256))
        return matches, any(n < len(units) and units[n] & 0x8000_00FF == n ^ node for n in nexts)

    def _text(self, place: int) -> str:
        end = self._replacements.find(b"\0", place)
        return self._replacements[place : end if end >= 0 else None].decode("utf-8", "replace")


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


def _scored(model: SentencePieceModel) -> list[tuple[str, float]]:
    """The pieces as the Unigram model of the ``tokenizers`` library reads them.

    Pieces that no text is cut into (control tokens and the like) get names with a blank, which stands in no text here.
    Those that a user defined are likelier than whatever they could be put together from.
    """
    best = max((score for _, score, kind in model.pieces if kind == _NORMAL), default=0.0)
    found = []
    for number, (text, score, kind) in enumerate(model.pieces):
        if kind == _USER_DEFINED:
            score = best * len(text.encode()) - 0.1
        found.append((text if kind in (_NORMAL, _USER_DEFINED) else f" {number}", score))
    return found


def _blanks(model: SentencePieceModel) -> normalizers.Normalizer:
    """What SentencePiece does to blanks: trims them, marks them, puts one before the text."""
    steps: list[normalizers.Normalizer] = []
    if model.remove_blanks:
        steps += [normalizers.Replace(hf.Regex(r"\A +"), ""), normalizers.Replace(hf.Regex(" +"), " ")]
    steps.append(normalizers.Replace(" ", BLANK))
    if model.remove_blanks:
        steps.append(normalizers.Replace(hf.Regex(rf"{BLANK}+\z"), ""))
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(BLANK))
    return normalizers.Sequence(steps)


class Pieces:
    """A SentencePiece model: a text to pieces, and pieces to a text.

    Attributes:
        data: the bytes of its file.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            UserError: it is no SentencePiece model, or one of BPE.
        """
        model = read_sentencepiece(path)
        if model.algorithm == BPE:
            raise UserError(f"{path} is a SentencePiece model of BPE, expected Unigram, of which Marian's models are")
        self.data = path.read_bytes()
        self._kinds = {text: kind for text, _, kind in model.pieces}
        self._bytes = model.byte_fallback
        self._trims = (model.dummy_prefix or model.remove_blanks, model.remove_blanks)
        self._charsmap = Charsmap(model.charsmap) if model.charsmap else None
        own = sorted((text for text, _, kind in model.pieces if kind == _USER_DEFINED), key=len, reverse=True)
        self._own = re.compile(f"({'|'.join(map(re.escape, own))})") if own else None
        scored = _scored(model)
        self._backend = guarded(
            lambda: hf.Tokenizer(models.Unigram(scored, unk_id=model.unknown, byte_fallback=False)), f"reading {path}"
        )
        # Cut as a whole and not word by word: a piece may have a blank within.
        self._backend.normalizer = _blanks(model)

    def _normalized(self, text: str) -> str:
        if self._charsmap is None:
            return text
        if self._own is None:
            return self._charsmap(text)
        # What a user defined is left as it is.
        parts = self._own.split(text)
        return "".join(part if i % 2 else self._charsmap(part) for i, part in enumerate(parts))

    def cut(self, texts: Sequence[str]) -> list[list[str]]:
        """The pieces of each text; characters that no piece has stand for themselves, or as their bytes."""
        normalized = [self._normalized(text) for text in texts]
        rows = [row.tokens for row in self._backend.encode_batch(normalized, add_special_tokens=False)]
        return [[piece for token in row for piece in self._in_bytes(token)] for row in rows] if self._bytes else rows

    def _in_bytes(self, token: str) -> list[str]:
        if self._kinds.get(token) in (_NORMAL, _USER_DEFINED):
            return [token]
        return [f"<0x{byte:02X}>" for byte in token.encode()]

    def join(self, pieces: Sequence[str]) -> str:
        """The text of pieces, as this model has it: pieces of another model stay as they are."""
        text, raw, at_start = "", bytearray(), True
        for piece in pieces:
            kind = self._kinds.get(piece)
            if kind == _BYTE:
                raw.append(int(piece[3:5], 16))
                continue
            text, raw = text + _from_bytes(raw), bytearray()
            at_start = at_start and not text
            if kind is None:
                text += piece
            elif kind == _UNKNOWN:
                text += " ⁇ "
            elif kind != _CONTROL:
                trimmed = at_start and self._trims[0] and piece.startswith(BLANK)
                text += piece[trimmed:].replace(BLANK, " ")
                at_start = at_start and (not trimmed or self._trims[1])
        return text + _from_bytes(raw)


def _from_bytes(raw: bytearray) -> str:
    """The text of bytes, with a mark for each that is none of a character."""
    text = ""
    while True:
        try:
            return text + raw.decode()
        except UnicodeDecodeError as error:
            text += raw[: error.start].decode() + "\ufffd" * (error.end - error.start)
            raw = raw[error.end :]


def read_sides(repository: Repository) -> tuple[Pieces, Pieces]:
    """The pieces of both languages.

    Raises:
        UserError: a file is missing or broken.
    """
    source, target = _find(repository, SOURCE), _find(repository, TARGET)
    return Pieces(source), Pieces(target)


def _find(repository: Repository, file: str) -> Path:
    path = repository.find(file)
    if path is None:
        raise UserError(
            f"{repository.name} has no {file}, expected {SOURCE}, {TARGET} and {VOCABULARY} of a MarianTokenizer; "
            "copy it too"
        )
    return path


def build_vocabulary(repository: Repository, unknown: str, end: str) -> hf.Tokenizer:
    """What numbers the pieces, given one by one, by ``vocab.json``; ``</s>`` goes behind a text or a pair of them.

    Raises:
        UserError: the file is missing or broken, or lacks one of the two tokens.
    """
    path = _find(repository, VOCABULARY)
    vocabulary = read_vocabulary(path)
    for token in (unknown, end):
        if token not in vocabulary:
            raise UserError(f"{path} has no {token!r}, expected the file that goes with this MarianTokenizer")
    backend = hf.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", "$B:1", f"{end}:1"], special_tokens=[(end, vocabulary[end])]
    )
    return backend
