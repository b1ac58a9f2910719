import os
import subprocess
import sys

import pytest

from jaxformer.data.formats import Row
from jaxformer.schema import UserError
from jaxformer.tasks import records as R
from jaxformer.tokenizers import frame_of
from tests.tasks.tiny import CLS, FRAMED, PAD, SEP, bytes_of


def test_encoder_inputs_by_hand():
    one = R.encoder_input(frame_of(FRAMED), bytes_of("abc"), None, 4)
    assert one["input_ids"].tolist() == [CLS, 97, 98, SEP]
    assert one["token_type_ids"].tolist() == [0, 0, 0, 0]
    two = R.encoder_input(frame_of(FRAMED, pair=True), bytes_of("ab"), bytes_of("cde"), 7)
    assert two["input_ids"].tolist() == [CLS, 97, 98, SEP, 99, 100, SEP]
    assert two["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert R.encoder_fill(FRAMED) == {"input_ids": PAD, "token_type_ids": 0, "labels": -100}


def test_errors_name_file_and_line():
    row = Row({"text": 3, "null": None, "words": ["a", 1]}, "a.jsonl:4", "a.jsonl, line 4")
    with pytest.raises(UserError, match=r"a.jsonl, line 4 has no column 'body', only text, null, words: set task.key"):
        R.text(row, "body", "key")
    with pytest.raises(UserError, match=r"a.jsonl, line 4: column 'text' \(task.key\) holds int, expected text"):
        R.text(row, "text", "key")
    with pytest.raises(UserError, match=r"column 'null' \(task.key\) holds null, expected a value"):
        R.column(row, "null", "key")
    with pytest.raises(UserError, match=r"column 'words' \(task.key\) is \['a', 1\], expected a list of texts"):
        R.items(row, "words", "key")


def test_labels_are_sorted_as_numbers_if_they_are():
    assert R.find_labels(None, ["10", "9", "10"]) == ("9", "10")
    assert R.find_labels(None, ["b", "a", "10"]) == ("10", "a", "b")
    assert R.find_labels(["z", "a"], ["q"]) == ("z", "a")
    with pytest.raises(UserError, match=r"task.labels is \['a', 'a'\], expected each label once"):
        R.find_labels(["a", "a"], [])


def test_labels_of_one_number_have_one_order():
    code = (
        "from jaxformer.tasks.records import find_labels; print(find_labels(None, ['1', '01', '001', '2', '\u0661']))"
    )
    for seed in "0", "1":
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONUTF8": "1"}
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == "('001', '01', '1', '\u0661', '2')"
