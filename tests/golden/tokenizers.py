"""Makes ``tokenizers.json``: what PyTorch ``transformers`` makes of a few texts with tiny vocabularies of each kind.

    pip install -e ".[test,parity]" && python -m tests.golden.tokenizers

The vocabularies are written here, by hand, and need neither library; the default tests open the same files and compare.
"""

import base64
import json
import struct
import sys
import tempfile
import zlib
from pathlib import Path

from jaxformer.tokenizers.training import byte_characters

GOLDEN = Path(__file__).parent / "tokenizers.json"

# ruff: noqa: SIM905  # a vocabulary reads better as a line of words
WORDS = "the cat sat on mat a b c d e f g h i j k l m n o p q r s t u v w x y z , . ! ? ' < > [ ] / - 1 2 3".split()
CONTINUED = "##s ##at ##t ##a ##b ##c ##d ##e ##i ##n ##o ##r ##l 한국 ##어 안녕 wor ##ld".split()
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *CONTINUED]
MERGES = ["t h", "th e", "Ġ t", "Ġt h", "Ġth e", "c a", "ca t", "Ġ c", "Ġc a", "Ġca t", "s a", "sa t", "o n", "l d"]
PIECES = (
    "▁ ▁the ▁cat ▁sat at ▁on ▁mat s e t h a c o n m l d r w i , . ! ' 1 2 3 ▁a ▁b 한국 ▁안녕 어 wor ▁wor ld".split()
)
# Marian's two languages. Of the target's pieces the vocabulary lacks "▁Matte", and the source knows no "ß" but it.
TARGET_PIECES = "▁ ▁die ▁katze ▁saß ▁auf ▁der ▁Matte s ß t h a e n m d r k z u , . ! 1 2".split()
# A normalization as SentencePiece 0.2 compiled it (--normalization_rule_tsv), compressed by zlib: A, T, Á and A with
# U+0301 to small letters, e and o with their marks to one letter, ½ and ﬁ to several, tab and line end to a blank,
# U+200B to nothing.
CHARSMAP = zlib.decompress(
    base64.b64decode(
        "eNol03mQ13MYB/Dn91N/bIYx0wxbSCqsSLubZWO7nJMr5SjHsBHamm1RulR+y2LZnEUHxVJRlnJtOVblF/pjdZGjUG1r2ppKOZLb68t35jXv"
        "5/s8zx+fme/nG60iomNETk5Em9YRqYiMMlN5WMQR8nAaIx3Je9ukLk7HkbLabgOHqDN56agx92Tqcu3qH6o+SsNutCOXo2nPsRzDcXTg+P+P"
        "EJ3pxAl04SRO5GTyOIWudONUunMaBeTTg0KKOJ0zOYOeFHM2Z9GLEvrQm3705VzO4XzO40IuoH+yU5SKi+VFXMolDOAyBnI5VzCIq7iSwVzN"
        "NQzhOq5NZuWpuF7eyA0MpZSbuYlbGMZtVGTSUSaHM5IRlCc789JRIUdxB7czmju5izGMYywTGM/dTGQyk7iHKVQmH477uJf7qeJBHuAhqqnh"
        "YR5hKo/xKE/wONN4kqeYzgyeZhYzeYbZzOFZnmMutTzPi7zAfObxEgtYyMu8wiJepY7FvMbrLOFN3uBt3mIp9bzDMt7jXRp4n+V8wEpWkOVD"
        "PmIVn/AxjfmpWJ3MmlORLUnFp0mPtaxhPev4jA1s5HO+5Au+5is2s4lv+YYtfMc2trKdJr6nmR38UJqKnbIlmbWkYpfcw+5kxl72s4+f+JFf"
        "+JlfOcBvHOQPfucv/uQf/o7/fr6CpsqqQhfx1jI3J1sb2YWRrY9/AfDNlzA="
    )
)
MASK = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}


def _message(number, data):
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def sentencepiece_file(pieces, algorithm=1, unknown=0, byte_fallback=False, charsmap=None):
    """The bytes of a ``.model`` file of ``(text, score, type)``; types: 1 text, 2 unknown, 3 control, 6 byte."""
    data = b""
    for text, score, kind in pieces:
        piece = _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
        data += _message(1, piece)
    trainer = b"\x18" + _varint(algorithm) + _varint(35 << 3) + _varint(int(byte_fallback))
    trainer += _varint(40 << 3) + _varint(unknown) + _message(45, b"<unk>")
    normalizer = _message(1, b"identity") + b"\x18\x01\x20\x00"
    if charsmap is not None:  # which trims blanks too, as every published model
        normalizer = _message(1, b"own") + _message(2, charsmap) + b"\x18\x01\x20\x01"
    return data + _message(2, trainer) + _message(3, normalizer)


