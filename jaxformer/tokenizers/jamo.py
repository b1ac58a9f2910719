"""A tokenizer for Korean below the syllable: BPE on jamo.

A Hangul syllable is written as its two or three jamo (Unicode, section 3.12: ``각`` is ``ᄀ ᅡ ᆨ``), so that endings which
change a part of a syllable are pieces of their own: ``갔다`` has the same ``ᆻ다`` as ``섰다``.
"""

import string
import sys
import unicodedata
from collections.abc import Iterable

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # as the decoder ByteFallback knows them
# Initial, medial and final jamo of modern syllables, letters of jamo alone (ㅋㅋ), and ASCII. All else is bytes.
ALPHABET = [
    *(
        chr(code)
        for first, last in ((0x1100, 0x1112), (0x1161, 0x1175), (0x11A8, 0x11C2))
        for code in range(first, last + 1)
    ),
    *(chr(code) for code in range(0x3131, 0x3164)),
    *string.digits + string.ascii_letters + string.punctuation + " \n\t",
]
SMALLEST = len(BYTES) + len(ALPHABET) + 1
# Words with the blank before them, runs of digits and of signs, blanks. No piece crosses them: none reads "<0x41>".
_WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


def train_jamo(vocab_size: int, texts: Iterable[str], end_of_text: str) -> hf.Tokenizer:
    """BPE on the jamo of the texts, with ``vocab_size`` pieces; decoding composes (NFC)."""
    learner = hf.Tokenizer(models.BPE(byte_fallback=True))
    learner.normalizer = normalizers.NFD()
    learner.pre_tokenizer = pre_tokenizers.Split(hf.Regex(_WORDS), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_of_text, *BYTES],  # named here, the bytes get a place in the vocabulary
        initial_alphabet=ALPHABET,
        limit_alphabet=len(ALPHABET),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = hf.Tokenizer(learner.model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), *_compositions()])
    tokenizer.add_special_tokens([end_of_text])
    return tokenizer


def _compositions() -> list[decoders.Decoder]:
    """A rule for each composed character of Unicode, 11,172 of them syllables, the longest sequences first.

    The library has no decoder that composes. A text of 500 syllables takes 15 ms.
    """
    composed = {}
    for character in map(chr, range(sys.maxunicode + 1)):
        parts = unicodedata.normalize("NFD", character)
        if parts != character and unicodedata.normalize("NFC", parts) == character:
            composed[parts] = character
    return [decoders.Replace(parts, composed[parts]) for parts in sorted(composed, key=lambda parts: -len(parts))]
