import inspect
import json

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import models, pre_tokenizers, processors

from jaxformer.schema import UserError
from jaxformer.tokenizers import Tokenizer, TokenizerConfig, build_tokenizer, load_tokenizer, train_tokenizer

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
TRAINED = [*BYTE_LEVEL, "character"]


def train(kind, size=800, texts=(TEXT,)):
    return train_tokenizer(TokenizerConfig(type=kind, vocab_size=size), texts)


@pytest.fixture(scope="module")
def trained():
    return {kind: train(kind) for kind in TRAINED}


@pytest.mark.parametrize("kind", TRAINED)
def test_text_comes_back_exactly(trained, kind):
    tokenizer = trained[kind]
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.encode_batch([TEXT, "", "fox"]) == [ids, [], tokenizer.encode("fox")]
    assert max(ids) < tokenizer.vocab_size


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.text(alphabet="# \n'a가"))
def test_any_text_comes_back_from_bytes(trained, kind, text):
    assert trained[kind].decode(trained[kind].encode(text)) == text


@pytest.mark.parametrize("kind", TRAINED)
def test_special_strings_in_the_text_are_text(trained, kind):
    tokenizer = trained[kind]
    ids = tokenizer.encode(SPECIALS)
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == SPECIALS
    assert tokenizer.decode([tokenizer.eos_id, *ids]) == SPECIALS
    assert len(tokenizer.decode([tokenizer.eos_id, *ids], skip_special_tokens=False)) > len(SPECIALS)


@pytest.mark.parametrize("kind", TRAINED)
def test_saved_and_loaded_is_the_same(trained, kind, tmp_path):
    path = trained[kind].save(tmp_path / "run")
    assert path == tmp_path / "run" / "tokenizer.json"
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    for given_path in (path, path.parent):
        loaded = load_tokenizer(given_path)
        assert loaded.encode(TEXT) == trained[kind].encode(TEXT)
        assert loaded.decode(loaded.encode(TEXT)) == TEXT
        assert loaded.fingerprint == trained[kind].fingerprint
        assert (loaded.eos_id, loaded.vocab_size) == (trained[kind].eos_id, trained[kind].vocab_size)


@pytest.mark.parametrize("kind", TRAINED)
def test_training_twice_gives_one_tokenizer(trained, kind):
    assert {train(kind).fingerprint for _ in range(3)} == {trained[kind].fingerprint}


def test_byte_ids_are_the_bytes():
    tokenizer = train("byte")
    assert tokenizer.encode("aé가\n") == list("aé가\n".encode())
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)


def test_character_ids_are_the_sorted_characters():
    tokenizer = train("character", texts=["cab\n", "가"])
    assert tokenizer.encode("\nabc가") == [0, 1, 2, 3, 4]
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (5, 7)
    assert tokenizer.encode("a?b") == [1, 6, 2]
    assert tokenizer.decode([1, 6, 2], skip_special_tokens=False) == "a<|unk|>b"


def test_specials_and_end_of_text(trained):
    def token(kind):
        return trained[kind].decode([trained[kind].eos_id], skip_special_tokens=False)

    assert {kind: token(kind) for kind in TRAINED} == {
        "byte": "<|endoftext|>",
        "character": "<|endoftext|>",
        "bpe": "<|endoftext|>",
        "wordpiece": "[SEP]",
        "unigram": "</s>",
    }


@pytest.mark.parametrize(("kind", "smallest"), [("bpe", 257), ("wordpiece", 517), ("unigram", 259)])
def test_the_smallest_vocabulary(kind, smallest):
    tokenizer = train(kind, smallest)
    assert tokenizer.vocab_size == smallest
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    with pytest.raises(UserError, match=rf"vocab_size is {smallest - 1}, but {kind} needs at least {smallest}"):
        train(kind, smallest - 1)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_the_vocabulary_has_the_size_asked_for(kind):
    source = inspect.getsource(inspect)
    assert train(kind, 700, [source]).vocab_size == 700
    assert train(kind, 5000, ["ab"]).vocab_size < 600  # there is no more to learn


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_train_on(kind, texts):
    with pytest.raises(UserError, match=r"got no text, expected at least one character"):
        train(kind, texts=texts)


