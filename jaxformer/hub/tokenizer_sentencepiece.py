"""SentencePiece ``.model`` files (Kudo and Richardson 2018) read and turned into ``tokenizers`` of the same ids.

The file is a protocol buffer of which five kinds of field matter, so it is read here, without the ``sentencepiece`` and
``protobuf`` packages.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxformer.hub.tokenizer_backends import LARGEST_VOCABULARY
from jaxformer.hub.tokenizer_kinds import Kind
from jaxformer.schema import UserError

MBART_LANGUAGES = [
    *("ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT", "ja_XX"),
    *("kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK", "tr_TR", "vi_VN"),
    "zh_CN",
]
BLANK = "▁"
UNIGRAM, BPE = 1, 2
_CONTROL, _USER_DEFINED = 3, 4
_LONGEST_MERGED = 1000  # characters; a trained piece has 16 or, where it was asked for, some dozens


@dataclass
class SentencePieceModel:
    """What a ``.model`` file says.

    Attributes:
        pieces: each piece's text, score and type, in the order of their ids.
        algorithm: 1 Unigram, 2 BPE.
        unknown: id of the unknown piece.
        byte_fallback: whether unknown characters become their bytes.
        charsmap: the compiled normalization, empty if there is none.
        dummy_prefix: whether a blank is put before the text.
        remove_blanks: whether blanks at the ends, and further blanks in a row, are dropped.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    algorithm: int = UNIGRAM
    unknown: int = 0
    byte_fallback: bool = False
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_blanks: bool = True


class _TruncatedError(Exception):
    """The bytes end within a field, or are no protocol buffer."""


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _TruncatedError
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _TruncatedError


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The number and value of each field of a message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _TruncatedError
        if position + size > len(data):
            raise _TruncatedError
        yield number, data[position : position + size]
        position += size


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = float(struct.unpack("<f", value)[0])
        elif number == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """What the bytes of a ``.model`` file say.

    Raises:
        ValueError: they are not such a file, or are cut off.
    """
    model = SentencePieceModel()
    try:
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                model.pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                trainer = dict(_fields(value))
                model.algorithm = _whole(trainer.get(3, UNIGRAM))
                model.byte_fallback = bool(trainer.get(35, 0))
                model.unknown = _whole(trainer.get(40, 0))
            elif number == 3 and isinstance(value, bytes):
                normalizer = dict(_fields(value))
                charsmap = normalizer.get(2, b"")
                model.charsmap = charsmap if isinstance(charsmap, bytes) else b""
                model.dummy_prefix = bool(normalizer.get(3, 1))
                model.remove_blanks = bool(normalizer.get(4, 1))
    except (_TruncatedError, UnicodeDecodeError):
        raise ValueError("it is cut off or no SentencePiece model") from None
    if not model.pieces:
        raise ValueError("it holds no pieces")
    return model


def _whole(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise _TruncatedError
    return value


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a ``.model`` file.

    Raises:
        UserError: it is none, is cut off, or is of an algorithm other than Unigram and BPE.
    """
    if path.stat().st_size > LARGEST_VOCABULARY:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, expected at most {LARGEST_VOCABULARY:,}")
    try:
        model = parse_sentencepiece(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} cannot be read as a SentencePiece model: {error}; download it again") from error
    if model.algorithm not in (UNIGRAM, BPE) or not 0 <= model.unknown < len(model.pieces):
        raise UserError(
            f"{path} is of algorithm {model.algorithm} with the unknown id {model.unknown}, expected 1 (Unigram) or "
            f"2 (BPE) and an id below {len(model.pieces)}"
        )
    return model


def bpe_merges(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges that make the pieces, in the order in which SentencePiece applies them: the best score first.

    Pieces of more than 1000 characters are left unmerged.
    """
    found = []
    for piece, score in scores.items():
        if len(piece) > _LONGEST_MERGED:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, vocabulary[piece], vocabulary[left], vocabulary[right], left, right))
    return [(merge[-2], merge[-1]) for merge in sorted(found)]


def _metaspace(scheme: str = "always", split: bool = True) -> Any:
    return pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme=scheme, split=split)