def _unigram(special):
    control = [(token, 0.0, 2 if token == "<unk>" else 3) for token in special]
    scored = [(piece, -2.0 - 0.25 * (i % 7) - 1.5 / len(piece), 1) for i, piece in enumerate(PIECES)]
    return sentencepiece_file([*control, *scored], unknown=special.index("<unk>"))


def _side(pieces, own=()):
    control = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((text, 0.0, 4) for text in own)]
    scored = [(piece, -2.0 - 0.25 * (i % 7) - 1.5 / len(piece), 1) for i, piece in enumerate(pieces)]
    return sentencepiece_file([*control, *scored], charsmap=CHARSMAP)


def _marian():
    pieces = [piece for piece in dict.fromkeys([*PIECES, *TARGET_PIECES]) if piece not in ("▁Matte", "wor")]
    tokens = ["</s>", "<unk>", ",", *(p for p in reversed(pieces) if p != ","), ">>deu<<", ">>fra<<", "<pad>"]
    return {
        "source.spm": _side(PIECES, own=["<x>"]),
        "target.spm": _side(TARGET_PIECES),
        "vocab.json": {token: i for i, token in enumerate(tokens)},
    }


def _bpe_pieces(special):
    control = [(token, 0.0, 2 if token == "<unk>" else 3) for token in special]
    raw = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    merged = "▁t th ▁th the ▁the ca cat ▁ca ▁cat sa sat ▁sat on ▁on 한국".split()
    singles = sorted(set("▁thecasonmldrwib,.!'한국"))
    texts = [*merged, *singles]
    return sentencepiece_file(
        [*control, *raw, *((text, -float(i), 1) for i, text in enumerate(texts))],
        algorithm=2,
        unknown=special.index("<unk>"),
        byte_fallback=True,
    )


def _byte_vocabulary(before, after):
    alphabet = byte_characters()
    tokens = [*before, *alphabet, *("".join(merge.split()) for merge in MERGES), *after]
    return {token: i for i, token in enumerate(tokens)}


def _word_vocabulary(special):
    letters = "abcdefghijklmnopqrstuvwxyz,.!?'<>[]/-123"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "th", "the</w>", "ca", "cat</w>"]
    return {token: i for i, token in enumerate([*special, *tokens])}


def _clip_vocabulary():
    alphabet = byte_characters()
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), "th", "the</w>", "ca", "cat</w>"]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


_WORD_MERGES = ["t h", "th e</w>", "c a", "ca t</w>"]


