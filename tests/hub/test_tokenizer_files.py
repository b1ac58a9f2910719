"""Opening tokenizers: which files are read, what goes before what, and what broken or hostile files come to."""

import json

import pytest
import tokenizers as hf
from tokenizers import models, normalizers, pre_tokenizers

from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.hub.tokenizer_sentencepiece import parse_sentencepiece
from jaxformer.schema import UserError
from jaxformer.tokenizers.training import byte_characters
from tests.golden import tokenizers as golden


def write(folder, **files):
    """Writes files whose names have their points as two underscores; a mapping is JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        (folder / name.replace("__", ".")).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture
def bert(tmp_path):
    return golden.write("bert", tmp_path / "bert")


def tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert", "BertTokenizer"),
        ("gpt2", "GPT2Tokenizer"),
        ("roberta", "RobertaTokenizer"),
        ("openai_gpt", "OpenAIGPTTokenizer"),
        ("clip", "CLIPTokenizer"),
    ],
)
def test_the_files_alone_imply_the_class(tmp_path, name, kind):
    golden.write(name, tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.kind.name == kind
    assert tokenizer("the cat").input_ids == golden.run(tokenizer, {"text": "the cat"})["input_ids"]


def test_the_names_that_openai_gave_its_files(tmp_path):
    golden.write("gpt2", tmp_path)
    expected = AutoTokenizer.from_pretrained(tmp_path)("the cat sat").input_ids
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")
    (tmp_path / "merges.txt").rename(tmp_path / "vocab.bpe")
    assert AutoTokenizer.from_pretrained(tmp_path)("the cat sat").input_ids == expected


@pytest.mark.parametrize(
    ("model", "type_ids"),
    [
        ({"model_type": "bert"}, True),
        ({"model_type": "distilbert"}, False),
        ({"model_type": "roberta", "type_vocab_size": 1}, False),
        ({"model_type": "electra", "type_vocab_size": 2}, True),
        ({}, True),
    ],
)
def test_types_are_returned_for_models_that_read_them(bert, model, type_ids):
    write(bert, config__json=model)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    assert ("token_type_ids" in tokenizer("the")) is type_ids
    assert "token_type_ids" in tokenizer("the", return_token_type_ids=True)
    stated = AutoTokenizer.from_pretrained(bert, model_input_names=["input_ids", "token_type_ids"])
    assert "token_type_ids" in stated("the")


def test_the_class_may_come_from_the_model(tmp_path):
    folder = write(tmp_path, vocab__txt="\n".join(golden.BERT_WORDS), config__json={"model_type": "distilbert"})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.kind.name == "DistilBertTokenizer"
    assert list(tokenizer("the")) == ["input_ids", "attention_mask"]


def test_overrides_go_before_the_file(bert):
    tokenizer = AutoTokenizer.from_pretrained(
        bert, do_lower_case=False, padding_side="left", model_max_length=5, pad_token="[MASK]", use_fast=True
    )
    assert tokens(tokenizer, "The the") == ["[CLS]", "[UNK]", "the", "[SEP]"]
    assert tokenizer(["the"], padding="max_length").input_ids.tolist() == [[4, 4, 2, 5, 3]]
    assert AutoTokenizer.from_pretrained(bert)("The").input_ids == AutoTokenizer.from_pretrained(bert)("the").input_ids
    for wrong, message in [
        ({"do_lowercase": False}, r"from_pretrained got do_lowercase, .*did you mean do_lower_case"),
        ({"padding_side": "top"}, r"padding_side is 'top', expected 'left' or 'right'"),
        ({"model_max_length": "5"}, r"model_max_length is '5', expected a whole number"),
        ({"do_lower_case": 0}, r"do_lower_case is 0, expected true or false"),
        ({"tokenizer_class": "BertTokeniser"}, r"expected one of .*did you mean BertTokenizer"),
    ]:
        with pytest.raises(UserError, match=message):
            AutoTokenizer.from_pretrained(bert, **wrong)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_overrides_change_a_tokenizer_json_too(tmp_path, name):
    golden.write(name, tmp_path / "files")
    AutoTokenizer.from_pretrained(tmp_path / "files").save_pretrained(tmp_path / "saved")
    override = {"do_lower_case": False} if name == "bert" else {"add_prefix_space": True}
    expected = AutoTokenizer.from_pretrained(tmp_path / "files", **override)
    got = AutoTokenizer.from_pretrained(tmp_path / "saved", **override)
    assert got("The cat").input_ids == expected("The cat").input_ids
    plain = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert got("The cat").input_ids != plain("The cat").input_ids
    wrong = {"add_prefix_space": True} if name == "bert" else {"do_lower_case": True}
    with pytest.raises(UserError, match=r"cannot be changed: the tokenizer.json of .* has no step that it sets"):
        AutoTokenizer.from_pretrained(tmp_path / "saved", **wrong)


def test_begin_and_end_can_be_asked_for(tmp_path):
    golden.write("gpt2", tmp_path)
    end = "<|endoftext|>"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, add_bos_token=True, add_eos_token=True)
    assert tokens(tokenizer, "cat") == [end, "cat", end]
    assert tokenizer("a", "b", return_token_type_ids=True).token_type_ids == [0, 0, 0, 1, 1, 1]
    with pytest.raises(UserError, match=r"add_bos_token is true but the tokenizer has no bos token"):
        AutoTokenizer.from_pretrained(golden.write("bert", tmp_path / "bert"), add_bos_token=True)


def test_any_class_with_a_tokenizer_json(tmp_path):
    backend = hf.Tokenizer(models.WordLevel({"a": 0, "B": 1, "?": 2, "<p>": 3}, unk_token="?"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Strip(), pre_tokenizers.WhitespaceSplit()
    backend.enable_truncation(2)
    backend.enable_padding(pad_id=3, pad_token="<p>")
    folder = write(
        tmp_path, tokenizer__json=backend.to_str(), tokenizer_config__json={"tokenizer_class": "WhollyOwnTokenizer"}
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(" a B zzz a").input_ids == [0, 1, 2, 0], "what the file says of truncation is not done unasked"
    assert tokenizer.pad_token == "<p>" and "token_type_ids" not in tokenizer("a")
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_added_tokens_old_and_new(tmp_path):
    for number, files in enumerate(
        [
            {"added_tokens__json": {"<new>": len(golden.BERT_WORDS), "<newer>": len(golden.BERT_WORDS) + 1}},
            {
                "tokenizer_config__json": {
                    "tokenizer_class": "BertTokenizerFast",
                    "added_tokens_decoder": {
                        str(len(golden.BERT_WORDS) + 1): {"content": "<newer>", "special": True},
                        str(len(golden.BERT_WORDS)): {"content": "<new>", "lstrip": False},
                    },
                }
            },
        ]
    ):
        folder = write(golden.write("bert", tmp_path / str(number)), **files)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokens(tokenizer, "the<new>cat<newer>") == ["[CLS]", "the", "<new>", "cat", "<newer>", "[SEP]"]
        assert len(tokenizer) == len(golden.BERT_WORDS) + 2
    write(golden.write("bert", tmp_path / "gap"), added_tokens__json={"<new>": 999})
    with pytest.raises(UserError, match=r"'<new>' should have the id 999, but with these files it has"):
        AutoTokenizer.from_pretrained(tmp_path / "gap")


def test_special_tokens_of_the_older_file(bert):
    write(
        bert,
        tokenizer_config__json={"tokenizer_class": "BertTokenizer"},
        special_tokens_map__json={
            "mask_token": {"content": "a", "lstrip": True, "rstrip": False, "single_word": True, "normalized": False},
            "additional_special_tokens": ["<one>"],
        },
    )
    tokenizer = AutoTokenizer.from_pretrained(bert)
    assert tokenizer.mask_token == "a" and tokenizer.extra_special_tokens == ["<one>"]
    assert tokens(tokenizer, "the <one>") == ["[CLS]", "the", "<one>", "[SEP]"]


def test_the_mask_of_roberta_takes_the_blank_before_it(tmp_path):
    golden.write("roberta", tmp_path)
    write(tmp_path, tokenizer_config__json={"tokenizer_class": "RobertaTokenizer"})
    assert tokens(AutoTokenizer.from_pretrained(tmp_path), "the <mask>") == ["<s>", "the", "<mask>", "</s>"]


def test_sentencepiece_by_hand(tmp_path):
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁ab", -1.0, 1), ("▁", -2.0, 1), ("ab", -4.0, 1)]
    pieces += [("a", -3.0, 1), ("b", -3.0, 1), ("9,", -1.0, 1), ("9", -5.0, 1), (",", -5.0, 1)]
    data = golden.sentencepiece_file(pieces, unknown=2)
    assert parse_sentencepiece(data).pieces[3] == ("▁ab", -1.0, 1)
    t5 = AutoTokenizer.from_pretrained(
        write(tmp_path / "t5", spiece__model=data, tokenizer_config__json={"tokenizer_class": "T5Tokenizer"})
    )
    # "aab": ▁ a ab (-9) is likelier than ▁ a a b (-11); the sentinels stand behind the pieces, backwards.
    assert t5("ab aab x<extra_id_0>").input_ids == [3, 4, 6, 5, 4, 2, len(pieces) + 99, 1]
    assert t5.decode([3, 4, 6, 5, len(pieces) + 99]) == "ab aab<extra_id_0>"
    names = {"tokenizer_class": "AlbertTokenizer", "cls_token": "<pad>", "sep_token": "</s>"}
    albert = AutoTokenizer.from_pretrained(write(tmp_path / "albert", spiece__model=data, tokenizer_config__json=names))
    assert albert("AB 9,").input_ids == [0, 3, 4, 9, 10, 1], "no comma is left on a number"
    assert t5("9,").input_ids == [4, 8, 1]
    assert albert("ab", "ab").token_type_ids == [0, 0, 0, 1, 1]
    pegasus = AutoTokenizer.from_pretrained(
        write(tmp_path / "pegasus", spiece__model=data, tokenizer_config__json={"tokenizer_class": "PegasusTokenizer"})
    )
    assert pegasus("ab x").input_ids == [106, 107, 105, 1], "103 places before the pieces, whose first two move there"
    assert pegasus.convert_ids_to_tokens([0, 1, 2, 3, 4, 102, 105]) == [
        *("<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk_100>", "<unk>")
    ]


def test_bpe_of_sentencepiece_merges_by_score(tmp_path):
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("ab", -1.0, 1), ("bc", -0.5, 1)]
    pieces += [("▁", -9.0, 1), ("a", -9.0, 1), ("b", -9.0, 1), ("c", -9.0, 1), ("<0x78>", 0.0, 6)]
    data = golden.sentencepiece_file(pieces, algorithm=2, byte_fallback=True)
    config = {"tokenizer_class": "LlamaTokenizer"}
    llama = AutoTokenizer.from_pretrained(write(tmp_path, tokenizer__model=data, tokenizer_config__json=config))
    assert llama.convert_ids_to_tokens(llama("abc").input_ids) == ["<s>", "▁", "a", "bc"], "bc is the better merge"
    assert llama("x").input_ids == [1, 5, 9] and llama.decode([1, 5, 9, 6], skip_special_tokens=True) == "xa"
    assert llama.padding_side == "left"
    first = AutoTokenizer.from_pretrained(tmp_path, legacy=False)
    always = AutoTokenizer.from_pretrained(tmp_path, legacy=True)
    assert tokens(first, "a</s>a") == ["<s>", "▁", "a", "</s>", "a"]
    assert tokens(always, "a</s>a") == ["<s>", "▁", "a", "</s>", "▁", "a"]
    config = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, tokenizer_config__json=config)
    assert tokens(AutoTokenizer.from_pretrained(tmp_path), "abc a") == ["<s>", "a", "bc", "▁", "a"]
    write(tmp_path, tokenizer_config__json={"tokenizer_class": "T5Tokenizer"})
    with pytest.raises(UserError, match=r"is BPE, expected Unigram for this tokenizer"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_bytes_of_byt5(tmp_path):
    write(tmp_path, config__json={"model_type": "byt5"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("aé\n").input_ids == [byte + 3 for byte in "aé\n".encode()] + [1]
    assert tokenizer.decode(tokenizer("가나 é").input_ids, skip_special_tokens=True) == "가나 é"
    assert len(tokenizer) == 384 and tokenizer.convert_tokens_to_ids("<extra_id_0>") == 259


def test_the_alphabet_of_bytes():
    assert [byte_characters()[byte] for byte in (0, 32, 65, 127, 173, 255)] == ["Ā", "Ġ", "A", "ġ", "Ń", "ÿ"]
    assert set(byte_characters()) == set(pre_tokenizers.ByteLevel.alphabet())


BERT_CONFIG = {"tokenizer_class": "BertTokenizer"}
WORDS = "\n".join(golden.BERT_WORDS)
GPT2 = golden.files()["gpt2"]
BROKEN = {
    "nothing": ({}, r"has no tokenizer.json and its tokenizer is a class that no file names"),
    "config_not_json": ({"tokenizer_config__json": "{"}, r"tokenizer_config.json is not JSON"),
    "config_a_list": ({"tokenizer_config__json": []}, r"holds a list, expected a JSON object"),
    "config_deep": ({"tokenizer_config__json": "[" * 100_000}, r"tokenizer_config.json is not JSON"),
    "tokenizer_not_json": ({"tokenizer__json": "{"}, r"is not a tokenizer.json of the `tokenizers` library"),
    "tokenizer_wrong": ({"tokenizer__json": {"model": 3}}, r"is not a tokenizer.json of the `tokenizers` library"),
    "tokenizer_binary": ({"tokenizer__json": b"\xff\xfe"}, r"is not UTF-8 text"),
    "class_wrong": ({"tokenizer_config__json": {"tokenizer_class": 3}}, r"tokenizer_class is 3, expected the name"),
    "class_unknown": ({"tokenizer_config__json": {"tokenizer_class": "XLMTokenizer"}}, r"is a XLMTokenizer"),
    "no_vocab_txt": ({"tokenizer_config__json": BERT_CONFIG}, r"has no vocab.txt, which a BertTokenizer needs"),
    "empty_vocab": ({"vocab__txt": "", "tokenizer_config__json": BERT_CONFIG}, r"vocab.txt is empty"),
    "binary_vocab": ({"vocab__txt": b"\xff\xfe\x00", "tokenizer_config__json": BERT_CONFIG}, r"is not UTF-8 text"),
    "vocab_without_cls": ({"vocab__txt": "[UNK]\na"}, r"the vocabulary has no cls token, got '\[CLS\]'"),
    "merges_alone": ({"merges__txt": "a b"}, r"has merges.txt but no vocab.json, expected both"),
    "vocab_alone": ({"vocab__json": {"a": 0}}, r"has vocab.json but no merges.txt, expected both"),
    "vocab_a_list": ({"vocab__json": ["a"], "merges__txt": ""}, r"does not map tokens to ids"),
    "vocab_negative": ({"vocab__json": {"a": -1}, "merges__txt": ""}, r"does not map tokens to ids"),
    "vocab_text_ids": ({"vocab__json": {"a": "0"}, "merges__txt": ""}, r"does not map tokens to ids"),
    "vocab_not_json": ({"vocab__json": "{", "merges__txt": ""}, r"vocab.json is not JSON"),
    "merges_three": ({"vocab__json": GPT2["vocab.json"], "merges__txt": "a b c"}, r"line 1 of .*expected two tokens"),
    "merges_unknown": ({"vocab__json": GPT2["vocab.json"], "merges__txt": "q z"}, r"needs the token 'qz', which"),
    "max_length": (
        {"vocab__txt": WORDS, "tokenizer_config__json": {"model_max_length": [1]}},
        r"tokenizer_config.json of .*: model_max_length is '\[1\]', expected a whole number",
    ),
    "side": ({"vocab__txt": WORDS, "tokenizer_config__json": {"padding_side": 1}}, r"padding_side is '1', expected"),
    "pad": ({"vocab__txt": WORDS, "tokenizer_config__json": {"pad_token": [1]}}, r"pad_token is '\[1\]', expected a"),
    "pad_object": (
        {"vocab__txt": WORDS, "tokenizer_config__json": {"pad_token": {"content": "a", "lstrip": "yes"}}},
        r"pad_token is .*expected a token or an object with its content and flags",
    ),
    "added": ({"vocab__txt": WORDS, "tokenizer_config__json": {"added_tokens_decoder": [1]}}, r"added_tokens_decoder"),
    "added_old": ({"vocab__txt": WORDS, "added_tokens__json": {"<a>": "x"}}, r"gives '<a>' the id 'x'"),
    "template": ({"vocab__txt": WORDS, "tokenizer_config__json": {"chat_template": 3}}, r"chat_template is a int"),
    "lower": ({"vocab__txt": WORDS, "tokenizer_config__json": {"do_lower_case": "no"}}, r"do_lower_case is 'no'"),
    "extra": ({"vocab__txt": WORDS, "tokenizer_config__json": {"extra_special_tokens": 5}}, r"expected a list of tok"),
    "spiece_text": (
        {"spiece__model": "no model", "config__json": {"model_type": "t5"}},
        r"spiece.model cannot be read as a SentencePiece model: it is cut off",
    ),
    "spiece_empty": ({"spiece__model": "", "config__json": {"model_type": "t5"}}, r"it holds no pieces"),
    "sentinels_without_end": (
        {"config__json": {"model_type": "byt5"}, "tokenizer_config__json": {"extra_ids": 10**12}},
        r"extra_ids is '1000000000000', expected a whole number up to 10,000",
    ),
    "no_spiece": ({"config__json": {"model_type": "t5"}}, r"has no spiece.model or .* which a T5Tokenizer needs"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_one_clear_line(tmp_path, case):
    files, message = BROKEN[case]
    with pytest.raises(UserError, match=message) as caught:
        AutoTokenizer.from_pretrained(write(tmp_path / "broken", **files))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_a_model_file_that_is_cut_off_anywhere(tmp_path):
    data = golden.files()["t5"]["spiece.model"]
    write(tmp_path, config__json={"model_type": "t5"})
    refused = 0
    for size in range(0, len(data), 7):
        (tmp_path / "spiece.model").write_bytes(data[:size])
        try:
            AutoTokenizer.from_pretrained(tmp_path)("the cat")
        except UserError:
            refused += 1
    assert refused > len(range(0, len(data), 7)) * 0.7, "only a cut between two fields can go unseen"


def test_nothing_outside_the_folder_is_read(bert, tmp_path):
    secret = write(tmp_path / "outside", vocab__txt="secret", t__json="{}")
    config = {
        "tokenizer_class": "BertTokenizer",
        "vocab_file": str(secret / "vocab.txt"),
        "tokenizer_file": "../outside/t.json",
        "special_tokens_map_file": "/etc/passwd",
        "name_or_path": "../outside",
        "auto_map": {"AutoTokenizer": ["own--code.Tokenizer", None]},
        "chat_template": "../outside/t.json",
    }
    expected = AutoTokenizer.from_pretrained(bert)("the").input_ids
    write(bert, tokenizer_config__json=config)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    assert tokenizer("the").input_ids == expected
    assert tokenizer.chat_template == "../outside/t.json", "a text, not a path"


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match=r"is no folder and no name on the Hub"):
        AutoTokenizer.from_pretrained(tmp_path / "no" / "such" / "folder")


def test_jinja_is_asked_for_by_name(bert, monkeypatch):
    from jaxformer.hub import chat_sandbox

    chat_sandbox.require_jinja.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "jinja2.sandbox", None)
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    tokenizer = AutoTokenizer.from_pretrained(bert, chat_template="{{ 1 }}")
    with pytest.raises(UserError, match=r"need the package jinja2, .* pip install 'jaxformer\[chat\]'"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    monkeypatch.undo()
    monkeypatch.setattr(chat_sandbox, "version", lambda name: "3.1.5")
    with pytest.raises(UserError, match=r"jinja2 is 3.1.5, whose sandbox is known to leak"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    monkeypatch.undo()
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "1"
