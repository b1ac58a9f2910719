import hashlib
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxformer.data import DataConfig, open_records
from jaxformer.schema import UserError

ROWS = [{"text": f"row {i}", "label": i % 3} for i in range(40)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path / "a.jsonl"


def open_path(path, **settings):
    return open_records(DataConfig(path=str(path), **settings))


def test_rows_of_every_format(tmp_path, path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in ROWS))
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert open_path(path, validation_fraction=0).train == ROWS
    assert open_path(tmp_path / "a.parquet", validation_fraction=0).train == ROWS
    assert open_path(tmp_path / "saved", validation_fraction=0).train == ROWS
    of_csv = open_path(tmp_path / "a.csv", validation_fraction=0).train
    assert of_csv == [{"text": row["text"], "label": str(row["label"])} for row in ROWS], "CSV knows only text"
    assert (of_csv[1].name, of_csv[1].where) == ("a.csv:2", f"{tmp_path / 'a.csv'}, line 3")


def test_the_split_is_that_of_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    records = open_path(tmp_path / "a.jsonl", validation_fraction=0.3)
    apart = [hashlib.sha256(f"a.jsonl:{i + 1}".encode()).hexdigest() < "4ccccccd" for i in range(40)]
    assert records.validation == [row for row, is_apart in zip(ROWS, apart, strict=True) if is_apart]
    assert records.train == [row for row, is_apart in zip(ROWS, apart, strict=True) if not is_apart]
    assert 0 < len(records.validation) < 20


def test_validation_of_its_own(tmp_path, path):
    (tmp_path / "dev.jsonl").write_text('{"text": "dev", "label": 1}')
    records = open_path(path, validation_path=str(tmp_path / "dev.jsonl"))
    assert (len(records.train), records.validation) == (40, [{"text": "dev", "label": 1}])
    parts = {"train": datasets.Dataset.from_list(ROWS[:3]), "test": datasets.Dataset.from_list(ROWS[3:5])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert open_path(tmp_path / "both").validation == ROWS[3:5]
    assert open_path(path, validation_fraction=0).validation is None


def test_so_many_examples_drawn_with_a_seed_in_the_order_of_the_source(path):
    records = open_path(path, validation_fraction=0, max_examples=5)
    assert records.train == [ROWS[i] for i in sorted(np.random.default_rng(42).permutation(40)[:5])]
    assert len(open_path(path, validation_fraction=0, max_examples=50).train) == 40
    validated = open_path(path, validation_path=str(path), max_examples=5)
    assert (len(validated.train), len(validated.validation)) == (5, 40), "validation is whole"


def test_the_fingerprint(path):
    prints = {
        open_path(path).fingerprint,
        open_path(path, validation_fraction=0.1).fingerprint,
        open_path(path, max_examples=3).fingerprint,
        open_path(path, max_examples=3, sample_seed=1).fingerprint,
    }
    assert len(prints) == 4
    assert open_path(path, num_threads=0).fingerprint in prints


def test_what_is_refused(tmp_path, path):
    with pytest.raises(UserError, match=r"reads records, rows with columns, but data is of the kind 'python_stdlib'"):
        open_records(DataConfig())
    with pytest.raises(UserError, match=r"data.split is 'tail'.*use 'hash'"):
        open_path(path, split="tail")
    with pytest.raises(UserError, match=r"no record for validation in .*: raise data.validation_fraction"):
        open_path(path, validation_fraction=0.0001)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n[1]')
    with pytest.raises(UserError, match=r"bad.jsonl, line 2: it is a JSON list, expected one object a line"):
        open_path(tmp_path / "bad.jsonl")


def test_quoting_of_records_is_part_of_their_identity(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a\tx\nb"\ty\n')
    kept = open_path(tmp_path / "a.tsv", validation_fraction=0)
    assert kept.train == [{"text": '"a', "label": "x"}, {"text": 'b"', "label": "y"}]
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a"\tx\n')
    kept, quoted = (open_path(tmp_path / "a.tsv", validation_fraction=0, quoting=q) for q in ("auto", "double"))
    assert (kept.train[0]["text"], quoted.train[0]["text"]) == ('"a"', "a")
    assert kept.fingerprint != quoted.fingerprint
    with pytest.raises(UserError, match=r"data\.quoting is 'none', which is for CSV, but data is of the kind 'json'"):
        (tmp_path / "a.jsonl").write_text('{"text": "a"}')
        open_path(tmp_path / "a.jsonl", quoting="none")


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_names_of_classes_are_the_values(tmp_path, form):
    classes = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features(
        {
            "label": classes,
            "tags": datasets.Sequence(classes),
            "nested": {"deep": datasets.List({"one": classes})},
            "text": datasets.Value("string"),
        }
    )
    rows = [
        {"label": 1, "tags": [0, 1], "nested": {"deep": [{"one": 0}]}, "text": "a"},
        {"label": -1, "tags": [1, -1], "nested": {"deep": []}, "text": "b"},
        {"label": None, "tags": None, "nested": None, "text": "c"},
    ]
    data = datasets.Dataset.from_list(rows, features=features)
    if form == "saved":
        data.save_to_disk(tmp_path / "data")
    else:
        data.to_parquet(tmp_path / "data.parquet")
    records = open_path(tmp_path / ("data" if form == "saved" else "data.parquet"), validation_fraction=0)
    assert [row["label"] for row in records.train] == ["pos", None, None]
    assert records.train[0]["label"].number == 1, "for those who count"
    assert [row["tags"] for row in records.train] == [["neg", "pos"], ["pos", None], None]
    assert records.train[0]["nested"]["deep"] == [{"one": "neg"}]
