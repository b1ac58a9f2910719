import pytest

from jaxformer.plot.tokens import token_texts, vocabulary_texts
from jaxformer.tokenizers import TokenizerConfig, encode, train_tokenizer


def names(kind, text, corpus, **settings):
    tokenizer = train_tokenizer(TokenizerConfig(type=kind, **settings), corpus)
    return tokenizer.convert_ids_to_tokens(encode(tokenizer, text))


def test_bytes_become_the_text_they_stand_for():
    korean = names("bpe", "안녕하세요 여러분\n", ["안녕하세요 여러분\n"] * 30, vocab_size=320)
    assert all(ord(c) < 0x200 for name in korean for c in name), "the tokenizer's own names are bytes"
    shown = "".join(token_texts(korean))
    assert "여러분" in shown and shown.endswith("↵") and "·" in shown


def test_parts_of_a_character_show_their_bytes():
    assert token_texts(names("byte", "가a", ["x"])) == [r"\xea", r"\xb0", r"\x80", "a"]


def test_a_text_that_begins_within_a_character():
    tokens = names("byte", "가나", ["x"])
    assert token_texts(tokens[1:]) == [r"\xb0", r"\x80", r"\xeb", r"\x82", r"\x98"]
    assert token_texts(tokens[:4])[3] == r"\xeb"


@pytest.mark.parametrize(
    "words", [["été", "naïve"], ["kapı", "açık"], ["żółw", "łódź"], ["한국", "어"], ["ģimene", "māja"], ["ģ"]]
)
def test_words_are_left_alone(words):
    assert token_texts(words) == words


def test_signs_and_marks():
    assert token_texts(["▁a", "##b", "[CLS]", "<s>", " c", "\t", "x\x00"]) == [
        *("·a", "##b", "[CLS]", "<s>", "·c", "⇥", "x\\x00")
    ]
    assert token_texts(["<|endoftext|>", "Ġa"]) == ["<|endoftext|>", "·a"]


def test_jamo_are_letters():
    assert token_texts(["\u1112", "\u1161", "\u11ab"]) == ["ㅎ", "ㅏ", "ㄴ"]
    jamo = names("jamo", "갔다 폈다", ["갔다 섰다 왔다 갔다"] * 20, vocab_size=500)
    assert "".join(token_texts(jamo)).replace("ㅆ다", "-").count("-") == 1 and token_texts(jamo)[0] == "갔다"


def test_texts_of_ids():
    tokenizer = train_tokenizer(TokenizerConfig(type="byte"), ["x"])
    assert vocabulary_texts(tokenizer, [32, 97, 234, 256, 300]) == ["·", "a", r"\xea", "<|endoftext|>", "#300"]
    assert vocabulary_texts(["é", "b"], [1, 0, 2]) == ["b", "é", "#2"]
