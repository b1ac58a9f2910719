"""Tokenizers of the ``tokenizers`` library built from the vocabulary files of BERT, GPT-2, RoBERTa, GPT, CLIP, ByT5."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxformer.hub.tokenizer_kinds import Kind
from jaxformer.schema import UserError
from jaxformer.tokenizers.training import byte_characters

LARGEST_VOCABULARY = 64 << 20  # bytes of a vocab.txt, vocab.json or merges.txt
_END_OF_WORD = "</w>"
# Contractions, words, single digits and the rest: the words that CLIP's vocabulary was made from.
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # as OpenAI has it
)
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def backend_from_json(text: str, where: str | Path) -> hf.Tokenizer:
    """The tokenizer that a ``tokenizer.json`` holds.

    Raises:
        UserError: it holds none.
    """
    try:
        return hf.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and on a panic of its own a BaseException
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{where} is not a tokenizer.json of the `tokenizers` library: {said}") from error


def read_text(path: Path) -> str:
    """The text of a vocabulary file, its line ends made ``\\n``.

    Raises:
        UserError: it is too large or not UTF-8.
    """
    if path.stat().st_size > LARGEST_VOCABULARY:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, expected at most {LARGEST_VOCABULARY:,}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_word_list(path: Path) -> dict[str, int]:
    """The ids of a ``vocab.txt``: one token a line.

    Raises:
        UserError: it cannot be read, or holds nothing.
    """
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise UserError(f"{path} is empty, expected one token a line")
    return {token: number for number, token in enumerate(lines)}


def read_vocabulary(path: Path) -> dict[str, int]:
    """The ids of a ``vocab.json``.

    Raises:
        UserError: it does not map tokens to ids.
    """
    try:
        vocabulary = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not JSON: {error}") from error
    fits = isinstance(vocabulary, dict) and all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 31 for i in vocabulary.values()
    )
    if not fits or not vocabulary:
        raise UserError(f"{path} does not map tokens to ids, expected a JSON object of whole numbers from 0 on")
    return vocabulary


def read_merges(path: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges of a ``merges.txt``, the earliest first.

    Raises:
        UserError: a line is not two tokens, or its tokens are not in the vocabulary.
    """
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = tuple(line.strip().split(" "))
        if len(parts) != 2:
            raise UserError(f"line {number} of {path} is {line[:80]!r}, expected two tokens with a blank between")
        missing = next((part for part in (*parts, "".join(parts)) if part not in vocabulary), None)
        if missing is not None:
            raise UserError(
                f"line {number} of {path} needs the token {missing[:80]!r}, which the vocabulary has not; "
                "expected files that belong together"
            )
        merges.append((parts[0], parts[1]))
    return merges


def _require(special: Mapping[str, str], role: str, vocabulary: Mapping[str, int]) -> tuple[str, int]:
    token = special.get(f"{role}_token")
    if token is None or token not in vocabulary:
        raise UserError(
            f"the vocabulary has no {role} token, got {token!r}; expected the file that goes with this tokenizer, or "
            f"its name in {role}_token="
        )
    return token, vocabulary[token]


def bert_processor(cls: tuple[str, int], sep: tuple[str, int]) -> Any:
    """``[CLS] A [SEP]`` and ``[CLS] A [SEP] B [SEP]``, the second text of type 1."""
    return processors.TemplateProcessing(
        single=[cls[0], "$A", sep[0]],
        pair=[cls[0], "$A", sep[0], "$B:1", f"{sep[0]}:1"],
        special_tokens=[cls, sep],
    )


