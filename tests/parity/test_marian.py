"""Marian's tokenizer against PyTorch's and SentencePiece itself, on models trained here in each way there is."""

import io
import json
import random
import unicodedata
import warnings

import pytest

from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.hub.tokenizer_pieces import Pieces
from tests.golden import tokenizers as golden

pytestmark = pytest.mark.parity

SOURCE = [
    "The cat sat on the mat, and it stayed there.",
    "I am a small frog, aren't I? Yes — “you” are!",
    "Tom asked his teacher for advice in 1987.",
    "naïve café ½ ﬁ Ⅷ 中文 日本語 مرحبا हिन्दी ไทย",
]
TARGET = [
    "Die Katze saß auf der Matte und blieb da.",
    "Ich bin ein kleiner Frosch, nicht wahr? – „Doch“!",
    "Tom bat 1987 seinen Lehrer um Rat.",
    "안녕 세계, 한국어 문장이다. 다람쥐 헌 쳇바퀴에 타고파",
]
# What the models are trained with; published ones are of the first kind.
KINDS = {
    "nmt_nfkc": {"normalization_rule_name": "nmt_nfkc"},
    "nmt_nfkc_cf": {"normalization_rule_name": "nmt_nfkc_cf"},
    "identity": {"normalization_rule_name": "identity"},
    "bytes": {"normalization_rule_name": "nmt_nfkc", "byte_fallback": True, "vocab_size": 420},
    "own": {"normalization_rule_name": "nmt_nfkc", "user_defined_symbols": ["kleiner", "<x>", "cat"]},
    "blanks": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "across": {"normalization_rule_name": "nfkc", "add_dummy_prefix": False, "split_by_whitespace": False},
}
RANGES = [(0, 0x3100), (0xAC00, 0xAC80), (0xF900, 0x10000), (0x1F300, 0x1F340)]
CHARACTERS = [chr(c) for a, b in RANGES for c in range(a, b) if unicodedata.category(chr(c)) != "Cs"]


def train(sentences, kind):
    """The bytes of a model trained on the sentences and on their words in other orders."""
    from sentencepiece import SentencePieceTrainer

    draws, written = random.Random(0), io.BytesIO()
    words = " ".join(sentences).split()
    rows = sentences * 20 + [" ".join(draws.choices(words, k=7)) for _ in range(200)]
    options = {"vocab_size": 150, "hard_vocab_limit": False, "minloglevel": 2, **KINDS[kind]}
    SentencePieceTrainer.train(sentence_iterator=iter(rows), model_writer=written, **options)
    return written.getvalue()


def hard_texts(number):
    """Sentences with characters of all of Unicode strewn in, and characters alone."""
    draws = random.Random(1)
    texts = [*SOURCE, *TARGET, "", "   ", " a  b ", "\u2581\u2581a \u2581", "<s></s><unk><pad>", "<x>kleiner", "<0x41>"]
    texts += [">>deu<< cat", ">>deu<<", ">>no<<  the", "the >>deu<< cat", "</s>>>deu<<a", ">>>deu<<", ">><<", "\r\n\t"]
    for _ in range(number):
        text = list(draws.choice(SOURCE + TARGET)) if draws.random() < 0.5 else []
        for _ in range(3 if text else draws.randint(1, 12)):
            text.insert(draws.randint(0, len(text)), draws.choice([*CHARACTERS, *"  \t\u2581" * 100]))
        texts.append("".join(text))
    return texts


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_sentencepiece_itself(kind, tmp_path):
    from sentencepiece import SentencePieceProcessor

    (tmp_path / "source.spm").write_bytes(train(SOURCE + TARGET, kind))
    theirs, ours = SentencePieceProcessor(model_file=str(tmp_path / "source.spm")), Pieces(tmp_path / "source.spm")
    texts = hard_texts(8000)
    expected, got = theirs.encode(texts, out_type=str), ours.cut(texts)
    different = [(text, a, b) for text, a, b in zip(texts, expected, got, strict=True) if a != b]
    assert different[:3] == []
    assert [row for row in expected if theirs.decode_pieces(row) != ours.join(row)] == []


