import errno
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from filelock import FileLock

from jaxformer.data import DataConfig, Document, build_cache, open_corpus, token_cache
from jaxformer.data.corpus import Corpus
from jaxformer.schema import UserError
from jaxformer.tokenizers import TokenizerConfig, encode, find_special, load_tokenizer, train_tokenizer

EOS = 256


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TokenizerConfig(type="byte"), ["x"])


def corpus_of(*texts, complete=True, fingerprint="f"):
    documents = [Document(str(i), text, complete) for i, text in enumerate(texts)]
    return Corpus("hand-made", fingerprint, {"train": lambda: iter(documents)})


def test_documents_stand_one_behind_the_other_with_their_ends(tokenizer, tmp_path):
    built = build_cache(corpus_of("ab", "가", "c"), "train", tokenizer, tmp_path)
    assert built.tokens.tolist() == [97, 98, EOS, 0xEA, 0xB0, 0x80, EOS, 99, EOS]
    assert built.offsets.tolist() == [0, 3, 7, 9]
    assert (built.num_tokens, built.num_documents) == (9, 3)
    assert built.tokens.dtype == np.uint16
    assert built.offsets.dtype == np.int64
    assert isinstance(built.tokens, np.memmap)


def test_a_cut_document_has_no_end(tokenizer, tmp_path):
    built = build_cache(corpus_of("ab", complete=False), "train", tokenizer, tmp_path)
    assert built.tokens.tolist() == [97, 98]


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    vocab = {"<unk>": 0, "a": 70_000, "</s>": 1}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    built = build_cache(corpus_of("a"), "train", load_tokenizer(tmp_path), tmp_path)
    assert built.tokens.dtype == np.uint32
    assert built.tokens.tolist() == [70_000, 1]