@pytest.mark.parametrize("kind", ["character", "bpe", "wordpiece", "unigram"])
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
    tokenizer = build_tokenizer(TokenizerConfig(type="file", path=str(tmp_path)), [])
    assert tokenizer.encode("a b a b") == [3, 9, 3, 9]
    assert tokenizer.encode_batch(["a b a b", "a"]) == [[3, 9, 3, 9], [3]]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (10, 2)


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "other"])
def test_end_of_text_of_a_loaded_tokenizer(tmp_path, name):
    word_tokenizer({"[UNK]": 0, name: 1}).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).eos_id == (None if name == "other" else 1)


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
    [(ids, offsets)] = trained[kind].encode_with_offsets([text])
    assert ids == trained[kind].encode(text)
    owner = [i for i, character in enumerate(text) for _ in character.encode()]
    position = 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        # A token that is not special has one character for each of its bytes, behind the mark of a continuation.
        name = trained[kind]._backend.id_to_token(token)
        size = len(name) - 2 if kind == "wordpiece" and name.startswith("##") and len(name) > 2 else len(name)
        first, last = owner[position], owner[position + size - 1] + 1
        characters = [i for i in range(first, last) if not text[i].isspace()] or [first, last - 1]
        assert (start, end) == (characters[0], characters[-1] + 1)
        position += size
    assert position == len(owner)


def test_offsets_of_korean_by_hand():
    tokenizer = build_tokenizer(TokenizerConfig(type="byte"), ["a"])
    [(_, offsets)] = tokenizer.encode_with_offsets(["a 가"])
    assert offsets == [(0, 1), (1, 2), (2, 3), (2, 3), (2, 3)]


def names_of(tokenizer):
    """The names of the ids from 0 on."""
    return [tokenizer._backend.id_to_token(i) for i in range(tokenizer.vocab_size)]


@pytest.mark.parametrize(
    ("kind", "added"),
    [
        ("byte", ["<pad>", "<s>", "<mask>"]),
        ("character", ["<pad>", "<s>", "<mask>"]),
        ("bpe", ["<pad>", "<s>", "<mask>"]),
        ("wordpiece", []),
        ("unigram", ["<s>", "<mask>"]),
    ],
)
def test_special_tokens_that_are_missing_are_added_behind_the_others(trained, kind, added):
    before = trained[kind]
    after = before.with_special_tokens(("pad", "cls", "sep", "mask"))
    assert names_of(after) == names_of(before) + added
    assert (after is before) == (not added)
    assert (after.fingerprint == before.fingerprint) == (not added)
    assert after.encode(TEXT + "<mask><s>") == before.encode(TEXT + "<mask><s>"), "in a text they are text"
    assert after.eos_id == before.eos_id == after.special_id("sep")
    ids = [after.special_id(role) for role in ("pad", "cls", "sep", "mask")]
    assert len(set(ids)) == 4 and set(ids) <= after.special_ids
    assert after.decode(ids) == ""
    assert after.with_special_tokens(("mask", "pad")) is after, "what is there is not added twice"
    assert before.find_special("mask") == (None if added else before.special_id("mask")), "the old one is as it was"


def test_the_names_follow_those_of_the_tokenizer():
    bert = Tokenizer(word_tokenizer({"[UNK]": 0, "a": 1})).with_special_tokens(("pad", "cls", "sep", "mask"))
    assert names_of(bert) == ["[UNK]", "a", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    other = hf.Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    roberta = Tokenizer(other).with_special_tokens(("pad", "cls", "sep", "mask"))
    assert names_of(roberta) == ["<unk>", "a", "<pad>", "<s>", "</s>", "<mask>"]


def test_a_token_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"no mask token, expected \[MASK\] or <mask>; add it with with_special_tokens"):
        train("byte").special_id("mask")


