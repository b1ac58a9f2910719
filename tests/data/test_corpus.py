import json
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from jaxformer.data import DataConfig, formats, open_corpus, sources
from jaxformer.data.formats import Document
from jaxformer.schema import UserError


@pytest.fixture(autouse=True)
def private_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


@pytest.fixture
def folder(tmp_path):
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"text {i}")
    (tmp_path / "empty.txt").write_text("")
    return tmp_path


def open_path(path, **settings):
    return open_corpus(DataConfig(path=str(path), **settings))


def texts(corpus_, split):
    return [document.text for document in corpus_.documents(split)]


def test_hash_split_takes_whole_documents_by_name(folder):
    opened = open_path(folder, validation_fraction=0.3)
    train, validation = (list(opened.documents(split)) for split in ("train", "validation"))
    everything = [Document(f"{i:02}.txt", f"text {i}") for i in range(40)]
    assert sorted(train + validation) == everything
    # Those whose sha256, by the command sha256sum, begins with less than 0x4ccc, which is 0.3 * 0x10000.
    expected = [5, 6, 8, 18, 20, 24, 27, 28, 34, 39]
    assert [document.name for document in validation] == [f"{i:02}.txt" for i in expected]
    assert all(document.complete for document in train + validation)
    assert list(opened.documents("train")) == train


def test_a_new_document_moves_no_other_across_the_split(folder):
    before = texts(open_path(folder, validation_fraction=0.3), "validation")
    (folder / "0000.txt").write_text("new")
    after = texts(open_path(folder, validation_fraction=0.3), "validation")
    assert [text for text in after if text != "new"] == before


def test_tail_split_cuts_the_one_document(tmp_path):
    (tmp_path / "input.txt").write_text("0123456789" * 10 + "가나다라마")
    for split in ("auto", "tail"):
        opened = open_path(tmp_path / "input.txt", validation_fraction=0.1, split=split)
        assert texts(opened, "train") == ["0123456789" * 9 + "0123"]
        assert texts(opened, "validation") == ["456789가나다라마"]
        assert not any(document.complete for document in opened.documents("train"))


def test_tail_split_of_several_documents_is_refused(folder):
    with pytest.raises(UserError, match=r"'tail', which cuts one document in two, but .* has several: use 'hash'"):
        open_path(folder, split="tail")


def test_a_validation_path_is_all_of_validation(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "dev.txt"
    other.write_text("other")
    opened = open_path(folder, validation_path=str(other))
    assert texts(opened, "validation") == ["other"]
    assert len(texts(opened, "train")) == 40


def test_no_validation(folder):
    opened = open_path(folder, validation_fraction=0)
    assert "validation" not in opened.readers
    assert len(texts(opened, "train")) == 40
    with pytest.raises(UserError, match=r"no text for validation in .*: raise data.validation_fraction or set"):
        texts(opened, "validation")


def test_nothing_in_a_split(tmp_path):
    (tmp_path / "a.txt").write_text("only one")
    opened = open_path(tmp_path, split="hash", validation_fraction=0.001)
    assert texts(opened, "train") == ["only one"]
    with pytest.raises(UserError, match=r"no text for validation"):
        texts(opened, "validation")
    with pytest.raises(UserError, match=r"no text to train on in .*: check data.path, or lower"):
        texts(open_path(tmp_path, split="hash", validation_fraction=0.999), "train")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"no text to train on"):
        texts(open_path(tmp_path), "train")


