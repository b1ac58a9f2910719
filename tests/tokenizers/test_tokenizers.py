import inspect
import itertools
import json
import unicodedata

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import models, pre_tokenizers, processors

from jaxformer.hub import AutoTokenizer
from jaxformer.schema import UserError
from jaxformer.tokenizers import (
    TokenizerConfig,
    add_special_tokens,
    decode,
    encode,
    encode_batch,
    encode_marked,
    encode_with_offsets,
    find_special,
    fingerprint,
    frame_of,
    load_tokenizer,
    named_special_tokens,
    save_tokenizer,
    sentence_ends,
    sentinel_ids,
    special_id,
    special_ids,
    special_tokens,
    train_tokenizer,
    vocabulary_size,
    word_starts,
    wrap_backend,
)

SPECIALS = "<|endoftext|> <|unk|> [PAD] [UNK] [CLS] [SEP] [MASK] <pad> </s> <unk> ##ing # ## ###"
TEXT = "\n".join(
    [
        "The quick brown fox doesn't jump over the lazy dog's back; it'll walk.",
        "다람쥐 헌 쳇바퀴에 타고파. 값이 싸다면 얼마나 좋을까?",
        inspect.getsource(json.JSONDecoder),
        "😀🇰🇷 👨‍👩‍👧 e\u0301 \u200b\ufeff\u2028",
        "odd \t\t  blanks  \r\n\r\n   \x00\x01\x7f\n\n\n",
        SPECIALS,
        "x" * 250 + "가" * 250 + " " * 250 + "#" * 250,
    ]
)
BYTE_LEVEL = ["byte", "bpe", "wordpiece", "unigram"]
TRAINED = [*BYTE_LEVEL, "character", "word", "jamo"]


def train(kind, size=None, texts=(TEXT,)):
    size = size or {"word": 5000}.get(kind, 800)  # every word of the text
    return train_tokenizer(TokenizerConfig(type=kind, vocab_size=size), texts)


def given_back(kind, text):
    """The text as it is decoded."""
    return unicodedata.normalize("NFC", text) if kind == "jamo" else text


@pytest.fixture(scope="module")
def trained():
    return {kind: train(kind) for kind in TRAINED}


@pytest.mark.parametrize("kind", TRAINED)
def test_text_comes_back_exactly(trained, kind):
    tokenizer = trained[kind]
    ids = encode(tokenizer, TEXT)
    assert decode(tokenizer, ids) == given_back(kind, TEXT)
    assert encode_batch(tokenizer, [TEXT, "", "fox"]) == [ids, [], encode(tokenizer, "fox")]
    assert max(ids) < vocabulary_size(tokenizer)


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.text(alphabet="# \n'a가"))
def test_any_text_comes_back_from_bytes(trained, kind, text):
    assert decode(trained[kind], encode(trained[kind], text)) == text


@pytest.mark.parametrize("kind", TRAINED)
def test_special_strings_in_the_text_are_text(trained, kind):
    tokenizer = trained[kind]
    ids = encode(tokenizer, SPECIALS)
    assert find_special(tokenizer, "eos") not in ids
    assert decode(tokenizer, ids) == SPECIALS
    assert decode(tokenizer, [find_special(tokenizer, "eos"), *ids]) == SPECIALS
    assert len(decode(tokenizer, [find_special(tokenizer, "eos"), *ids], skip_special_tokens=False)) > len(SPECIALS)