def test_a_document_without_tokens_is_left_out(tmp_path):
    spec = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "[SEP]": 2}, "unk_token": "[UNK]"}
    words = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": spec}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    blank = load_tokenizer(tmp_path)
    built = build_cache(corpus_of("a", "  ", "a a"), "train", blank, tmp_path)
    assert built.tokens.tolist() == [1, 2, 1, 1, 2]
    assert built.offsets.tolist() == [0, 2, 5]
    with pytest.raises(UserError, match=r"the tokenizer makes no token of the train text of hand-made"):
        build_cache(corpus_of("  ", fingerprint="g"), "train", blank, tmp_path)


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
def test_long_documents_are_cut_where_it_does_not_show(monkeypatch, tmp_path, kind):
    text = "def f(x):\n    return  x\n\n\n\t# it's 한국어  텍스트 입니다 \r\n\r\n" * 60
    tokenizer = train_tokenizer(TokenizerConfig(type=kind, vocab_size=600), [text])
    monkeypatch.setattr(token_cache, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(token_cache, "CHUNK_CHARACTERS", 120)
    assert len(list(token_cache._pieces(Document("0", text)))) > 20
    built = build_cache(corpus_of(text, "b"), "train", tokenizer, tmp_path)
    whole = [*encode(tokenizer, text), find_special(tokenizer, "eos")]
    assert built.tokens[: len(whole)].tolist() == whole
    assert built.offsets.tolist() == [0, len(whole), built.num_tokens]


def test_text_without_blanks_is_cut_all_the_same(monkeypatch, tokenizer, tmp_path):
    monkeypatch.setattr(token_cache, "PIECE_CHARACTERS", 50)
    pieces = list(token_cache._pieces(Document("0", "가" * 1001)))
    assert max(len(piece.text) for piece in pieces) <= 100
    assert "".join(piece.text for piece in pieces) == "가" * 1001
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_progress_counts_documents_and_bytes(monkeypatch, tokenizer, tmp_path):
    monkeypatch.setattr(token_cache, "CHUNK_CHARACTERS", 3)
    calls = []
    build_cache(corpus_of("ab", "가", "c"), "train", tokenizer, tmp_path, lambda *done: calls.append(done))
    assert calls == [(2, 5), (3, 6)]


def test_a_cache_is_built_once(tokenizer, tmp_path, monkeypatch):
    first = build_cache(corpus_of("ab"), "train", tokenizer, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_build", lambda *args: pytest.fail("built again"))
        assert build_cache(corpus_of("ab"), "train", tokenizer, tmp_path).path == first.path
    other = train_tokenizer(TokenizerConfig(type="character"), ["ab"])
    paths = {
        first.path,
        build_cache(corpus_of("ab", fingerprint="g"), "train", tokenizer, tmp_path).path,
        build_cache(corpus_of("ab"), "train", other, tmp_path).path,
    }
    assert len(paths) == 3


@pytest.mark.parametrize(
    ("name", "damage"), [("tokens.bin", "truncate"), ("offsets.bin", "delete"), ("meta.json", "truncate")]
)
def test_a_damaged_cache_is_built_again(tokenizer, tmp_path, name, damage, caplog):
    built = build_cache(corpus_of("ab", "c"), "train", tokenizer, tmp_path)
    file = built.path / name
    del built
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert build_cache(corpus_of("ab", "c"), "train", tokenizer, tmp_path).tokens.tolist() == [97, 98, EOS, 99, EOS]
    assert "is damaged: building it again" in caplog.text


def test_a_failed_build_leaves_nothing(tokenizer, tmp_path):
    def documents():
        yield Document("0", "ab")
        raise UserError("line 2 is broken")

    with pytest.raises(UserError, match=r"line 2 is broken"):
        build_cache(Corpus("c", "f", {"train": documents}), "train", tokenizer, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_full_disk_is_told(tokenizer, tmp_path, monkeypatch):
    def encode(tokenizer, texts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_cache, "encode_batch", encode)
    with pytest.raises(UserError, match=r"cannot write the token cache in .*: disk full; make room, or set data.cache"):
        build_cache(corpus_of("ab"), "train", tokenizer, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_folder_that_cannot_be_written(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the token cache in .*: Not a directory; set data.cache_dir"):
        build_cache(corpus_of("ab"), "train", tokenizer, tmp_path / "file/sub")


def test_what_killed_builders_left_is_removed(tokenizer, tmp_path):
    for name in ("abandoned", "building"):
        (tmp_path / f"{name}.tmp").mkdir()
        (tmp_path / f"{name}.tmp/tokens.bin").write_text("half")
    with FileLock(tmp_path / "building.lock"):
        build_cache(corpus_of("ab"), "train", tokenizer, tmp_path)
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["building.tmp"]


# Builds the cache of a folder of text, slowly; prints when it has begun, and what it got.
BUILDER = """
import logging, sys, time
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from jaxformer.data import DataConfig, build_cache, open_corpus, token_cache
from jaxformer.tokenizers import TokenizerConfig, train_tokenizer
folder, caches, pause = sys.argv[1:]
token_cache.CHUNK_CHARACTERS = 1000
def progress(documents, size):
    print("building", flush=True)
    time.sleep(float(pause))
corpus = open_corpus(DataConfig(path=folder, validation_fraction=0, cache_dir=caches))
tokenizer = train_tokenizer(TokenizerConfig(type="byte"), ["x"])
print("ready", flush=True)
sys.stdin.readline()
built = build_cache(corpus, "train", tokenizer, caches, progress)
print("sum", int(built.tokens.astype("int64").sum()), built.num_documents, flush=True)
"""


def start(folder, caches, pause):
    command = [sys.executable, "-c", BUILDER, str(folder), str(caches), str(pause)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.txt").write_text(f"document {i} " * 100)
    return folder


def expected_sum(folder):
    texts = [path.read_bytes() for path in folder.iterdir()]
    return f"sum {sum(map(sum, texts)) + EOS * len(texts)} {len(texts)}"


def expect_line(process, text):
    """Reads up to a line; some versions of Grain print one of their own when they are imported."""
    assert any(line == f"{text}\n" for line in iter(process.stdout.readline, ""))


@pytest.mark.slow
def test_two_processes_build_one_cache(folder, tmp_path):
    processes = [start(folder, tmp_path / "cache", 0.1) for _ in range(2)]
    for process in processes:
        expect_line(process, "ready")
    outputs = [process.communicate("go\n", timeout=60)[0].splitlines() for process in reversed(processes)]
    assert [output[-1] for output in outputs] == [expected_sum(folder)] * 2
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_one_builds_while_another_waits_and_a_kill_frees_the_lock(folder, tmp_path, tokenizer):
    caches = tmp_path / "cache"
    killed, waiting = start(folder, caches, 60), start(folder, caches, 0)
    killed.stdin.write("go\n")
    killed.stdin.flush()
    expect_line(killed, "ready")
    expect_line(killed, "building")
    expect_line(waiting, "ready")
    waiting.stdin.write("go\n")
    waiting.stdin.flush()
    assert waiting.stdout.readline().startswith("another process is building the token cache")
    time.sleep(0.2)
    assert waiting.poll() is None
    assert len(list(caches.glob("*.tmp"))) == 1
    killed.send_signal(signal.SIGKILL)
    assert waiting.communicate(timeout=60)[0].splitlines()[-1] == expected_sum(folder)
    killed.communicate(timeout=60)
    assert not list(caches.glob("*.tmp"))
    corpus = open_corpus(DataConfig(path=str(folder), validation_fraction=0))
    built = build_cache(corpus, "train", tokenizer, caches, lambda *done: pytest.fail("built again"))
    assert f"sum {int(built.tokens.astype(int).sum())} {built.num_documents}" == expected_sum(folder)