def write_rows(path):
    path.write_text("\n".join(json.dumps({"text": f"row {i}", "body": f"body {i}"}) for i in range(20)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_the_kind_is_told_by_the_suffix(tmp_path, name):
    rows = [f"row {i}" for i in range(20)]
    if name == "a.parquet":
        pq.write_table(pa.table({"text": rows}), tmp_path / name)
    elif name == "a.csv":
        (tmp_path / name).write_text("text\n" + "\n".join(rows))
    else:
        write_rows(tmp_path / name)
    for path in (tmp_path / name, tmp_path):
        opened = open_path(path, validation_fraction=0.3)
        assert sorted(texts(opened, "train") + texts(opened, "validation")) == sorted(rows)


def test_a_kind_that_cannot_be_told(tmp_path):
    write_rows(tmp_path / "a.jsonl")
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(UserError, match=r"cannot tell the kind of .*a.xyz by its suffix: set data.source"):
        open_path(tmp_path / "a.xyz")
    assert texts(open_path(tmp_path / "a.xyz", source="text", validation_fraction=0), "train") == ["x"]
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(UserError, match=r"files of several kinds \(json, text\): set data.source to one of them"):
        open_path(tmp_path)
    assert texts(open_path(tmp_path, source="text", validation_fraction=0), "train") == ["x"]


def test_settings_that_do_not_go_together(tmp_path):
    with pytest.raises(UserError, match=r"data.source is 'json' but data.path is not set"):
        open_corpus(DataConfig(source="json"))
    with pytest.raises(UserError, match=r"'python_stdlib', which takes no data.path, but got 'x'"):
        open_path("x", source="python_stdlib")
    with pytest.raises(UserError, match=r"data.validation_path is set but data.path is not"):
        open_corpus(DataConfig(validation_path="x"))
    with pytest.raises(ValidationError, match=r"less than 1"):
        DataConfig(validation_fraction=1.0)


def test_the_fingerprint_is_of_the_text_and_its_split(folder, tmp_path_factory):
    first = open_path(folder).fingerprint
    os.utime(folder / "00.txt", (1, 1))
    assert open_path(folder, num_threads=0, layout="stream", split="hash").fingerprint == first
    assert open_path(folder, text_column="body").fingerprint == first  # text has no columns
    moved = tmp_path_factory.mktemp("other") / "moved"
    folder.rename(moved)
    assert open_path(moved).fingerprint == first
    prints = {
        first,
        open_path(moved, validation_fraction=0.1).fingerprint,
        open_path(moved, validation_fraction=0).fingerprint,
        open_path(moved, validation_path=str(moved / "00.txt")).fingerprint,
    }
    (moved / "00.txt").write_text("text O")
    prints.add(open_path(moved).fingerprint)
    (moved / "00.txt").rename(moved / "000.txt")
    prints.add(open_path(moved).fingerprint)
    assert len(prints) == 6


def test_the_column_is_part_of_the_fingerprint(tmp_path):
    write_rows(tmp_path / "a.jsonl")
    assert open_path(tmp_path).fingerprint != open_path(tmp_path, text_column="body").fingerprint


def test_the_default_corpus_is_the_standard_library():
    opened = open_corpus(DataConfig())
    assert opened.name.startswith("the standard library of Python 3.")
    sizes = {split: sum(len(d.text) for d in opened.documents(split)) for split in ("train", "validation")}
    assert sizes["train"] > 3_000_000
    assert 0.01 < sizes["validation"] / sizes["train"] < 0.15


def test_no_standard_library(monkeypatch, tmp_path):
    monkeypatch.setattr(formats.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"standard library is not there as source files: set data.path"):
        open_corpus(DataConfig())


def dataset(*rows):
    return datasets.Dataset.from_dict({"text": list(rows)})


def test_a_dataset_saved_to_disk(tmp_path):
    dataset(*(f"row {i}" for i in range(30)), "").save_to_disk(tmp_path / "one")
    opened = open_path(tmp_path / "one", validation_fraction=0.3)
    assert sorted(texts(opened, "train") + texts(opened, "validation")) == sorted(f"row {i}" for i in range(30))
    assert texts(opened, "validation")
    with pytest.raises(UserError, match=r"one has no column 'body', only text: set data.text_column"):
        open_path(tmp_path / "one", text_column="body")


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_dataset_with_its_own_validation(tmp_path, name):
    parts = {"train": dataset("a", "b"), name: dataset("c")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    opened = open_path(tmp_path / "both")
    assert (texts(opened, "train"), texts(opened, "validation")) == (["a", "b"], ["c"])
    parts[name] = dataset("d")
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "other")
    assert open_path(tmp_path / "other").fingerprint != opened.fingerprint
    dataset("e").save_to_disk(tmp_path / "third")
    assert texts(open_path(tmp_path / "both", validation_path=str(tmp_path / "third")), "validation") == ["e"]


def test_load_dataset_with_a_configuration(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("first", "second"):
        (tmp_path / f"data/{name}.jsonl").write_text(json.dumps({"text": name}))
    configs = "".join(f"- config_name: {name}\n  data_files: data/{name}.jsonl\n" for name in ("first", "second"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    opened = open_path(f"{tmp_path}:second", source="huggingface", validation_fraction=0)
    assert texts(opened, "train") == ["second"]


def test_datasets_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match=r"cannot open .*none as a Hugging Face dataset: "):
        open_path(tmp_path / "none", source="huggingface")
    datasets.DatasetDict({"unsplit": dataset("a")}).save_to_disk(tmp_path / "odd")
    with pytest.raises(UserError, match=r"has no split 'train', only unsplit"):
        open_path(tmp_path / "odd")


def test_a_dataset_in_memory_is_known_by_its_text():
    def identity(*rows):
        data = dataset(*rows)
        source = sources._dataset(data, "x", DataConfig(), "documents")
        return source.identity

    assert identity("a", "b") == identity("a", "b") != identity("ab")


def test_where_caches_lie(monkeypatch):
    assert str(DataConfig(cache_dir="/here").cache_folder) == "/here"
    monkeypatch.setenv("JAXFORMER_CACHE", "/there")
    assert str(DataConfig().cache_folder) == "/there"
    monkeypatch.delenv("JAXFORMER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(DataConfig().cache_folder) == "/xdg/jaxformer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(DataConfig().cache_folder) == "/home/me/.cache/jaxformer"


def test_several_paths_are_one_corpus(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "00.txt").write_text("another 00")
    opened = open_path(folder, validation_fraction=0).fingerprint
    assert open_corpus(DataConfig(path=[str(folder)], validation_fraction=0)).fingerprint == opened
    both = open_corpus(DataConfig(path=[str(other), str(folder / "0[01].txt")], validation_fraction=0))
    assert [(d.name, d.text) for d in both.documents("train")] == [
        ("0/00.txt", "another 00"),
        ("1/00.txt", "text 0"),
        ("1/01.txt", "text 1"),
    ]
    validated = open_corpus(DataConfig(path=str(folder), validation_path=[str(other), str(folder / "03.txt")]))
    assert texts(validated, "validation") == ["another 00", "text 3"]
    with pytest.raises(UserError, match=r"01.txt is found under several of the paths .*: expected each file once"):
        open_corpus(DataConfig(path=[str(folder), str(folder / "01.txt")]))
    with pytest.raises(ValidationError, match="is an empty list"):
        DataConfig(path=[])


def test_several_columns_are_documents_of_their_own(tmp_path):
    rows = [{"a": f"a{i}", "b": f"b{i}"} for i in range(30)] + [{"b": "only b", "a": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    opened = open_path(tmp_path / "a.jsonl", text_column=["a", "b"], validation_fraction=0.3)
    train, validation = (list(opened.documents(split)) for split in ("train", "validation"))
    assert len(train) + len(validation) == 61
    assert {d.row for d in train}.isdisjoint(d.row for d in validation), "a row is not divided"
    first = next(d for d in train + validation if d.text == "b0")
    assert (first.name, first.row) == ("a.jsonl:1:b", "a.jsonl:1")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('\n{"c": "x"}')
    with pytest.raises(UserError, match=r"a.jsonl, line 32 has no column 'a' or 'b', only c: set data.text_column"):
        texts(open_path(tmp_path / "a.jsonl", text_column=["a", "b"], split="hash"), "train")
    (tmp_path / "b.jsonl").write_text('{"a": null, "b": null}')
    with pytest.raises(UserError, match=r"b.jsonl, line 1: expected text in one of the columns a, b, all hold null"):
        texts(open_path(tmp_path / "b.jsonl", text_column=["a", "b"], split="hash"), "train")


def test_so_many_documents_are_drawn(folder):
    opened = open_path(folder, validation_fraction=0, max_examples=4, sample_seed=7)
    chosen = sorted(np.random.default_rng(7).permutation(40)[:4].tolist())
    assert texts(opened, "train") == [f"text {i}" for i in chosen]
    assert texts(open_path(folder, validation_fraction=0, max_examples=99), "train") == [f"text {i}" for i in range(40)]
    other = open_path(folder, validation_fraction=0, max_examples=4, sample_seed=8)
    assert len({opened.fingerprint, other.fingerprint, open_path(folder, validation_fraction=0).fingerprint}) == 3


def test_several_datasets_are_one_corpus(tmp_path):
    datasets.DatasetDict({"train": dataset("a"), "validation": dataset("v")}).save_to_disk(tmp_path / "one")
    dataset("b", "c").save_to_disk(tmp_path / "two")
    (tmp_path / "three.txt").write_text("d")
    paths = [str(tmp_path / name) for name in ("one", "two", "three.txt")]
    opened = open_corpus(DataConfig(path=paths[:2]))
    assert (texts(opened, "train"), texts(opened, "validation")) == (["a", "b", "c"], ["v"])
    with pytest.raises(UserError, match=r"data.path mixes saved datasets with other files: .*; give one kind"):
        open_corpus(DataConfig(path=paths))