@pytest.mark.parametrize("kind", TRAINED)
def test_saved_and_loaded_is_the_same(trained, kind, tmp_path):
    save_tokenizer(trained[kind], tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    opened = AutoTokenizer.from_pretrained(tmp_path / "run")
    for loaded in (opened, load_tokenizer(tmp_path / "run"), load_tokenizer(tmp_path / "run" / "tokenizer.json")):
        assert encode(loaded, TEXT) == encode(trained[kind], TEXT)
        assert decode(loaded, encode(loaded, TEXT)) == given_back(kind, TEXT)
        assert fingerprint(loaded) == fingerprint(trained[kind])
        assert loaded.special_tokens_map == trained[kind].special_tokens_map


@pytest.mark.parametrize("kind", TRAINED)
def test_training_twice_gives_one_tokenizer(trained, kind):
    assert {fingerprint(train(kind)) for _ in range(3)} == {fingerprint(trained[kind])}


def test_byte_ids_are_the_bytes():
    tokenizer = train("byte")
    assert encode(tokenizer, "aé가\n") == list("aé가\n".encode())
    assert (vocabulary_size(tokenizer), find_special(tokenizer, "eos")) == (257, 256)


def test_character_ids_are_the_sorted_characters():
    tokenizer = train("character", texts=["cab\n", "가"])
    assert encode(tokenizer, "\nabc가") == [0, 1, 2, 3, 4]
    assert (find_special(tokenizer, "eos"), vocabulary_size(tokenizer)) == (5, 7)
    assert encode(tokenizer, "a?b") == [1, 6, 2]
    assert decode(tokenizer, [1, 6, 2], skip_special_tokens=False) == "a<|unk|>b"


def test_specials_and_end_of_text(trained):
    def token(kind):
        return decode(trained[kind], [find_special(trained[kind], "eos")], skip_special_tokens=False)

    assert {kind: token(kind) for kind in TRAINED} == {
        "byte": "<|endoftext|>",
        "character": "<|endoftext|>",
        "word": "<|endoftext|>",
        "jamo": "<|endoftext|>",
        "bpe": "<|endoftext|>",
        "wordpiece": "[SEP]",
        "unigram": "</s>",
    }


@pytest.mark.parametrize(
    ("kind", "smallest"), [("bpe", 257), ("wordpiece", 517), ("unigram", 259), ("jamo", 256 + 67 + 51 + 97 + 1)]
)
def test_the_smallest_vocabulary(kind, smallest):
    tokenizer = train(kind, smallest)
    assert vocabulary_size(tokenizer) == smallest
    assert decode(tokenizer, encode(tokenizer, TEXT)) == given_back(kind, TEXT)
    with pytest.raises(UserError, match=rf"vocab_size is {smallest - 1}, but {kind} needs at least {smallest}"):
        train(kind, smallest - 1)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "jamo"])
def test_the_vocabulary_has_the_size_asked_for(kind):
    source = inspect.getsource(inspect)
    assert train(kind, 700, [source]).vocab_size == 700
    assert train(kind, 5000, ["ab"]).vocab_size < 600  # there is no more to learn


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_train_on(kind, texts):
    with pytest.raises(UserError, match=r"got no text, expected at least one character"):
        train(kind, texts=texts)


@pytest.mark.parametrize("kind", ["character", "word", "jamo", "bpe", "wordpiece", "unigram"])
def test_an_error_of_the_corpus_comes_through(kind):
    def texts():
        yield TEXT
        raise UserError("line 3 is broken")

    with pytest.raises(UserError, match=r"line 3 is broken"):
        train(kind, texts=texts())


def word_tokenizer(vocab, **settings):
    backend = hf.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def test_a_loaded_tokenizer_adds_and_cuts_nothing(tmp_path):
    backend = word_tokenizer({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 9})
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    backend.enable_truncation(2)
    backend.enable_padding(length=20)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert encode(tokenizer, "a b a b") == [3, 9, 3, 9]
    assert encode_batch(tokenizer, ["a b a b", "a"]) == [[3, 9, 3, 9], [3]]
    assert (vocabulary_size(tokenizer), find_special(tokenizer, "eos")) == (10, 2)


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "other"])
def test_end_of_text_of_a_loaded_tokenizer(tmp_path, name):
    word_tokenizer({"[UNK]": 0, name: 1}).save(str(tmp_path / "tokenizer.json"))
    assert find_special(load_tokenizer(tmp_path), "eos") == (None if name == "other" else 1)


