"""``AutoTokenizer`` as a contract: golden values of 14 tiny tokenizers, and where ``transformers`` alone would err."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers as hf
from tokenizers import models, normalizers, pre_tokenizers, processors

import jaxformer
from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.schema import UserError
from jaxformer.tokenizers import encode, find_special, save_tokenizer
from tests.golden import tokenizers as golden

GOLDEN = json.loads(golden.GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: AutoTokenizer.from_pretrained(golden.write(name, root / name)) for name in golden.files()}


def agrees(tokenizer, name):
    assert golden.describe(tokenizer) == GOLDEN[name]["about"]
    for call in golden.calls_of(name):
        assert json.loads(json.dumps(golden.run(tokenizer, golden.CALLS[call]))) == GOLDEN[name]["calls"][call], call


@pytest.mark.parametrize("name", golden.files())
def test_every_call_of_the_golden_file_also_after_saving(opened, name, tmp_path):
    agrees(opened[name], name)
    save_tokenizer(opened[name], tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    agrees(again, name)
    assert again.model_input_names == opened[name].model_input_names
    assert [path.name for path in (tmp_path / "saved").glob(".*")] == []


@pytest.mark.parametrize("name", sorted(golden.files().keys() - {"marian"}))
def test_training_sees_the_ids_of_a_call(opened, name):
    tokenizer = opened[name]
    for text in golden.TEXTS:
        assert encode(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    named = {"pad": "pad", "mask": "mask", "cls": "cls" if tokenizer.cls_token else "bos"}
    for role, attribute in named.items():
        if getattr(tokenizer, f"{attribute}_token") is not None:
            assert find_special(tokenizer, role) == getattr(tokenizer, f"{attribute}_token_id")
    eos = tokenizer.eos_token_id if tokenizer.eos_token else tokenizer.sep_token_id
    assert find_special(tokenizer, "eos") == eos


def test_a_tokenizer_of_two_models_does_not_train(opened):
    with pytest.raises(UserError, match=r"cuts source and target with two models"):
        encode(opened["marian"], "the cat")


def write(folder, **files):
    """Writes files whose names have their points as two underscores; a mapping is JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        (folder / name.replace("__", ".")).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture
def bert(tmp_path):
    """BERT's tokenizer with a ``tokenizer.json`` whose normalizer keeps capital letters."""
    vocabulary = {
        token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "A"])
    }
    backend = hf.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    return write(tmp_path / "bert", tokenizer__json=backend.to_str(), tokenizer_config__json=config)


def test_the_normalizer_is_that_of_tokenizer_json(bert):
    from transformers import AutoTokenizer as Theirs

    assert AutoTokenizer.from_pretrained(bert)("A a")["input_ids"] == [2, 6, 5, 3]
    assert Theirs.from_pretrained(bert)("A a")["input_ids"] == [2, 5, 5, 3], "else the comparison is not needed"
    with pytest.raises(UserError, match=r"do_lower_case would change the normalizer of .* which its tokenizer.json"):
        AutoTokenizer.from_pretrained(bert, do_lower_case=False)


@pytest.mark.parametrize(
    ("model", "types"),
    [
        ({"model_type": "bert"}, True),
        ({"model_type": "distilbert"}, False),
        ({"model_type": "roberta", "type_vocab_size": 1}, False),
        ({"model_type": "electra", "type_vocab_size": 2}, True),
        ({"model_type": "gpt2"}, False),
    ],
)
def test_types_are_returned_for_models_that_read_them(bert, model, types):
    write(bert, config__json=model)
    assert ("token_type_ids" in AutoTokenizer.from_pretrained(bert)("a")) is types
    stated = AutoTokenizer.from_pretrained(bert, model_input_names=["input_ids", "token_type_ids"])
    assert "token_type_ids" in stated("a")


def test_any_tokenizer_json_has_no_types_and_truncates_nothing_unasked(tmp_path):
    backend = hf.Tokenizer(models.WordLevel({"a": 0, "B": 1, "?": 2, "<p>": 3}, unk_token="?"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Strip(), pre_tokenizers.WhitespaceSplit()
    backend.enable_truncation(2)
    write(tmp_path, tokenizer__json=backend.to_str(), tokenizer_config__json={"tokenizer_class": "OwnTokenizer"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert dict(tokenizer(" a B zzz a")) == {"input_ids": [0, 1, 2, 0], "attention_mask": [1, 1, 1, 1]}
    save_tokenizer(tokenizer, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert saved["model_input_names"] == ["input_ids", "attention_mask"]


def test_no_code_of_a_repository_is_executed(bert, tmp_path):
    with pytest.raises(UserError, match=r"trust_remote_code is true, but no code of a repository is executed"):
        AutoTokenizer.from_pretrained(bert, trust_remote_code=True)
    expected = AutoTokenizer.from_pretrained(bert)("a")["input_ids"]
    keys = json.loads((bert / "tokenizer_config.json").read_text())
    own = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}, "vocab_file": "/etc/passwd", "chat_template": "/x"}
    write(bert, tokenizer_config__json={**keys, **own}, own__py=f"open({str(tmp_path / 'ran')!r}, 'w')")
    tokenizer = AutoTokenizer.from_pretrained(bert)
    assert tokenizer("a")["input_ids"] == expected
    assert tokenizer.chat_template == "/x", "a text, not a path"
    assert not (tmp_path / "ran").exists()


BROKEN = {
    "nothing": ({}, r"has no tokenizer"),
    "config_not_json": ({"tokenizer_config__json": "{"}, r"cannot be opened"),
    "tokenizer_not_json": ({"tokenizer__json": "{"}, r"is not a valid tokenizer.json"),
    "tokenizer_wrong": ({"tokenizer__json": {"model": 3}}, r"is not a valid tokenizer.json"),
    "tokenizer_binary": ({"tokenizer__json": b"\xff\xfe"}, r"is not a valid tokenizer.json"),
    "class_unknown": ({"tokenizer_config__json": {"tokenizer_class": "NoTokenizer"}}, r"cannot be opened"),
    "vocabulary_missing": (
        {"config__json": {"model_type": "t5"}, "a__txt": ""},
        r"has none of spiece.model, tokenizer.json",
    ),
    "spiece_text": ({"spiece__model": "no model", "config__json": {"model_type": "t5"}}, r"cannot be opened"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_one_clear_line(tmp_path, case):
    files, message = BROKEN[case]
    with pytest.raises(UserError, match=message) as caught:
        AutoTokenizer.from_pretrained(write(tmp_path / "broken", **files))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match=r"is neither a folder nor a name on the Hub"):
        AutoTokenizer.from_pretrained(tmp_path / "no" / "such" / "folder")


def test_a_folder_that_cannot_be_written(bert, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot be written to"):
        save_tokenizer(AutoTokenizer.from_pretrained(bert), tmp_path / "file")


def test_importing_is_quiet_and_late(bert):
    """``transformers`` is imported with the first tokenizer, and does not say that PyTorch is missing."""
    code = (
        "import sys, jaxformer, jaxformer.training.run\n"
        "assert 'transformers' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        f"jaxformer.AutoTokenizer.from_pretrained({str(bert)!r})\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_NO_ADVISORY_WARNINGS"}
    root = Path(jaxformer.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
