"""The characters of tokens, where a tokenizer composes or removes some."""

import unicodedata

import pytest
import tokenizers as hf
from tokenizers import models, normalizers, pre_tokenizers

import jaxformer
from jaxformer.tokenizers import decode, encode, encode_with_offsets, shorten, whole_characters, wrap_backend
from tests.golden import tokenizers as golden

TEXT = "각 뷁이 café x̂ ｶﾞ 가"
NORMALIZERS = {
    "NFC": normalizers.NFC(),
    "NFKC": normalizers.NFKC(),
    "NFD": normalizers.NFD(),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()]),
    "BERT": normalizers.BertNormalizer(),
}


def tokenizer_of(normalizer, byte_level, text):
    letters = pre_tokenizers.ByteLevel.alphabet() if byte_level else set(normalizer.normalize_str(text))
    backend = hf.Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(letters))}, []))
    backend.normalizer = normalizer
    if byte_level:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return wrap_backend(backend)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("byte_level", [False, True])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_every_character_is_of_a_token(normalizer, byte_level, form):
    text = unicodedata.normalize(form, TEXT)
    [(_, offsets)] = encode_with_offsets(tokenizer_of(NORMALIZERS[normalizer], byte_level, text), [text])
    assert {place for start, end in offsets for place in range(start, end)} == set(range(len(text)))
    if normalizer != "NFD" and normalizer != "BERT":
        syllable = unicodedata.normalize(form, "뷁")
        at = text.index(syllable)
        assert (at, at + len(syllable)) in offsets


def test_letters_without_a_token_stay_without():
    # A removed letter or an invisible character is no part of the one before it.
    assert whole_characters("가나​다", [(0, 1), (3, 4)]) == [(0, 1), (3, 4)]
    assert whole_characters("éx", [(0, 1)]) == [(0, 1)]
    assert whole_characters("e\u0301x", [(0, 1), (2, 3)]) == [(0, 2), (2, 3)]
    assert whole_characters("e\u0301x", [(0, 1)], [(0, 1), (1, 2)]) == [(0, 1)], "another token has the accent"


@pytest.mark.parametrize(("kind", "text"), [("gpt2", "the cat 한 sat"), ("bert", "the cats sat"), ("byt5", "a 한 b")])
def test_a_shortened_text_begins_the_text_and_has_no_more_tokens(kind, text, tmp_path):
    tokenizer = jaxformer.AutoTokenizer.from_pretrained(golden.write(kind, tmp_path))
    whole = len(encode(tokenizer, text))
    for most in range(1, whole + 1):
        short = shorten(tokenizer, text, most)
        assert text.startswith(short) and len(encode(tokenizer, short)) <= most
    assert shorten(tokenizer, text, whole) == text


def test_bytes_beside_a_special_token_and_ids_of_spare_rows(tmp_path):
    tokenizer = jaxformer.AutoTokenizer.from_pretrained(golden.write("byt5", tmp_path))
    text = "a 한 </s> b"
    [(ids, offsets)] = encode_with_offsets(tokenizer, [text])
    assert [text[start:end] for start, end in offsets] == ["a", " ", "한", "한", "한", "</s>", "b"] and len(ids) == 7
    assert decode(tokenizer, [100, len(tokenizer), 101]) == "ab"