def test_no_or_no_valid_file(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*tokenizer.json: give a tokenizer.json file or a folder"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"not a valid tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"not a valid tokenizer.json"):
        load_tokenizer(tmp_path)


def test_path_belongs_to_file():
    with pytest.raises(ValidationError, match=r"type is 'file' but path is not set"):
        TokenizerConfig(type="file")
    with pytest.raises(ValidationError, match=r"path is 'x' but type is 'bpe'"):
        TokenizerConfig(path="x")
    with pytest.raises(UserError, match=r"which is loaded, not trained"):
        train_tokenizer(TokenizerConfig(type="file", path="x"), ["a"])


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.text(alphabet="# \n'a가나뷁😀"))
def test_offsets_are_characters_also_within_bytes_of_one(trained, kind, text):
    [(ids, offsets)] = encode_with_offsets(trained[kind], [text])
    assert ids == encode(trained[kind], text)
    owner = [i for i, character in enumerate(text) for _ in character.encode()]
    position = 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        # A token that is not special has one character for each of its bytes, behind the mark of a continuation.
        name = trained[kind].backend_tokenizer.id_to_token(token)
        size = len(name) - 2 if kind == "wordpiece" and name.startswith("##") and len(name) > 2 else len(name)
        first, last = owner[position], owner[position + size - 1] + 1
        characters = [i for i in range(first, last) if not text[i].isspace()] or [first, last - 1]
        assert (start, end) == (characters[0], characters[-1] + 1)
        position += size
    assert position == len(owner)


def test_offsets_of_korean_by_hand():
    tokenizer = train("byte")
    [(_, offsets)] = encode_with_offsets(tokenizer, ["a 가"])
    assert offsets == [(0, 1), (1, 2), (2, 3), (2, 3), (2, 3)]


def names_of(tokenizer):
    """The names of the ids from 0 on."""
    return [tokenizer.backend_tokenizer.id_to_token(i) for i in range(vocabulary_size(tokenizer))]


@pytest.mark.parametrize(
    ("kind", "added"),
    [
        ("byte", ["<pad>", "<s>", "<mask>"]),
        ("character", ["<pad>", "<s>", "<mask>"]),
        ("word", ["<pad>", "<s>", "<mask>"]),
        ("jamo", ["<pad>", "<s>", "<mask>"]),
        ("bpe", ["<pad>", "<s>", "<mask>"]),
        ("wordpiece", []),
        ("unigram", ["<s>", "<mask>"]),
    ],
)
def test_special_tokens_that_are_missing_are_added_behind_the_others(kind, added):
    tokenizer = train(kind)
    names, before, text = names_of(tokenizer), fingerprint(tokenizer), TEXT + "<mask><s>"
    ids, end = encode(tokenizer, text), find_special(tokenizer, "eos")
    for _ in range(2):  # what is there is not added twice
        add_special_tokens(tokenizer, ("pad", "cls", "sep", "mask"))
        assert names_of(tokenizer) == names + added
    assert (fingerprint(tokenizer) == before) == (not added)
    assert encode(tokenizer, text) == ids, "in a text they are text"
    assert find_special(tokenizer, "eos") == end == special_id(tokenizer, "sep")
    found = [special_id(tokenizer, role) for role in ("pad", "cls", "sep", "mask")]
    assert len(set(found)) == 4 and set(found) <= special_ids(tokenizer)
    assert decode(tokenizer, found) == ""


