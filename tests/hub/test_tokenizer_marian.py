"""Marian's tokenizer: what the golden values of all tokenizers do not show."""

import json
import pickle
import threading

import numpy as np
import pytest

from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.hub.tokenizer_marian import MarianTokenizer
from jaxformer.hub.tokenizer_pieces import Charsmap, Pieces
from jaxformer.schema import UserError
from tests.golden import tokenizers as golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return golden.write("marian", tmp_path_factory.mktemp("marian") / "opened")


@pytest.fixture(scope="module")
def shared(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def own(tmp_path):
    """Files of the test's own, which may change them."""
    return golden.write("marian", tmp_path / "own")


@pytest.fixture(scope="module")
def number():
    return json.loads(golden.files()["marian"]["vocab.json"])


def test_by_hand(shared, number):
    assert isinstance(shared, MarianTokenizer) and not shared.is_fast
    batch = shared(["the cat"], text_target=["die Katze"])
    assert batch.input_ids == [[number["▁the"], number["▁cat"], number["</s>"]]]
    assert batch["labels"] == [[number[p] for p in ("▁die", "▁", "<unk>", "a", "t", "z", "e", "</s>")]]
    assert shared(text_target="die katze").input_ids == [number["▁die"], number["▁katze"], number["</s>"]]
    assert shared("die").input_ids[:2] == [number["▁"], number["d"]], "the target's pieces are not the source's"
    assert shared.decode([number["▁die"], number["▁katze"], number["."], 0], skip_special_tokens=True) == "die katze."
    assert shared.model_max_length == 512 and shared.model_input_names == ["input_ids", "attention_mask"]
    assert (shared.pad_token_id, shared.eos_token_id, shared.unk_token_id) == (number["<pad>"], 0, 1)
    padded = shared(["the", "the cat sat"], padding=True)
    assert padded.input_ids[0].tolist() == [number["▁the"], 0, number["<pad>"], number["<pad>"]]
    assert padded.attention_mask[0].tolist() == [1, 1, 0, 0]


def test_a_piece_that_the_vocabulary_lacks_is_unknown(shared, number):
    """And is cut off all the same: leaving it out would let "wor" come apart into letters that have ids."""
    assert shared("world").input_ids == [number["▁wor"], number["ld"], 0]
    assert "wor" not in number
    assert shared("1wor").input_ids == [number["▁"], number["1"], 1, 0]


def test_languages(shared, number):
    assert shared.supported_language_codes == [">>deu<<", ">>fra<<"]
    assert shared(">>fra<<the").input_ids == [number[">>fra<<"], number["▁the"], 0]
    assert shared(">>nowhere<< the").input_ids == [1, number["▁the"], 0]
    assert shared("the >>fra<<").input_ids[1] != number[">>fra<<"], "only where a text begins"


def test_which_model_puts_the_text_together(shared, number):
    ids = [number["<pad>"], number["▁die"], number["▁the"]]
    assert shared.decode(ids) == "<pad>  die the"
    assert shared.decode(ids, use_source_tokenizer=False) == "<pad> die the"
    assert shared.batch_decode([ids], use_source_tokenizer=False) == ["<pad> die the"]
    assert shared.convert_tokens_to_string(["▁the", "▁cat"]) == "the cat"
    assert shared.decode(np.array([[number["▁the"], 0]]), skip_special_tokens=True) == ["the"]


def test_added_tokens(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    before = tokenizer("the cat").input_ids
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<b>"]}) == 1
    assert tokenizer.add_tokens(["catsat"]) == 1
    ids = tokenizer("the catsat<b>on").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁the", "catsat", "<b>", "▁on", "</s>"]
    assert ids[1:3] == [size + 1, size] and tokenizer("the cat").input_ids == before
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("the catsat<b>on").input_ids == ids
    assert again.extra_special_tokens == ["<b>"]
    kept = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    assert len(kept("a</s>").input_ids) > len(tokenizer("a</s>").input_ids)


def test_saved_files_are_those_opened(folder, shared, tmp_path):
    names = {path.rsplit("/", 1)[1] for path in shared.save_pretrained(tmp_path)}
    assert names == {"source.spm", "target.spm", "vocab.json", "tokenizer_config.json", "special_tokens_map.json"}
    for name in ("source.spm", "target.spm"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads((folder / "vocab.json").read_text())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["tokenizer_class"], config["source_lang"]) == ("MarianTokenizer", "eng")


def test_an_old_repository_names_its_class_in_the_models_file(own):
    (own / "tokenizer_config.json").write_text('{"source_lang": "eng", "target_lang": "deu"}')
    for model in ('{"model_type": "marian"}', "{}"):
        (own / "config.json").write_text(model)
        assert isinstance(AutoTokenizer.from_pretrained(own), MarianTokenizer)
    (own / "tokenizer.json").write_text("{}")
    (own / "config.json").write_text('{"model_type": "marian"}')
    assert isinstance(AutoTokenizer.from_pretrained(own), MarianTokenizer), "its own files go before a tokenizer.json"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("source.spm", None, r"has no source.spm, expected source.spm, target.spm and vocab.json"),
        ("target.spm", None, r"has no target.spm, expected"),
        ("vocab.json", None, r"has no vocab.json, expected"),
        ("vocab.json", b'{"a": 0}', r"vocab.json has no '<unk>'"),
        ("vocab.json", b'{"<unk>": 0}', r"vocab.json has no '</s>'"),
        ("vocab.json", b"[]", r"does not map tokens to ids"),
        ("source.spm", b"no model", r"source.spm cannot be read as a SentencePiece model"),
        ("target.spm", golden.sentencepiece_file([("<unk>", 0.0, 2)], algorithm=2), r"is a SentencePiece model of BPE"),
        (
            "target.spm",
            golden.sentencepiece_file([("<unk>", 0.0, 2), ("a", -1.0, 1)], charsmap=b"\xff\xff\xff\x00a"),
            r"the normalization of a SentencePiece model is cut off",
        ),
        (
            "tokenizer_config.json",
            b'{"tokenizer_class": "MarianTokenizer", "separate_vocabs": true}',
            r"separate_vocabs is true, expected one vocab.json for both languages",
        ),
        (
            "tokenizer_config.json",
            b'{"tokenizer_class": "MarianTokenizer", "sp_model_kwargs": {"enable_sampling": true}}',
            r"asks for enable_sampling",
        ),
    ],
)
def test_broken_files_are_one_clear_line(own, file, content, message):
    (own / file).unlink()
    if content is not None:
        (own / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        AutoTokenizer.from_pretrained(own, tokenizer_class="MarianTokenizer")
    assert "\n" not in str(caught.value)


def test_a_model_file_that_is_cut_off_anywhere(own):
    data, refused = (own / "source.spm").read_bytes(), 0
    places = range(0, len(data), 23)
    for size in places:
        (own / "source.spm").write_bytes(data[:size])
        try:
            AutoTokenizer.from_pretrained(own)("the cat")
        except UserError:
            refused += 1
    assert refused > len(places) * 0.7, "only a cut between two fields can go unseen"


def test_what_is_not_there(shared):
    with pytest.raises(UserError, match=r"a MarianTokenizer has no offsets; leave it out"):
        shared("the", return_offsets_mapping=True)
    with pytest.raises(UserError, match=r"two models, expected one tokenizer.json"):
        shared.for_training()
    with pytest.raises(UserError, match=r"half of a surrogate pair"):
        shared("a \ud800 b")


def test_normalization_by_hand():
    normalize = Charsmap(golden.CHARSMAP)
    assert normalize("ATÁx") == "atáx"
    assert normalize("A\u0301A\u0300") == "\u00e1a\u0300", "the longest sequence, and nothing is lost behind it"
    assert normalize("e\u0301e\u0300\u0301 o\u0308") == "\u00e9e\u0300\u0301 \u00f6"
    assert normalize("½ﬁ\t\u200b한") == "1\u20442fi 한" and normalize("") == ""


def test_a_normalization_that_lies_is_harmless():
    random = np.random.default_rng(0)
    text = "The ÁA\u0301 cat\n½" * 3
    for _ in range(300):
        data = bytearray(golden.CHARSMAP)
        for place in random.integers(4, len(data), 20):
            data[place] = random.integers(256)
        assert isinstance(Charsmap(bytes(data))(text), str)
    assert Charsmap(b"\0\0\0\0")("ab") == "ab"


def test_pieces_by_hand(tmp_path):
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("▁ab", -1.0, 1), ("▁", -2.0, 1), ("a", -3.0, 1), ("b", -3.0, 1)]
    (tmp_path / "a.spm").write_bytes(
        golden.sentencepiece_file([*pieces, ("▁a▁b", -0.5, 1), ("<u>", 0.0, 4), ("bbb", -1e3, 5)], charsmap=b"\0" * 4)
    )
    model = Pieces(tmp_path / "a.spm")
    assert model.cut(["  ab   a ", "a b", "<s>", "", " ", "a<u>bbb", "▁", "한국b"]) == [
        ["▁ab", "▁", "a"],
        ["▁a▁b"],
        ["▁", "<s>"],
        [],
        [],
        ["▁", "a", "<u>", "b", "b", "b"],
        [],
        ["▁", "한국", "b"],
    ]
    assert model.join(["▁", "▁", "▁ab", "<s>", "▁a▁b", "▁other", "<unk>"]) == "ab a b▁other ⁇ "
    raw = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    (tmp_path / "b.spm").write_bytes(golden.sentencepiece_file([*pieces, *raw], byte_fallback=True))
    model = Pieces(tmp_path / "b.spm")
    assert model.cut(["a한"]) == [["▁", "a", "<0xED>", "<0x95>", "<0x9C>"]]
    assert model.join(["▁", "a", "<0xED>", "<0x95>", "<0x9C>", "b", "<0xED>", "<0x95>"]) == "a한b\ufffd\ufffd"


def test_threads_and_copies(shared):
    texts = [">>deu<< The cat", "½ ﬁ the mat", "a</s>b"]
    expected = shared(texts).input_ids
    assert pickle.loads(pickle.dumps(shared))(texts).input_ids == expected
    wrong = []

    def work(target):
        for _ in range(50):
            got = shared(text_target=texts) if target else shared(texts)
            wrong.extend([] if target or got.input_ids == expected else [got])

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