def files():
    """The files of each tiny tokenizer: what a file holds, by the tokenizer's and the file's name."""
    bert = {"vocab.txt": "\n".join(BERT_WORDS) + "\n"}
    merges = "#version: 0.2\n" + "\n".join(MERGES) + "\n"
    words = "#version: 0.2\n" + "\n".join(_WORD_MERGES) + "\n"
    roberta = _byte_vocabulary(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    tiny = {
        "bert": (bert, {"tokenizer_class": "BertTokenizer", "model_max_length": 12}),
        "bert_cased": (bert, {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "padding_side": "left"}),
        "roberta": (
            {"vocab.json": roberta, "merges.txt": merges},
            {"tokenizer_class": "RobertaTokenizer", "mask_token": {"__type": "AddedToken", **MASK}},
        ),
        "gpt2": (
            {"vocab.json": _byte_vocabulary([], ["<|endoftext|>"]), "merges.txt": merges},
            {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|endoftext|>", "truncation_side": "left"},
        ),
        "opt": (
            {"vocab.json": roberta, "merges.txt": merges},
            {
                "tokenizer_class": "GPT2Tokenizer",
                "add_bos_token": True,
                "bos_token": "</s>",
                "eos_token": "</s>",
                "unk_token": "</s>",
                "pad_token": "<pad>",
            },
        ),
        "openai_gpt": (
            {"vocab.json": _word_vocabulary(["<unk>"]), "merges.txt": words},
            {"tokenizer_class": "OpenAIGPTTokenizer", "pad_token": "<unk>"},
        ),
        "clip": ({"vocab.json": _clip_vocabulary(), "merges.txt": words}, {"tokenizer_class": "CLIPTokenizer"}),
        "t5": ({"spiece.model": _unigram(["<pad>", "</s>", "<unk>"])}, {"tokenizer_class": "T5Tokenizer"}),
        "albert": (
            {"spiece.model": _unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"])},
            {
                "tokenizer_class": "AlbertTokenizer",
                "mask_token": {"__type": "AddedToken", **MASK, "content": "[MASK]", "lstrip": False},
            },
        ),
        "xlm_roberta": (
            {"sentencepiece.bpe.model": _unigram(["<unk>", "<s>", "</s>"])},
            {"tokenizer_class": "XLMRobertaTokenizer", "mask_token": {"__type": "AddedToken", **MASK}},
        ),
        "mbart": (
            {"sentencepiece.bpe.model": _unigram(["<unk>", "<s>", "</s>"])},
            {"tokenizer_class": "MBartTokenizer", "src_lang": "ko_KR", "tgt_lang": "de_DE"},
        ),
        "llama": (
            {"tokenizer.model": _bpe_pieces(["<unk>", "<s>", "</s>"])},
            {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "pad_token": "<unk>"},
        ),
        "marian": (_marian(), {"tokenizer_class": "MarianTokenizer", "source_lang": "eng", "target_lang": "deu"}),
        "byt5": ({}, {"tokenizer_class": "ByT5Tokenizer"}),
    }
    return {
        name: {
            file: value if isinstance(value, bytes) else value if isinstance(value, str) else json.dumps(value)
            for file, value in {**held, "tokenizer_config.json": config}.items()
        }
        for name, (held, config) in tiny.items()
    }


def write(name, folder):
    """Writes the files of the tiny tokenizer of that name into a folder, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files()[name].items():
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


TEXTS = [
    "the cat sat on the mat",
    "The cats, don't!",
    "hello wörld  한국어 안녕 123.",
    "two\nlines\tand  blanks in the middle",
    "x",
]
PAIRS = [["the cat", "sat on the mat"], ["a", "the cats sat on the mat. the cat!"], ["the mat the mat the mat", "b"]]
SPLIT = [["the", "cats", "don't", "sat"], ["한국어"], ["a", "b,c"]]
EXTRAS = {"return_special_tokens_mask": True, "return_offsets_mapping": True, "return_length": True}
CALLS = {
    "plain": {"text": TEXTS, **EXTRAS},
    "single": {"text": TEXTS[0]},
    "empty": {"text": [""]},
    "without_special_tokens": {"text": TEXTS, "add_special_tokens": False},
    "pairs": {"text": [a for a, _ in PAIRS], "text_pair": [b for _, b in PAIRS], **EXTRAS},
    "pairs_in_a_list": {"text": PAIRS},
    "one_pair": {"text": "the cat", "text_pair": "sat on"},
    "padded": {"text": TEXTS, "padding": True, **EXTRAS},
    "padded_left": {"text": TEXTS, "padding": "longest", "padding_side": "left", **EXTRAS},
    "padded_to_multiple": {"text": TEXTS, "padding": True, "pad_to_multiple_of": 8},
    "padded_to_length": {"text": TEXTS[:1], "padding": "max_length", "max_length": 40},
    "single_padded": {"text": "x", "padding": "max_length", "max_length": 6},
    "cut": {"text": TEXTS, "truncation": True, "max_length": 6, **EXTRAS},
    "cut_and_padded": {"text": TEXTS, "truncation": True, "max_length": 8, "padding": "max_length"},
    "cut_by_length_alone": {"text": TEXTS, "max_length": 7},
    "pairs_longest_first": {"text": PAIRS, "truncation": "longest_first", "max_length": 9, **EXTRAS},
    "pairs_only_first": {"text": [PAIRS[2]], "truncation": "only_first", "max_length": 10},
    "pairs_only_second": {"text": [PAIRS[1]], "truncation": "only_second", "max_length": 12},
    "overflow": {"text": TEXTS, "truncation": True, "max_length": 8, "return_overflowing_tokens": True, **EXTRAS},
    "overflow_stride": {
        "text": TEXTS,
        "truncation": True,
        "max_length": 8,
        "stride": 2,
        "return_overflowing_tokens": True,
        "padding": True,
        **EXTRAS,
    },
    "overflow_pairs": {
        "text": [PAIRS[1]],
        "truncation": "only_second",
        "max_length": 12,
        "stride": 2,
        "return_overflowing_tokens": True,
        **EXTRAS,
    },
    "words": {"text": SPLIT, "is_split_into_words": True, **EXTRAS},
    "single_words": {"text": SPLIT[0], "is_split_into_words": True},
    "languages": {
        "text": [
            ">>deu<< The cat sat  on the mat.",
            ">>fra<<the cat, world",
            ">>xyz<< a </s> >>deu<< b<pad>the <s> <x>1",
            " A\u0301 \u00bd \ufb01 e\u0301 \u00df\u200b\n o\u0308 ",
            "\u2581\u2581a \u2581 >>deu<< <<",
            ">>deu<<",
            "",
        ],
        "text_target": [
            "Die Katze saß auf der Matte.",
            ">>deu<< die katze, the cat",
            "<unk> die",
            "\u00bd",
            "\u2581",
            " der  Matte ",
            "",
        ],
    },
    "languages_cut": {"text": TEXTS, "text_target": TEXTS, "truncation": True, "max_length": 7},
    "words_bare": {"text": SPLIT, "is_split_into_words": True},
    "pairs_cut": {"text": PAIRS, "truncation": "longest_first", "max_length": 9},
}


def as_lists(value):
    """Arrays and tuples as lists, for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def run(tokenizer, call):
    """What a tokenizer, ours or PyTorch's, makes of a call; the name of the error's kind if it refuses."""
    arguments = {key: [tuple(p) for p in value] if value is PAIRS else value for key, value in call.items()}
    batch = tokenizer(**arguments, return_token_type_ids=True)
    out = {key: as_lists(value) for key, value in batch.items()}
    ids = out["input_ids"]
    rows = ids if ids and isinstance(ids[0], list) else [ids]
    if call in (CALLS["plain"], CALLS["single"], CALLS["languages"]):
        out["tokens"] = [tokenizer.convert_ids_to_tokens(row) for row in rows]
        out["decoded"] = [tokenizer.decode(row) for row in rows]
        out["decoded_without_special_tokens"] = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    if "return_length" in call:
        out["word_ids"] = [batch.word_ids(i) for i in range(len(rows))]
        out["sequence_ids"] = [batch.sequence_ids(i) for i in range(len(rows))]
    return out


def describe(tokenizer):
    """What does not depend on a text."""
    return {
        "len": len(tokenizer),
        "special_tokens": tokenizer.all_special_tokens[:7],
        "special_ids": tokenizer.all_special_ids[:7],
        "added": [tokenizer.num_special_tokens_to_add(), tokenizer.num_special_tokens_to_add(True)],
        "padding_side": tokenizer.padding_side,
    }


# How rows are cut and padded does not depend on the kind: three kinds have all the calls, the others these.
ALL_CALLS = tuple(call for call in CALLS if call not in ("languages", "languages_cut", "pairs_cut", "words_bare"))
IN_FULL = ("bert", "roberta", "gpt2")
SOME_CALLS = ("plain", "pairs", "single", "overflow_stride", "words")
# PyTorch's ByT5 and Marian are written in Python: they have no offsets, overflowing rows or words.
MARIAN_CALLS = (
    "single",
    "empty",
    "without_special_tokens",
    "one_pair",
    "languages",
    "languages_cut",
    "pairs_cut",
    "words_bare",
)
PLAIN_CALLS = ("single", "empty", "without_special_tokens", "one_pair", "cut_by_length_alone")


def calls_of(name):
    """The names of the calls of a tiny tokenizer."""
    own = {"byt5": PLAIN_CALLS, "marian": MARIAN_CALLS, **dict.fromkeys(IN_FULL, ALL_CALLS)}
    return own.get(name, SOME_CALLS)


def make(name, folder):
    """The golden values of the tiny tokenizer of that name."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write(name, folder))
    return {"about": describe(tokenizer), "calls": {call: run(tokenizer, CALLS[call]) for call in calls_of(name)}}


def main():
    """Writes the golden file."""
    with tempfile.TemporaryDirectory() as folder:
        golden = {name: make(name, Path(folder) / name) for name in sys.argv[1:] or files()}
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
        for name, value in golden.items()
    ]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
