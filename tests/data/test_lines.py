import csv

import pytest

from jaxformer.data.lines import BlankLineError, read_lines
from jaxformer.schema import UserError


def read(path, kind, content):
    path.write_bytes(content)
    lines = list(read_lines(path, kind))
    assert [line.row for line in lines] == list(range(1, len(lines) + 1))
    return lines


def test_a_bad_row_of_csv_is_an_error_in_its_place(tmp_path):
    content = b'\xef\xbb\xbfa,b,a\n1,"x\ny",2\n\n1,2\n"q"q,1,2\n\xff,1,2\n3,4,5\n'
    lines = read(tmp_path / "a.csv", "csv", content)
    assert [line.number for line in lines] == [3, 4, 5, 6, 7, 8]
    assert sum(line.size for line in lines) == len(content)
    first, blank, short, quoted, bytes_, last = (line.value for line in lines)
    assert first == {"a": "1", "b": "x\ny"} and last == {"a": "3", "b": "4"}, "the first of two columns of one name"
    assert isinstance(blank, BlankLineError)
    assert str(short) == "it has 2 fields, expected the header's 3"
    assert str(quoted).startswith("it is not CSV: ") and str(bytes_).startswith("it is not UTF-8: byte 0xff at 0")


def test_a_bad_header_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a.csv, line 1: it is not UTF-8: byte 0xff at 0"):
        read(tmp_path / "a.csv", "csv", b"\xff,a\n1,2\n")


def test_lines_of_text_and_json(tmp_path):
    assert [line.value for line in read(tmp_path / "a.txt", "text", b"\xef\xbb\xbfa\r\n\nb")] == ["a", "", "b"]
    text, row, blank = read(tmp_path / "a.jsonl", "json", b'"a"\n{"b": 1}\n\n')
    assert (text.value, row.value) == ("a", {"b": 1}) and isinstance(blank.value, BlankLineError)


# As NSMC, CoLA and tatoeba are written: quotes are text.
TSV = 'id\ttext\n1\t"a\n2\tb\n3\t"c" d\n4\te "f\n5\tg\n'


def test_quotes_are_text_in_tsv(tmp_path, caplog):
    lines = read(tmp_path / "a.tsv", "csv", TSV.encode())
    assert [line.value["text"] for line in lines] == ['"a', "b", '"c" d', 'e "f', "g"]
    assert [line.number for line in lines] == [2, 3, 4, 5, 6]
    (tmp_path / "a.tsv").write_text(TSV)
    with (tmp_path / "a.tsv").open(newline="") as stream:
        assert [line.value for line in lines] == list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert not caplog.records


def test_quoting_is_a_choice(tmp_path, caplog):
    quoted = b'text\tid\n"a\tb ""c"""\t1\nd\t"2"\n'
    (tmp_path / "a.tsv").write_bytes(quoted)
    found = [line.value for line in read_lines(tmp_path / "a.tsv", "csv", "double")]
    assert found == [{"text": 'a\tb "c"', "id": "1"}, {"text": "d", "id": "2"}]
    first, second = (line.value for line in read_lines(tmp_path / "a.tsv", "csv"))
    assert str(first).endswith(
        "(quotes are text here; if they enclose fields, set data.quoting (or --quoting) to double)"
    )
    assert second == {"text": "d", "id": '"2"'}
    assert "a.tsv: 1 of 2 rows have a field between double quotes" in caplog.text
    (tmp_path / "a.csv").write_bytes(b'text,id\n"a,1\nb,2\n')
    assert [line.value for line in read_lines(tmp_path / "a.csv", "csv", "none")] == [
        {"text": '"a', "id": "1"},
        {"text": "b", "id": "2"},
    ]