def test_the_names_follow_those_of_the_tokenizer():
    bert = wrap_backend(word_tokenizer({"[UNK]": 0, "a": 1}))
    roberta = wrap_backend(hf.Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")))
    for tokenizer in (bert, roberta):
        add_special_tokens(tokenizer, ("pad", "cls", "sep", "mask"))
    assert names_of(bert) == ["[UNK]", "a", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    assert names_of(roberta) == ["<unk>", "a", "<pad>", "<s>", "</s>", "<mask>"]


def test_a_token_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"no mask token, expected \[MASK\] or <mask>; add one"):
        special_id(train("byte"), "mask")


def test_sentinels():
    tokenizer = train("byte")
    prints = [fingerprint(tokenizer)]
    assert sentinel_ids(tokenizer) == []
    for roles, number, names in (
        ((), 2, ["<extra_id_0>", "<extra_id_1>"]),
        (("pad",), 4, ["<extra_id_0>", "<extra_id_1>", "<pad>", "<extra_id_2>", "<extra_id_3>"]),
        ((), 3, ["<extra_id_0>", "<extra_id_1>", "<pad>", "<extra_id_2>", "<extra_id_3>"]),
    ):
        add_special_tokens(tokenizer, roles, sentinels=number)
        assert names_of(tokenizer)[257:] == names
        prints.append(fingerprint(tokenizer))
    assert sentinel_ids(tokenizer) == [257, 258, 260, 261]
    assert special_ids(tokenizer) == set(range(256, 262))
    assert len(set(prints)) == 3


def test_sentinels_of_t5_are_in_the_order_of_their_names(tmp_path):
    # T5 numbers them backwards: <extra_id_0> is the last id.
    backend = word_tokenizer({"[UNK]": 0, "a": 1, "<extra_id_2>": 2, "<extra_id_1>": 3, "<extra_id_0>": 4})
    backend.save(str(tmp_path / "tokenizer.json"))
    assert sentinel_ids(load_tokenizer(tmp_path)) == [4, 3, 2]


def test_special_ids(trained):
    expected = {"byte": 1, "character": 2, "word": 2, "jamo": 1, "bpe": 1, "wordpiece": 5, "unigram": 3}
    assert {kind: len(special_ids(trained[kind])) for kind in TRAINED} == expected
    assert special_ids(trained["byte"]) == {256}
    for kind in TRAINED:
        assert special_ids(trained[kind]).isdisjoint(encode(trained[kind], TEXT + SPECIALS))


def words(tokenizer, text):
    """The text cut at the tokens that begin a word."""
    ids = encode(tokenizer, text)
    parts = []
    for i in ids:
        if word_starts(tokenizer)[i] or not parts:
            parts.append([])
        parts[-1].append(i)
    return [decode(tokenizer, part) for part in parts]


CORPUS = ["the cat sat on the mat and the other cats sat there too\n## the ## title ##\n"] * 5


@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("wordpiece", 560), ("unigram", 290), ("jamo", 500)])
def test_words_begin_where_blanks_are(kind, size):
    tokenizer = train(kind, size, CORPUS)
    text = "the catmat sat\n\nmatters  on"
    starts = word_starts(tokenizer)
    assert starts.dtype == bool and starts.shape == (vocabulary_size(tokenizer),)
    assert len(encode(tokenizer, text)) > 8, "some words have several tokens"
    got = words(tokenizer, text)
    assert "".join(got) == text
    assert got[:3] == ["the", " catmat", " sat"]
    assert got[-1] == " on"
    assert all(word.strip(" \n").isalpha() or not word.strip() for word in got)
    assert starts[list(special_ids(tokenizer))].all()


def test_a_vocabulary_of_bpe_may_hold_the_mark_of_wordpiece():
    tokenizer = train("bpe", 300, ["## the cat ## the cat\n"] * 50)
    assert {"##", "Ġthe", "Ġcat"} <= set(names_of(tokenizer))
    starts = dict(zip(names_of(tokenizer), word_starts(tokenizer).tolist(), strict=True))
    assert not starts["a"] and not starts["##"] and starts["Ġthe"] and starts["Ċ"] and starts["č"]


def test_word_starts_of_loaded_vocabularies():
    bert = hf.Tokenizer(models.WordPiece({"[UNK]": 0, "cat": 1, "##s": 2, "##": 3, "#": 4}, unk_token="[UNK]"))
    assert word_starts(wrap_backend(bert)).tolist() == [True, True, False, True, True]
    t5 = hf.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁cat", -1.0), ("s", -2.0), ("▁", -3.0)], unk_id=0))
    t5.add_special_tokens(["<unk>", "</s>"])
    assert word_starts(wrap_backend(t5)).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("kind", ["byte", "character"])
