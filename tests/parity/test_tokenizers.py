"""Our tokenizers against PyTorch ``transformers``, live.

The vocabularies and texts are those of the folder that the environment variable ``JAXFORMER_DATA`` names: in it,
``tokenizers/NAME/`` and ``*/*.jsonl.gz``. Without it they are the tiny ones of ``tests/golden/tokenizers.py``.
"""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from jaxformer.hub.tokenizer import AutoTokenizer
from tests.golden import tokenizers as golden
from tests.hub.test_chat import CHAT, CHATML

pytestmark = pytest.mark.parity

DATA = Path(os.environ["JAXFORMER_DATA"]) if os.environ.get("JAXFORMER_DATA") else None
# The class of each folder of vocabulary files, which hold nothing that names it, and what else is not the default.
CLASSES = {
    "bert_base_cased": {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
    "bert_base_uncased": {"tokenizer_class": "BertTokenizer"},
    "clip": {"tokenizer_class": "CLIPTokenizer"},
    "gpt2": {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|endoftext|>"},
    "koelectra": {"tokenizer_class": "ElectraTokenizer", "do_lower_case": False},
    "openai_gpt": {"tokenizer_class": "OpenAIGPTTokenizer", "pad_token": "<unk>"},
    "sentencepiece_bpe_512": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "pad_token": "<unk>"},
    "t5_base": {"tokenizer_class": "T5Tokenizer"},
}
RENAMED = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt", "tok512.model": "tokenizer.model"}
NAMES = sorted(p.name for p in (DATA / "tokenizers").iterdir()) if DATA else sorted(golden.files())
HARD = [
    *golden.TEXTS,
    "",
    " a text that begins and ends with blanks ",
    "naïve café — “quotes” … ½ ﬁ Ⅷ",
    "다람쥐 헌 쳇바퀴에 타고파. 뷁 힣 ㅋㅋㅋ",
    "e\u0301 \u200b\ufeff\u2028 \x00\x01\x7f 😀🇰🇷 👨‍👩‍👧",
    "中文 日本語 العربية हिन्दी ไทย",
    "<s> </s> [CLS] [SEP] [MASK] <mask> <pad> <|endoftext|> <extra_id_0> <unk>",
    "http://a.b/c?d=e&f=1,234.5%   x" + "y" * 300,
]


def _strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


@pytest.fixture(scope="module")
def texts():
    """Some of every file of the folder, and what is hard."""
    found = list(HARD)
    if DATA:
        for path in sorted(DATA.glob("*/*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                rows = [json.loads(line) for _, line in zip(range(150), lines, strict=False)]
            found += [text for row in rows for text in _strings({k: v for k, v in row.items() if k != "tags"})][:1500]
        for path in sorted(DATA.glob("*/*.txt*")):
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
            found += text.splitlines(keepends=True)[:1500]
    return found


def _folder(name, folder):
    """The files of a tokenizer under the names that both libraries know."""
    if DATA is None:
        return golden.write(name, folder)
    folder.mkdir()
    for path in (DATA / "tokenizers" / name).iterdir():
        shutil.copyfile(path, folder / RENAMED.get(path.name, path.name))
    (folder / "tokenizer_config.json").write_text(json.dumps(CLASSES[name]))
    return folder


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    """PyTorch's tokenizer, ours, and the folder of both."""
    from transformers import AutoTokenizer as Theirs

    folder = _folder(request.param, tmp_path_factory.mktemp("tokenizer") / request.param)
    return Theirs.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), folder


def _equal_ids(theirs, ours, texts):
    expected = theirs(texts)["input_ids"]
    got = ours(texts)["input_ids"]
    different = [i for i, rows in enumerate(zip(expected, got, strict=True)) if rows[0] != rows[1]]
    assert [(texts[i], expected[i], got[i]) for i in different[:3]] == []


def test_the_ids_of_many_texts(pair, texts):
    theirs, ours, _ = pair
    assert len(theirs) == len(ours)
    _equal_ids(theirs, ours, texts)
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    if theirs.is_fast:
        assert ours.get_vocab() == theirs.get_vocab()


def test_decoded(pair, texts):
    theirs, ours, _ = pair
    rows = ours(texts)["input_ids"][: len(HARD) + 200]
    for skip in (False, True):
        expected = theirs.batch_decode(rows, skip_special_tokens=skip)
        assert ours.batch_decode(rows, skip_special_tokens=skip) == expected


@pytest.mark.parametrize(
    "call",
    [
        {"truncation": True, "max_length": 16, "return_offsets_mapping": True, "return_special_tokens_mask": True},
        {"truncation": True, "max_length": 12, "stride": 3, "return_overflowing_tokens": True},
        {"padding": "max_length", "max_length": 300, "truncation": True, "pad_to_multiple_of": 4},
        {"add_special_tokens": False, "return_offsets_mapping": True, "max_length": 64},
    ],
    ids=["cut", "overflow", "padded", "bare"],
)
def test_calls(pair, texts, call):
    theirs, ours, _ = pair
    if not theirs.is_fast and {"return_offsets_mapping", "return_overflowing_tokens"} & call.keys():
        call = {key: value for key, value in call.items() if key in ("truncation", "max_length", "add_special_tokens")}
    some = texts[:: max(1, len(texts) // 800)]
    expected, got = theirs(some, **call), ours(some, **call)
    for key in expected.keys() & got.keys():
        assert golden.as_lists(expected[key]) == golden.as_lists(got[key]), key


@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
def test_pairs(pair, texts, strategy):
    theirs, ours, _ = pair
    whole = [text for text in texts if len(text.split()) > 8][:400] or [text * 20 for text in golden.TEXTS]
    pairs = {
        "longest_first": list(zip(whole, whole[::-1], strict=True)),
        "only_first": [(text * 2, "the cat") for text in whole],
        "only_second": [("the cat", text * 2) for text in whole],
    }[strategy]
    # Which text loses one more where the rest is odd, the two ways PyTorch cuts pairs do not agree on.
    length = 23 if ours.kind.name == "MarianTokenizer" else 24
    call = {"truncation": strategy, "max_length": length, "padding": True}
    expected = golden.as_lists(theirs(pairs, **call)["input_ids"])
    assert golden.as_lists(ours(pairs, **call)["input_ids"]) == expected


def test_saved_and_opened_by_pytorch(pair, texts, tmp_path):
    from transformers import AutoTokenizer as Theirs

    theirs, ours, _ = pair
    ours.save_pretrained(tmp_path)
    _equal_ids(Theirs.from_pretrained(tmp_path), ours, texts)
    _equal_ids(theirs, AutoTokenizer.from_pretrained(tmp_path), texts)


def test_saved_by_pytorch_and_opened(pair, texts, tmp_path):
    theirs, ours, _ = pair
    theirs.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    _equal_ids(theirs, again, texts)
    assert again.special_tokens_map == ours.special_tokens_map


@pytest.mark.parametrize("name", golden.files())
def test_the_golden_file_is_what_pytorch_says(name, tmp_path):
    made = json.loads(json.dumps(golden.make(name, tmp_path)))
    assert made == json.loads(golden.GOLDEN.read_text(encoding="utf-8"))[name]


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_the_ids_of_sentencepiece_itself(name, texts, tmp_path):
    """What transformers itself got its ids from, for texts that hold no token's name and begin and end with none."""
    from sentencepiece import SentencePieceProcessor

    source = golden.write(name, tmp_path)
    model = next(source.glob("*.model"))
    if DATA and name == "t5":
        shutil.copyfile(DATA / "tokenizers" / "t5_base" / "spiece.model", model)
    ours, theirs = AutoTokenizer.from_pretrained(source), SentencePieceProcessor(model_file=str(model))
    plain = [" ".join(text.split()) for text in texts if "<" not in text and text.strip()]
    expected = [theirs.encode(text) for text in plain]
    got = ours(plain, add_special_tokens=False)["input_ids"]

    def likelihood(ids):
        return sum(theirs.get_score(i) for i in ids)

    # Two ways to cut a text can be equally likely ("44" "4", "4" "44"): which is taken is then a matter of rounding.
    different = [i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b]
    tied = [i for i in different if name == "t5" and abs(likelihood(expected[i]) - likelihood(got[i])) < 1e-4]
    assert [(plain[i], expected[i], got[i]) for i in different if i not in tied] == []
    assert len(tied) <= len(plain) / 1000


@pytest.mark.parametrize(
    "call",
    [{}, {"add_generation_prompt": True}, {"return_assistant_tokens_mask": True}, {"continue_final_message": True}],
    ids=["whole", "prompt", "mask", "continued"],
)
def test_conversations(tmp_path, call):
    from transformers import AutoTokenizer as Theirs

    folder = golden.write("gpt2", tmp_path)
    theirs, ours = Theirs.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tool = {"type": "function", "function": {"name": "<f>", "parameters": {"type": "object", "한": [1, None]}}}
    blocks = (
        "{% for m in messages %}\n  {% if m.content is string %}\n{{ m.content | trim }}{% endif %}\n{% endfor %}x\n"
    )
    for template in (CHATML, CHATML.replace("'<|im_end|>'", "eos_token") + "{{ tools | tojson(indent=1) }}", blocks):
        theirs.chat_template = ours.chat_template = template
        for tools in (None, [tool]):
            if "generation" in template or not call.get("return_assistant_tokens_mask"):
                expected = theirs.apply_chat_template(CHAT, tools=tools, **call)
                got = ours.apply_chat_template(CHAT, tools=tools, **call)
                assert dict(got) == dict(expected)


def test_the_trainer_s_own_tokenizer(pair, texts):
    theirs, ours, _ = pair
    if ours.kind.name == "MarianTokenizer":  # which has none
        return
    trained = ours.for_training()
    plain = [text for text in texts if not any(token in text for token in ours.get_added_vocab())][:500]
    assert trained.encode_batch(plain) == theirs(plain, add_special_tokens=False)["input_ids"]
    assert trained.find_special("pad") == theirs.pad_token_id
    assert trained.eos_id == (theirs.eos_token_id if theirs.eos_token else theirs.sep_token_id)