def test_sentinels():
    before = train("byte")
    assert before.sentinel_ids == []
    some = before.with_special_tokens((), sentinels=2)
    assert some.sentinel_ids == [257, 258]
    assert names_of(some)[257:] == ["<extra_id_0>", "<extra_id_1>"]
    more = some.with_special_tokens(("pad",), sentinels=4)
    assert names_of(more)[257:] == ["<extra_id_0>", "<extra_id_1>", "<pad>", "<extra_id_2>", "<extra_id_3>"]
    assert more.sentinel_ids == [257, 258, 260, 261]
    assert more.with_special_tokens((), sentinels=3) is more
    assert len({t.fingerprint for t in (before, some, more)}) == 3


def test_sentinels_of_t5_are_in_the_order_of_their_names(tmp_path):
    # T5 numbers them backwards: <extra_id_0> is the last id.
    backend = word_tokenizer({"[UNK]": 0, "a": 1, "<extra_id_2>": 2, "<extra_id_1>": 3, "<extra_id_0>": 4})
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).sentinel_ids == [4, 3, 2]


def test_special_ids(trained):
    expected = {"byte": 1, "character": 2, "bpe": 1, "wordpiece": 5, "unigram": 3}
    assert {kind: len(trained[kind].special_ids) for kind in TRAINED} == expected
    assert trained["byte"].special_ids == {256}
    assert trained["byte"].with_special_tokens(("mask",), sentinels=1).special_ids == {256, 257, 258}
    for kind in TRAINED:
        assert trained[kind].special_ids.isdisjoint(trained[kind].encode(TEXT + SPECIALS))


def words(tokenizer, text):
    """The text cut at the tokens that begin a word."""
    ids = tokenizer.encode(text)
    parts = []
    for i in ids:
        if tokenizer.word_starts[i] or not parts:
            parts.append([])
        parts[-1].append(i)
    return [tokenizer.decode(part) for part in parts]


CORPUS = ["the cat sat on the mat and the other cats sat there too\n## the ## title ##\n"] * 5


@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("wordpiece", 560), ("unigram", 290)])
def test_words_begin_where_blanks_are(kind, size):
    tokenizer = train(kind, size, CORPUS)
    text = "the catmat sat\n\nmatters  on"
    starts = tokenizer.word_starts
    assert starts.dtype == bool and starts.shape == (tokenizer.vocab_size,)
    assert len(tokenizer.encode(text)) > 8, "some words have several tokens"
    got = words(tokenizer, text)
    assert "".join(got) == text
    assert got[:3] == ["the", " catmat", " sat"]
    assert got[-1] == " on"
    assert all(word.strip(" \n").isalpha() or not word.strip() for word in got)
    assert starts[list(tokenizer.special_ids)].all()


def test_a_vocabulary_of_bpe_may_hold_the_mark_of_wordpiece():
    tokenizer = train("bpe", 300, ["## the cat ## the cat\n"] * 50)
    assert {"##", "Ġthe", "Ġcat"} <= set(names_of(tokenizer))
    starts = dict(zip(names_of(tokenizer), tokenizer.word_starts.tolist(), strict=True))
    assert not starts["a"] and not starts["##"] and starts["Ġthe"] and starts["Ċ"] and starts["č"]


def test_word_starts_of_loaded_vocabularies():
    bert = hf.Tokenizer(models.WordPiece({"[UNK]": 0, "cat": 1, "##s": 2, "##": 3, "#": 4}, unk_token="[UNK]"))
    assert Tokenizer(bert).word_starts.tolist() == [True, True, False, True, True]
    t5 = hf.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁cat", -1.0), ("s", -2.0), ("▁", -3.0)], unk_id=0))
    t5.add_special_tokens(["<unk>", "</s>"])
    assert Tokenizer(t5).word_starts.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("kind", ["byte", "character"])
def test_every_byte_or_character_is_a_word(trained, kind):
    assert trained[kind].word_starts.all()