def test_every_byte_or_character_is_a_word(trained, kind):
    assert word_starts(trained[kind]).all()


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.default_cases("[!j]*")
def test_sentence_ends(kind):
    text = 'One. Two! Three? Four: 3.14, "five".\nSix  \n 한국。'
    tokenizer = train(kind, 600, [text, "Two!\nThree, four? Five"])
    ends = sentence_ends(tokenizer)
    assert ends.dtype == bool and ends.shape == (vocabulary_size(tokenizer),)
    name = {i: decode(tokenizer, [i]) for i in range(vocabulary_size(tokenizer))}
    assert all(name[i].rstrip(" ")[-1:] in tuple(".!?。\n") for i in np.flatnonzero(ends))
    pieces = [""]
    for i in encode(tokenizer, "One. Two!\nThree, four? Five"):
        pieces[-1] += name[i]
        if ends[i]:
            pieces.append("")
    assert [piece.strip() for piece in pieces if piece.strip()] == ["One.", "Two!", "Three, four?", "Five"]
    assert not ends[sorted(special_ids(tokenizer))].any()


def test_wide_points_end_sentences():
    tokenizer = train("character", texts=["값。뭐？와！."])
    assert [c for c in "값。뭐？와！." if sentence_ends(tokenizer)[encode(tokenizer, c)[0]]] == list("。？！.")


def test_the_token_of_a_role_may_be_named(tmp_path):
    def tokenizer(**names):
        return wrap_backend(word_tokenizer({"[UNK]": 0, "[SEP]": 1, "end": 2, "[PAD]": 3, "filler": 4}), **names)

    usual, named = tokenizer(), tokenizer(pad_token="filler", eos_token="end")
    assert (find_special(usual, "pad"), find_special(usual, "eos")) == (3, 1)
    assert (find_special(named, "pad"), find_special(named, "eos"), find_special(named, "cls")) == (4, 2, None)
    assert fingerprint(named) != fingerprint(usual)
    save_tokenizer(named, tmp_path)
    again = load_tokenizer(tmp_path)
    assert (find_special(again, "pad"), find_special(again, "eos")) == (4, 2)
    assert fingerprint(again) == fingerprint(named)