@pytest.fixture(scope="module", params=["nmt_nfkc", "nmt_nfkc_cf", "bytes", "own"])
def folder(request, tmp_path_factory):
    """A model's files, whose vocabulary lacks every ninth piece."""
    from sentencepiece import SentencePieceProcessor

    folder = tmp_path_factory.mktemp("marian")
    sides = {"source.spm": train(SOURCE, request.param), "target.spm": train(TARGET, request.param)}
    pieces: dict[str, None] = {}
    for file, data in sides.items():
        (folder / file).write_bytes(data)
        model = SentencePieceProcessor(model_proto=data)
        pieces |= dict.fromkeys(model.id_to_piece(i) for i in range(3, len(model)))
    kept = [piece for i, piece in enumerate(pieces) if i % 9 or piece == "▁"]
    random.Random(2).shuffle(kept)
    tokens = ["</s>", "<unk>", *kept, ">>deu<<", ">>fra<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    # All that the oldest repositories say.
    (folder / "tokenizer_config.json").write_text('{"source_lang": "eng", "target_lang": "deu"}')
    (folder / "config.json").write_text('{"model_type": "marian", "vocab_size": 9}')
    return folder


def theirs_of(folder):
    """PyTorch's tokenizer of the folder."""
    from transformers import MarianTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it would like another package, which it does not use
        return MarianTokenizer.from_pretrained(folder)


def assert_same(theirs, ours, texts):
    """The same ids of sources and targets, and the same texts of ids."""
    expected, got = theirs(texts, text_target=texts), ours(texts, text_target=texts)
    for key in ("input_ids", "labels", "attention_mask"):
        different = [(t, a, b) for t, a, b in zip(texts, expected[key], got[key], strict=True) if a != b]
        assert different[:3] == [], key
    for rows in (expected["input_ids"], expected["labels"]):
        for options in ({}, {"skip_special_tokens": True}, {"use_source_tokenizer": False}):
            assert ours.batch_decode(rows, **options) == theirs.batch_decode(rows, **options), options


def test_ids_and_texts(folder):
    theirs, ours = theirs_of(folder), AutoTokenizer.from_pretrained(folder)
    assert golden.describe(ours) == golden.describe(theirs)
    assert ours.get_vocab() == theirs.get_vocab() and ours.model_max_length == theirs.model_max_length
    assert ours.supported_language_codes == theirs.supported_language_codes
    assert_same(theirs, ours, hard_texts(2000))


@pytest.mark.parametrize(
    "call",
    [
        {"padding": True},
        {"padding": "max_length", "max_length": 30, "truncation": True},
        {"truncation": True, "max_length": 6, "return_special_tokens_mask": True},
        {"truncation": True, "max_length": 6, "truncation_side": "left", "add_special_tokens": False},
        {"padding": True, "pad_to_multiple_of": 8, "padding_side": "left"},
    ],
)
def test_calls(folder, call):
    theirs, ours = theirs_of(folder), AutoTokenizer.from_pretrained(folder)
    if "truncation_side" in call:
        theirs.truncation_side = ours.truncation_side = call["truncation_side"]
        call = {key: value for key, value in call.items() if key != "truncation_side"}
    texts = [*SOURCE, "", ">>deu<< The cat"]
    expected, got = theirs(texts, **call), ours(texts, **call)
    assert expected.keys() == got.keys()
    for key in expected:
        assert golden.as_lists(got[key]) == golden.as_lists(expected[key]), key


def test_saved_and_opened_again(folder, tmp_path):
    texts = [*hard_texts(200), "the frog<b>Rat", "a frogs Katze  <b> b"]
    theirs, ours = theirs_of(folder), AutoTokenizer.from_pretrained(folder)
    for tokenizer in (theirs, ours):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<b>"]})
        tokenizer.add_tokens(["frog"])
    assert_same(theirs, ours, texts)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(theirs_of(tmp_path / "ours"), ours, texts)
    assert_same(theirs, AutoTokenizer.from_pretrained(tmp_path / "ours"), texts)
    assert_same(theirs, AutoTokenizer.from_pretrained(tmp_path / "theirs"), texts)


def test_pytorch_s_own_choice_of_class(folder, tmp_path):
    from transformers import AutoTokenizer as Theirs

    ours = AutoTokenizer.from_pretrained(folder)
    ours.save_pretrained(tmp_path)
    theirs = Theirs.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "MarianTokenizer"
    assert_same(theirs, ours, SOURCE)


def test_punctuation_is_not_touched(folder):
    """PyTorch's class carries a normalizer of punctuation that nothing calls: were it called, this would show it."""
    theirs = theirs_of(folder)
    theirs.punc_normalizer = lambda text: "x"
    assert_same(theirs, AutoTokenizer.from_pretrained(folder), TARGET)
