"""Trains a tokenizer on the run's own texts: seven kinds.

Byte, BPE, WordPiece and Unigram work on the 256 byte-level characters (GPT-2, Radford et al. 2019, section 2.2), all
of which are always in the vocabulary, so that any text comes back exactly; `jamo` brings back any composed (NFC)
text, a letter with several marks perhaps in an equal form; `character` and `word` every character and word they know.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxformer.schema import UserError
from jaxformer.tokenizers.config import TokenizerConfig
from jaxformer.tokenizers.jamo import SMALLEST, train_jamo
from jaxformer.tokenizers.opening import PreTrainedTokenizer, wrap_backend

EOS = "<|endoftext|>"
UNKNOWN = "<|unk|>"
# A word with the blank before it, hyphens and apostrophes inside; a digit, a sign, a blank.
WORDS = r" ?[^\W\d]+(?:['’-][^\W\d]+)*| ?\d| ?[^\w\s]|\s"
WORDPIECE_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNIGRAM_SPECIALS = ["<pad>", "</s>", "<unk>"]
# WordPiece turns a longer word into [UNK] and takes quadratic time on it, so that longer words are cut here.
WORDPIECE_LONGEST_WORD = 100


def byte_characters() -> list[str]:
    """The character that stands for each byte in the byte-level alphabet, in the order of the bytes.

    Printable bytes stand for themselves, the others take the characters from U+0100 on (Radford et al. 2019, GPT-2).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _require_vocab_size(
    kind: str, vocab_size: int, smallest: int, what: str = "the bytes and its special tokens"
) -> None:
    if vocab_size < smallest:
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}, but {kind} needs at least {smallest} for {what}: raise it, or set "
            "tokenizer.type to 'byte'"
        )


def _byte_level(model: models.Model, use_regex: bool = True) -> hf.Tokenizer:
    tokenizer = hf.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train_byte(vocab_size: int, texts: Iterable[str]) -> hf.Tokenizer:
    vocab = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = _byte_level(models.BPE(vocab=vocab, merges=[]), use_regex=False)
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def _train_character(vocab_size: int, texts: Iterable[str]) -> hf.Tokenizer:
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    vocab = {token: i for i, token in enumerate([*sorted(seen), EOS, UNKNOWN])}
    tokenizer = hf.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    # Unlike ".", this also takes line ends; unlike r"\X", it never joins characters.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(hf.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([EOS, UNKNOWN])
    return tokenizer