@pytest.mark.parametrize("kind", TRAINED)
def test_sentence_ends(kind):
    text = 'One. Two! Three? Four: 3.14, "five".\nSix  \n 한국。'
    tokenizer = train(kind, 600, [text])
    ends = tokenizer.sentence_ends
    assert ends.dtype == bool and ends.shape == (tokenizer.vocab_size,)
    name = {i: tokenizer.decode([i]) for i in range(tokenizer.vocab_size)}
    assert all(name[i].rstrip(" ")[-1:] in tuple(".!?。\n") for i in np.flatnonzero(ends))
    pieces = [""]
    for i in tokenizer.encode("One. Two!\nThree, four? Five"):
        pieces[-1] += name[i]
        if ends[i]:
            pieces.append("")
    assert [piece.strip() for piece in pieces if piece.strip()] == ["One.", "Two!", "Three, four?", "Five"]
    assert not ends[sorted(tokenizer.special_ids)].any()


def test_wide_points_end_sentences():
    tokenizer = train("character", texts=["값。뭐？와！."])
    assert [c for c in "값。뭐？와！." if tokenizer.sentence_ends[tokenizer.encode(c)[0]]] == list("。？！.")


def test_the_token_of_a_role_may_be_named(tmp_path):
    def backend():
        return word_tokenizer({"[UNK]": 0, "[SEP]": 1, "end": 2, "[PAD]": 3, "filler": 4})

    usual, named = Tokenizer(backend()), Tokenizer(backend(), {"pad": "filler", "eos": "end", "cls": "nowhere"})
    assert (usual.find_special("pad"), usual.eos_id) == (3, 1)
    assert (named.find_special("pad"), named.eos_id, named.find_special("cls")) == (4, 2, None)
    assert named.with_special_tokens(["cls"]).find_special("pad") == 4
    assert named.with_special_tokens(["cls"]).find_special("cls") == 5
    assert named.fingerprint != usual.fingerprint == Tokenizer(backend(), {"pad": "[PAD]"}).fingerprint
    named.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.find_special("pad"), again.eos_id, again.fingerprint) == (4, 2, named.fingerprint)
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "end"}, "eos_token": null}')
    assert load_tokenizer(tmp_path).find_special("pad") == 2
    for wrong, message in [("{", "is not JSON"), ("[]", "holds a list, expected a JSON object")]:
        (tmp_path / "special_tokens_map.json").write_text(wrong)
        with pytest.raises(UserError, match=message):
            load_tokenizer(tmp_path)


def test_a_chat_template_stays_with_its_tokenizer(tmp_path):
    bare = train("byte")
    named = bare.with_chat_template("{{ messages }}")
    assert bare.chat_template is None and named.fingerprint != bare.fingerprint
    named.save(tmp_path)
    again = load_tokenizer(tmp_path).with_special_tokens(["pad"])
    assert again.chat_template == "{{ messages }}" and again.encode("a") == bare.encode("a")
    assert load_tokenizer(tmp_path).fingerprint == named.fingerprint


def test_special_tokens_of_text_that_was_written_here():
    tokenizer = train("byte").with_special_tokens(["pad", "cls"])
    text = "a<s>b<|endoftext|>"
    ids, offsets = tokenizer.encode_marked(text)
    assert ids == [97, tokenizer.special_id("cls"), 98, tokenizer.eos_id]
    assert [text[start:end] for start, end in offsets] == ["a", "<s>", "b", "<|endoftext|>"]
    assert tokenizer.encode(text) == list(text.encode()), "in others' text they are characters"
    assert tokenizer.special_tokens == ("<|endoftext|>", "<pad>", "<s>")
    names = tokenizer.named_special_tokens
    assert (names["eos_token"], names["bos_token"], names["pad_token"]) == ("<|endoftext|>", "<s>", "<pad>")


def test_what_stands_before_a_text():
    assert train("byte").prefix_ids == []
    backend = word_tokenizer({"[UNK]": 0, "<s>": 1, "a": 2, "</s>": 3})
    ends = [("<s>", 1), ("</s>", 3)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    assert Tokenizer(backend).prefix_ids == [1]