def _words() -> Any:
    """Words, each behind the mark of a blank: what SentencePiece makes of a text whose further blanks it drops."""
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), _metaspace()])


def _normalizer(model: SentencePieceModel, before: list[Any]) -> Any:
    steps = [*before, *([normalizers.Precompiled(model.charsmap)] if model.charsmap else [])]
    return normalizers.Sequence(steps) if steps else None


def _unigram(
    model: SentencePieceModel, vocabulary: list[tuple[str, float]], unknown: int, before: list[Any]
) -> hf.Tokenizer:
    if model.algorithm != UNIGRAM:
        raise UserError("the SentencePiece model is BPE, expected Unigram for this tokenizer; check tokenizer_class")
    backend = hf.Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    normalizer = _normalizer(model, before)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = _words()
    backend.decoder = decoders.Metaspace(replacement=BLANK, prepend_scheme="always")
    return backend


def _template(backend: hf.Tokenizer, single: list[str], pair: list[str]) -> None:
    names = {part.removesuffix(":1") for part in (*single, *pair) if not part.startswith("$")}
    ids = {name: backend.token_to_id(name) for name in sorted(names)}
    missing = [name for name, number in ids.items() if number is None]
    if missing:
        raise UserError(
            f"the SentencePiece model has no {missing[0]!r}, expected the file that goes with this tokenizer"
        )
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(ids.items()))


def _build_t5(model: SentencePieceModel, special: Mapping[str, str], settings: Mapping[str, Any]) -> hf.Tokenizer:
    extra = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(int(settings["extra_ids"])))]
    vocabulary = [(text, score) for text, score, _ in model.pieces] + extra
    backend = _unigram(model, vocabulary, model.unknown, [])
    end = special["eos_token"]
    _template(backend, ["$A", end], ["$A", end, "$B", end])
    return backend


def _build_albert(model: SentencePieceModel, special: Mapping[str, str], settings: Mapping[str, Any]) -> hf.Tokenizer:
    before: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        before += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        before.append(normalizers.Lowercase())
    # ALBERT never leaves a comma on a number ("1," is "1" and ","): such pieces are made too unlikely to be chosen.
    vocabulary = [
        (text, score - 100.0 if len(text) > 1 and text[-1] == "," and text[-2].isdigit() else score)
        for text, score, _ in model.pieces
    ]
    backend = _unigram(model, vocabulary, model.unknown, before)
    cls, sep = special["cls_token"], special["sep_token"]
    _template(backend, [cls, "$A", sep], [cls, "$A", sep, "$B:1", f"{sep}:1"])
    return backend


def _fairseq(model: SentencePieceModel, special: Mapping[str, str]) -> list[tuple[str, float]]:
    """Fairseq's own four special tokens stand before the pieces, in place of SentencePiece's three."""
    own = [(special[f"{name}_token"], 0.0) for name in ("bos", "pad", "eos", "unk")]
    return own + [(text, score) for text, score, _ in model.pieces[3:]]


def _build_xlm_roberta(
    model: SentencePieceModel, special: Mapping[str, str], settings: Mapping[str, Any]
) -> hf.Tokenizer:
    vocabulary = [*_fairseq(model, special), (special["mask_token"], 0.0)]
    backend = _unigram(model, vocabulary, 3, [])
    start, end = special["bos_token"], special["eos_token"]
    _template(backend, [start, "$A", end], [start, "$A", end, end, "$B", end])
    return backend


def _build_mbart(model: SentencePieceModel, special: Mapping[str, str], settings: Mapping[str, Any]) -> hf.Tokenizer:
    codes = [(code, 0.0) for code in MBART_LANGUAGES]
    backend = _unigram(model, [*_fairseq(model, special), *codes, (special["mask_token"], 0.0)], 3, [])
    end = [special["eos_token"], settings.get("src_lang") or "en_XX"]
    _template(backend, ["$A", *end], ["$A", "$B", *end])
    return backend