def test_a_chat_template_stays_with_its_tokenizer(tmp_path):
    tokenizer = train("byte")
    before = fingerprint(tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    assert fingerprint(tokenizer) != before
    save_tokenizer(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).chat_template == "{{ messages }}"
    assert fingerprint(load_tokenizer(tmp_path)) == fingerprint(tokenizer)


def test_special_tokens_of_text_that_was_written_here():
    tokenizer = train("byte")
    add_special_tokens(tokenizer, ["pad", "cls"])
    text = "a<s>b<|endoftext|>"
    ids, offsets = encode_marked(tokenizer, text)
    assert ids == [97, special_id(tokenizer, "cls"), 98, find_special(tokenizer, "eos")]
    assert [text[start:end] for start, end in offsets] == ["a", "<s>", "b", "<|endoftext|>"]
    assert encode(tokenizer, text) == list(text.encode()), "in others' text they are characters"
    assert special_tokens(tokenizer) == ("<|endoftext|>", "<pad>", "<s>")
    names = named_special_tokens(tokenizer)
    assert (names["eos_token"], names["bos_token"], names["pad_token"]) == ("<|endoftext|>", "<s>", "<pad>")


def test_what_stands_before_a_text():
    assert frame_of(train("byte")).before == []
    backend = word_tokenizer({"[UNK]": 0, "<s>": 1, "a": 2, "</s>": 3})
    ends = [("<s>", 1), ("</s>", 3)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    assert frame_of(wrap_backend(backend)).before == [1]


def test_words_have_ids_by_frequency_and_others_are_unknown():
    texts = ["The cat doesn't sit, a well-known cat of 1984.\nThe cat"]
    tokenizer = train("word", 8, texts)
    assert names_of(tokenizer) == ["<|endoftext|>", "<|unk|>", " cat", "The", "\n", " 1", " a", " doesn't"]
    assert encode(tokenizer, "The cat doesn't bark\n") == [3, 2, 7, 1, 4]
    assert decode(tokenizer, [3, 2, 7, 1, 4], skip_special_tokens=False) == "The cat doesn't<|unk|>\n"
    whole = train("word", 99, texts)
    assert whole.convert_ids_to_tokens(encode(whole, texts[0]))[3:12] == [
        *(" sit", ",", " a", " well-known", " cat", " of", " 1", "9", "8")
    ]
    with pytest.raises(
        UserError, match=r"vocab_size is 2, but word needs at least 3 for a word and its special tokens"
    ):
        train("word", 2)


def test_offsets_of_words():
    tokenizer = train("word", texts=["한국의 수도는 서울이다."])
    text = "한국의  수도는 어디?\n서울이다."
    [(ids, offsets)] = encode_with_offsets(tokenizer, [text])
    assert [text[a:b] for a, b in offsets] == ["한국의", " ", "수도는", "어디", "?", "\n", "서울이다", "."]
    assert tokenizer.unk_token_id in ids


KOREAN = ["나는 어제 학교에 갔다. 우리는 역에 섰다. 그는 집에 왔다.\n"] * 20


def test_jamo_are_pieces_of_syllables():
    tokenizer = train("jamo", 472, KOREAN)  # nothing is learned
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, "갔다")) == [
        "\u1100",
        "\u1161",
        "\u11bb",
        "\u1103",
        "\u1161",
    ]
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, "漢")) == ["<0xE6>", "<0xBC>", "<0xA2>"]
    learned = train("jamo", 560, KOREAN)
    pasts = [learned.convert_ids_to_tokens(encode(learned, text))[-1] for text in (" 폈다", " 됐다", " 꿨다")]
    assert pasts == ["\u11bb\u1103\u1161"] * 3, "the ending that they share"


def test_offsets_of_jamo_are_those_of_their_syllable():
    tokenizer = train("jamo", 472, KOREAN)
    for text in ("각 é", "e\u0301 각", unicodedata.normalize("NFD", "각 학교")):
        [(ids, offsets)] = encode_with_offsets(tokenizer, [text])
        for token, (start, end) in zip(tokenizer.convert_ids_to_tokens(ids), offsets, strict=True):
            part = unicodedata.normalize("NFD", text[start:end])
            assert token in part or token.startswith("<0x"), (text, token)
    assert encode_with_offsets(tokenizer, ["각 é"])[0][1] == [(0, 1)] * 3 + [(1, 2)] + [(2, 3)] * 3


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="가각힣각ㅋéệ漢😀 a1\n<0x41>") | st.text())
def test_composed_text_comes_back_from_jamo(trained, text):
    """Exactly, but for a letter with several marks, which may come back in an equal form of Unicode."""
    composed = unicodedata.normalize("NFC", text)
    decoded = decode(trained["jamo"], encode(trained["jamo"], text))
    assert unicodedata.normalize("NFC", decoded) == composed
    marks = [unicodedata.combining(character) > 0 for character in unicodedata.normalize("NFD", text)]
    if not any(one and other for one, other in itertools.pairwise(marks)):
        assert decoded == composed


def test_every_syllable_comes_back():
    tokenizer = train("jamo", 472, KOREAN)
    syllables = "".join(map(chr, range(0xAC00, 0xD7A4)))
    assert decode(tokenizer, encode(tokenizer, syllables)) == syllables


def test_a_name_of_a_byte_in_a_text_is_text():
    tokenizer = train("jamo", 700, ["<0x41> <0xEA> "] * 50)
    assert decode(tokenizer, encode(tokenizer, "<0x41><0xEA>")) == "<0x41><0xEA>"
