import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxformer.data import formats
from jaxformer.data.files import NamedFile
from jaxformer.schema import UserError


def read(kind, path, column="text"):
    return [(d.name, d.text) for d in formats.READERS[kind](NamedFile(path.name, path), column)]


def test_text_keeps_its_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes("한\r\nb\n\n".encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("가".encode()))
    assert read("text", tmp_path / "a.txt") == [("a.txt", "한\r\nb\n\n")]
    assert read("text", tmp_path / "b.txt.gz") == [("b.txt.gz", "가")]


def test_json_lines(tmp_path):
    rows = [{"text": "하나", "n": 1}, {"n": 2, "text": "two\nlines"}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=row["n"] == 1) for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert read("json", tmp_path / name) == [(f"{name}:1", "하나"), (f"{name}:3", "two\nlines")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"a.jsonl, line 2: it is not JSON \(Expecting ',' delimiter.*\), expected one object a line"),
        (b"{}", "a.jsonl, line 2 has no column 'text', only none: set data.text_column"),
        (b'{"body": "", "id": 1}', "a.jsonl, line 2 has no column 'text', only body, id: set data.text_column"),
        (b'{"text": null}', "a.jsonl, line 2: column 'text' holds null, expected text"),
        (b'{"text": "\\ud83d"}', "a.jsonl, line 2: column 'text' is not Unicode text"),
        (b'{"text": "\xff"}', "a.jsonl, line 2: it is not UTF-8: byte 0xff at 10; convert"),
    ],
)
def test_bad_json_lines(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line)
    with pytest.raises(UserError, match=message):
        read("json", tmp_path / "a.jsonl")


def test_csv_and_tsv(tmp_path):
    long = "w" * 200_000
    (tmp_path / "a.csv").write_text(f'id,text\n1,"a, ""b""\nc"\n2,{long}\n')
    (tmp_path / "a.tsv").write_text("text\tid\na, b\t1\n")
    assert read("csv", tmp_path / "a.csv") == [("a.csv:1", 'a, "b"\nc'), ("a.csv:2", long)]
    assert read("csv", tmp_path / "a.tsv") == [("a.tsv:1", "a, b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,body\n1,a\n", "a.csv, line 2 has no column 'text', only id, body"),
        ("id,text\n1,a\n2\n", "a.csv, line 3: it has 1 fields, expected the header's 2"),
        ('id,text\n1,"a"b\n', "a.csv, line 2: it is not CSV"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read("csv", tmp_path / "a.csv")


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"글 {i}" for i in range(3000)]
    pq.write_table(pa.table({"id": range(3000), "text": texts}), path, row_group_size=700)
    assert read("parquet", path) == [(f"a.parquet:{i + 1}", text) for i, text in enumerate(texts)]
    with pytest.raises(UserError, match=r"a.parquet has no column 'body', only id, text"):
        read("parquet", path, "body")
    with pytest.raises(UserError, match=r"a.parquet, row 1: column 'id' holds int, expected text"):
        read("parquet", path, "id")
    path.write_text("no parquet")
    with pytest.raises(UserError, match=r"cannot read .*a.parquet as Parquet"):
        read("parquet", path)


def test_the_standard_library_is_the_same_everywhere():
    files = formats.stdlib_files()
    names = [file.name for file in files]
    assert names == sorted(names)
    assert {"json/decoder.py", "argparse.py", "asyncio/events.py"} <= set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert folders.isdisjoint({"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"})
    assert not [name for name in names if name.startswith(("_sysconfigdata", "config-")) or not name.endswith(".py")]


def test_only_the_standard_library_skips_what_is_not_utf8(tmp_path):
    (tmp_path / "a.py").write_bytes(b"# \xff")
    file = NamedFile("a.py", tmp_path / "a.py")
    assert list(formats.read_stdlib(file, "")) == []
    with pytest.raises(UserError, match=r"a.py is not UTF-8: byte 0xff at offset 2"):
        list(formats.read_text(file, ""))