def _build_pegasus(model: SentencePieceModel, special: Mapping[str, str], settings: Mapping[str, Any]) -> hf.Tokenizer:
    offset = int(settings["offset"])
    sentence_mask = settings.get("mask_token_sent", "<mask_1>")
    own = [special["pad_token"], special["eos_token"], *([sentence_mask] if sentence_mask else [])]
    own += [special["mask_token"]] if special.get("mask_token") else []
    unused = [f"<unk_{i}>" for i in range(2, offset)]
    vocabulary = [*((name, 0.0) for name in own), *((name, -100.0) for name in unused)]
    shift = len(vocabulary) - 2
    vocabulary += [(text, score) for text, score, _ in model.pieces[2:]]
    backend = _unigram(model, vocabulary, model.unknown + shift, [])
    end = special["eos_token"]
    _template(backend, ["$A", end], ["$A", "$B", end])
    return backend


def _bpe(model: SentencePieceModel, names: Mapping[int, str], special: Mapping[str, str]) -> hf.Tokenizer:
    if model.algorithm != BPE:
        raise UserError("the SentencePiece model is Unigram, expected BPE for this tokenizer; check tokenizer_class")
    texts = [names.get(i, text) for i, (text, _, _) in enumerate(model.pieces)]
    vocabulary = {text: i for i, text in enumerate(texts)}
    scores = {
        text: score for text, (_, score, kind) in zip(texts, model.pieces, strict=True) if kind in (1, _USER_DEFINED)
    }
    merges = bpe_merges(vocabulary, scores)
    backend = hf.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=special["unk_token"] if special["unk_token"] in vocabulary else None,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    added = [
        hf.AddedToken(text, normalized=False, special=kind == _CONTROL)
        for text, (_, _, kind) in zip(texts, model.pieces, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens(added)
    return backend


def _build_llama(model: SentencePieceModel, special: Mapping[str, str], settings: Mapping[str, Any]) -> hf.Tokenizer:
    backend = _bpe(model, {}, special)
    prefix = settings.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    steps = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if settings.get("legacy", False):
        before = [normalizers.Prepend(BLANK)] if prefix else []
        backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", BLANK)])
    else:
        backend.pre_tokenizer = _metaspace("first" if prefix else "never", split=False)
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return backend


def _build_gemma(model: SentencePieceModel, special: Mapping[str, str], settings: Mapping[str, Any]) -> hf.Tokenizer:
    names = {}
    if not any(text == "\t" for text, _, _ in model.pieces):
        # Gemma's tab has no piece, only a byte: named as the tab, it is found without the detour over bytes.
        names = {i: "\t" for i, (text, _, _) in enumerate(model.pieces) if text == "<0x09>"}
    backend = _bpe(model, names, special)
    backend.normalizer = normalizers.Replace(" ", BLANK)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


_BUILDERS = {
    "T5Tokenizer": _build_t5,
    "AlbertTokenizer": _build_albert,
    "XLMRobertaTokenizer": _build_xlm_roberta,
    "MBartTokenizer": _build_mbart,
    "PegasusTokenizer": _build_pegasus,
    "LlamaTokenizer": _build_llama,
    "GemmaTokenizer": _build_gemma,
}


def build_sentencepiece(
    kind: Kind, model: SentencePieceModel, special: Mapping[str, str], settings: Mapping[str, Any]
) -> hf.Tokenizer:
    """The tokenizer of that kind over the model's pieces.

    ``legacy`` of LLaMA: a blank is put before each stretch of text between special tokens, else only before the first,
    and there only where the text does not begin with one.

    Raises:
        UserError: the model is not one of that kind.
    """
    return _BUILDERS[kind.name](model, special, settings)


def further_special(kind: Kind, settings: Mapping[str, Any]) -> list[str]:
    """The special tokens without a name that a kind has: sentinels, languages, places kept free."""
    if kind.name in ("T5Tokenizer", "ByT5Tokenizer"):
        return [f"<extra_id_{i}>" for i in range(int(settings["extra_ids"]))]
    if kind.name == "PegasusTokenizer":
        sentence_mask = settings.get("mask_token_sent", "<mask_1>")
        unused = [f"<unk_{i}>" for i in range(2, int(settings["offset"]))]
        return [*([sentence_mask] if sentence_mask else []), *unused]
    return MBART_LANGUAGES if kind.name == "MBartTokenizer" else []