def bos_eos_processor(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> Any:
    """``bos A eos`` and ``bos A eos bos B eos``, without what is None; the second text is of type 1."""
    first = [*([bos[0]] if bos else []), "$A", *([eos[0]] if eos else [])]
    second = [*([f"{bos[0]}:1"] if bos else []), "$B:1", *([f"{eos[0]}:1"] if eos else [])]
    tokens = list({token[0]: token for token in (bos, eos) if token}.values())
    return processors.TemplateProcessing(single=first, pair=first + second, special_tokens=tokens)


def build_wordpiece(
    vocabulary: dict[str, int], special: Mapping[str, str], settings: Mapping[str, Any]
) -> hf.Tokenizer:
    """BERT's: its normalizer, words and punctuation, longest piece first (Devlin et al. 2018)."""
    unknown, _ = _require(special, "unk", vocabulary)
    backend = hf.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = bert_processor(_require(special, "cls", vocabulary), _require(special, "sep", vocabulary))
    return backend


def build_byte_bpe(
    kind: Kind,
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    special: Mapping[str, str],
    settings: Mapping[str, Any],
) -> hf.Tokenizer:
    """GPT-2's byte-level BPE (Radford et al. 2019); RoBERTa's adds ``<s> A </s></s> B </s>`` around the texts."""
    prefix = bool(settings.get("add_prefix_space", False))
    backend = hf.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    if kind.name == "Qwen2Tokenizer":
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(hf.Regex(_QWEN_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
            ]
        )
    if "cls_token" in kind.special:
        backend.post_processor = processors.RobertaProcessing(
            _require(special, "sep", vocabulary), _require(special, "cls", vocabulary), True, prefix
        )
    return backend


def build_word_bpe(
    kind: Kind, vocabulary: dict[str, int], merges: list[tuple[str, str]], special: Mapping[str, str]
) -> hf.Tokenizer:
    """BPE whose words end in ``</w>``: GPT's over characters (Radford et al. 2018), CLIP's over bytes."""
    unknown, _ = _require(special, "unk", vocabulary)
    backend = hf.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_END_OF_WORD, fuse_unk=False, unk_token=unknown)
    )
    if kind.name == "OpenAIGPTTokenizer":
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.BPEDecoder(suffix=_END_OF_WORD)
        return backend
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(hf.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(hf.Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.ByteLevel(),
            decoders.Replace(hf.Regex(f"{_END_OF_WORD}$"), ""),
            decoders.Replace(_END_OF_WORD, " "),
        ]
    )
    backend.post_processor = processors.RobertaProcessing(
        _require(special, "eos", vocabulary), _require(special, "bos", vocabulary), False, False
    )
    return backend


def build_bytes(special: Mapping[str, str], settings: Mapping[str, Any]) -> hf.Tokenizer:
    """ByT5's (Xue et al. 2021): three special tokens, the 256 bytes, the sentinels."""
    pad, end, unknown = (special[f"{role}_token"] for role in ("pad", "eos", "unk"))
    names = {pad: 0, end: 1, unknown: 2, **{name: 3 + byte for byte, name in enumerate(byte_characters())}}
    backend = hf.Tokenizer(models.BPE(vocab=names, merges=[], unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    # Written in a text, they take the blanks around them with them.
    backend.add_special_tokens([hf.AddedToken(token, lstrip=True, rstrip=True) for token in (pad, end, unknown)])
    backend.add_special_tokens([f"<extra_id_{i}>" for i in range(int(settings.get("extra_ids", 125)))])
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, 1)]
    )
    return backend


def language_processor(backend: hf.Tokenizer, kind: Kind, code: str, end: str | None) -> Any:
    """What puts the code of a language beside the texts: ``A </s> code`` in mBART, ``code A </s>`` after it.

    Raises:
        UserError: the vocabulary has no such code.
    """
    number = backend.token_to_id(code)
    stop = None if end is None else backend.token_to_id(end)
    if number is None or end is None or stop is None:
        raise UserError(f"{code!r} is no language of this tokenizer, expected a code like en_XX or eng_Latn of its own")
    before, after = ([code], [end]) if kind.languages == "prefix" else ([], [end, code])
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", "$B", *after],
        special_tokens=[(code, number), (end, stop)],
    )