def _train_word(vocab_size: int, texts: Iterable[str]) -> hf.Tokenizer:
    """The most frequent words, each with the blank before it: in a text a word is ``·cat``, at its start ``cat``."""
    _require_vocab_size("word", vocab_size, 3, "a word and its special tokens")
    tokenizer = hf.Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(hf.Regex(WORDS), "isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=[EOS, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_jamo(vocab_size: int, texts: Iterable[str]) -> hf.Tokenizer:
    _require_vocab_size("jamo", vocab_size, SMALLEST, "jamo, ASCII, the bytes and its special token")
    return train_jamo(vocab_size, texts, EOS)


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> hf.Tokenizer:
    _require_vocab_size("bpe", vocab_size, 256 + 1)
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=byte_characters(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_wordpiece(vocab_size: int, texts: Iterable[str]) -> hf.Tokenizer:
    """WordPiece over bytes. Each byte has two pieces: one that begins a word and one, "##x", that continues it."""
    starts = byte_characters()
    continuations = ["##" + character for character in starts]
    _require_vocab_size("wordpiece", vocab_size, len(WORDPIECE_SPECIALS) + 2 * 256)
    # No word begins with "##" if every "#" is a word by itself: the decoder may then remove "##" wherever a token
    # begins with it.
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("#", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.FixedLength(length=WORDPIECE_LONGEST_WORD),
        ]
    )
    learner = hf.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = split
    # The continuations are named to the trainer as special tokens only because that gives them a place in the
    # vocabulary before training: else it holds those it happens to meet, numbered in the random order of a hash table,
    # and breaks ties between merges by these numbers.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*WORDPIECE_SPECIALS, *continuations],
        initial_alphabet=starts,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = hf.Tokenizer(
        models.WordPiece(learner.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=WORDPIECE_LONGEST_WORD)
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence([decoders.Replace(hf.Regex("^##"), ""), decoders.ByteLevel()])
    tokenizer.add_special_tokens(WORDPIECE_SPECIALS)
    return tokenizer


def _train_unigram(vocab_size: int, texts: Iterable[str]) -> hf.Tokenizer:
    """Unigram (Kudo 2018) over bytes."""
    _require_vocab_size("unigram", vocab_size, len(UNIGRAM_SPECIALS) + 256)
    learner = _byte_level(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=UNIGRAM_SPECIALS,
        unk_token="<unk>",
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    pieces = json.loads(learner.to_str())["model"]["vocab"][len(UNIGRAM_SPECIALS) :]
    specials = [(token, 0.0) for token in UNIGRAM_SPECIALS]
    unknown = UNIGRAM_SPECIALS.index("<unk>")
    learned = _canonical(pieces, vocab_size - len(specials))
    tokenizer = _byte_level(models.Unigram([*specials, *learned], unk_id=unknown))
    tokenizer.add_special_tokens(UNIGRAM_SPECIALS)
    return tokenizer


def _canonical(pieces: list[tuple[str, float]], limit: int) -> list[tuple[str, float]]:
    """At most `limit` of the pieces, without the traces of the trainer's hash order, so that training twice agrees.

    The trainer sums in random order, which moves scores by about 1e-11, and gives the bytes it never saw the lowest
    score plus a step of 0.0001 each, in random order too. It also keeps pieces too many when `limit` is near 256.
    """
    lowest = min(score for _, score in pieces)
    unseen = 0.0001 * 256
    rounded = [(p, round(lowest if len(p) == 1 and s < lowest + unseen else s, 6)) for p, s in pieces]
    # The bytes first, so that what is cut off is never one of them.
    kept = sorted(rounded, key=lambda piece: (len(piece[0]) > 1, -piece[1], piece[0]))[:limit]
    return sorted(kept, key=lambda piece: (-piece[1], piece[0]))


# Each takes the size of the vocabulary and the texts.
TRAINERS: dict[str, Callable[[int, Iterable[str]], hf.Tokenizer]] = {
    "byte": _train_byte,
    "character": _train_character,
    "word": _train_word,
    "jamo": _train_jamo,
    "bpe": _train_bpe,
    "wordpiece": _train_wordpiece,
    "unigram": _train_unigram,
}
# The roles of each kind's special tokens.
SPECIAL_TOKENS: dict[str, dict[str, str]] = {
    "byte": {"eos_token": EOS},
    "character": {"eos_token": EOS, "unk_token": UNKNOWN},
    "word": {"eos_token": EOS, "unk_token": UNKNOWN},
    "jamo": {"eos_token": EOS},
    "bpe": {"eos_token": EOS},
    "wordpiece": {f"{token.strip('[]').lower()}_token": token for token in WORDPIECE_SPECIALS},
    "unigram": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> PreTrainedTokenizer:
    """Trains a tokenizer of `config.type`; the same texts in the same order give the same tokenizer.

    The texts are read once and not kept. The vocabulary is smaller than `config.vocab_size` if the texts hold no more
    pieces to learn.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.

    Raises:
        UserError: The texts are empty, or `config.vocab_size` cannot hold the bytes and the special tokens.
    """
    if config.type not in TRAINERS:
        raise UserError(f"tokenizer.type is {config.type!r}, which is loaded, not trained")
    split = True if config.split_special_tokens is None else config.split_special_tokens
    backend = TRAINERS[config.type](config.vocab_size, _require_text(texts))
    return wrap_backend(backend, split_special_tokens=split, **SPECIAL_TOKENS[config.type])


def _require_text(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are not empty; an error if there is none."""
    present = (text for text in texts if text)
    first = next(present, None)
    if first is None:
        raise UserError("cannot train a tokenizer: got no text, expected at least one character; check data.path")
    return chain([first], present)
