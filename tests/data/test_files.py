import gzip
import os

import pytest

from jaxformer.data import files
from jaxformer.data.files import content_hash, decode, find_files, kind_of, reading
from jaxformer.schema import UserError


@pytest.fixture
def tree(tmp_path):
    for name in ["b.txt", "a/z.md", "a/c.txt.gz", "a/rows.jsonl", "a/photo.png", ".git/x.txt", "a/.hidden.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(path, kind=None):
    return [file.name for file in find_files(str(path), kind)]


def test_a_folder_is_searched_recursively_by_suffix_in_order(tree):
    assert names(tree, "text") == ["a/c.txt.gz", "a/z.md", "b.txt"]
    assert names(tree, "json") == ["a/rows.jsonl"]
    assert names(tree) == ["a/c.txt.gz", "a/rows.jsonl", "a/z.md", "b.txt"]


def test_a_file_and_a_glob_may_have_any_suffix(tree):
    assert names(tree / "a/photo.png", "text") == ["photo.png"]
    assert names(tree / "**/*.png", "text") == ["a/photo.png"]
    assert names(tree / "a/*.txt*") == ["c.txt.gz"]


def test_a_file_with_a_wildcard_in_its_name_is_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert names(tmp_path / "a[1].txt") == ["a[1].txt"]


def test_nothing_there(tree):
    with pytest.raises(UserError, match=r"no such file or folder: .*b.txtt; near names in .*: b.txt; .*'huggingface'"):
        find_files(str(tree / "b.txtt"), None)
    with pytest.raises(UserError, match=r"no such file or folder: .*; .* has no qqq"):
        find_files(str(tree / "qqq/b.txt"), None)
    with pytest.raises(UserError, match=r"\*.csv: no file matches this pattern"):
        find_files(str(tree / "*.csv"), None)
    with pytest.raises(UserError, match=r"holds no file that ends in .csv, .tsv; a glob such as"):
        find_files(str(tree), "csv")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.TXT", "text"),
        ("a.txt.gz", "text"),
        ("a.json", "json"),
        ("a.jsonl.gz", "json"),
        ("a.tsv", "csv"),
        ("a", None),
    ],
)
def test_kind_by_suffix(name, kind):
    assert kind_of(name) == kind


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    with pytest.raises(UserError, match=r"f.txt is not UTF-8: byte 0xff at offset 14; convert it"):
        decode(b"abc\xffdef", tmp_path / "f.txt", 11)
    assert decode(b"\xef\xbb\xbfabc", tmp_path / "f.txt") == "abc"


def test_gzip(tmp_path):
    whole = gzip.compress(os.urandom(100_000))
    (tmp_path / "cut.txt.gz").write_bytes(whole[:50_000])
    (tmp_path / "none.txt.gz").write_bytes(b"plain text")
    for name in ("cut.txt.gz", "none.txt.gz"):
        with pytest.raises(UserError, match=f"{name} is not a whole gzip file"), reading(tmp_path / name) as stream:
            stream.read()
    with pytest.raises(UserError, match=r"cannot read .*missing.txt: No such file"), reading(tmp_path / "missing.txt"):
        pass


@pytest.mark.parametrize("remembered_size", [0, 10**6])
def test_content_counts_and_dates_do_not(tmp_path, monkeypatch, remembered_size):
    monkeypatch.setattr(files, "REMEMBERED_SIZE", remembered_size)
    file, memory = tmp_path / "f.txt", tmp_path / "memory"
    file.write_text("one")
    first = content_hash(file, memory)
    os.utime(file, (1, 1))
    assert content_hash(file, memory) == first
    file.write_text("two")
    os.utime(file, (1, 1))
    assert content_hash(file, memory) != first


def test_a_large_file_is_hashed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "REMEMBERED_SIZE", 0)
    file, memory = tmp_path / "f.txt", tmp_path / "memory"
    file.write_text("one")
    first = content_hash(file, memory)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_hash_file", lambda path: pytest.fail("read again"))
        assert content_hash(file, memory) == first
    for note in memory.iterdir():
        note.write_text("{broken")
    assert content_hash(file, memory) == first
