"""``jaxformer predict``: every line has its line, whatever happens in between."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import jaxformer
from jaxformer.cli import run
from jaxformer.pipelines import predict as P
from jaxformer.pipelines import resumable
from jaxformer.pipelines.resumable import Done, _locked, about_path
from jaxformer.schema import UserError
from tests.pipelines import tiny
from tests.pipelines.cases import TEXTS, compare

BAD = ['{"text": \n', '{"txt": "rain"}\n', "\n", '{"text": 3}\n', '{"text": "a\\ud83d"}\n', "[1]\n", "\xff\n"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"), "classes")


@pytest.fixture(scope="module")
def pipe(model):
    return jaxformer.pipeline(model=str(model), batch_size=2)


def text_of(number):
    return " ".join(TEXTS[number % len(TEXTS)].split()[: number % 5 + 1])


@pytest.fixture
def file(tmp_path):
    """200 lines; from line 40 on every twentieth is bad."""
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": text_of(n)}) + "\n" for n in range(200)]
    for place, number in enumerate(range(40, 180, 20)):
        lines[number] = BAD[place]
    path.write_bytes(b"".join(line.encode("latin-1") for line in lines))
    return path


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_for_each_line(pipe, file, tmp_path):
    done = P.predict(pipe, file, tmp_path / "out.jsonl")
    assert done == Done(200, len(BAD), 0)
    found = records(tmp_path / "out.jsonl")
    good = [number for number in range(200) if number not in range(40, 180, 20)]
    compare([found[number] for number in good], pipe([text_of(number) for number in good]), 1e-5)
    reasons = ["not JSON", "no column 'text'", "blank", "expected a text", "surrogate", "JSON list", "not UTF-8"]
    for number, reason in zip(range(40, 180, 20), reasons, strict=True):
        assert found[number].keys() == {"error"}
        assert found[number]["error"].startswith(f"line {number + 1}: ") and reason in found[number]["error"]


def test_a_file_that_has_grown_is_gone_on_with(pipe, file, tmp_path):
    P.predict(pipe, file, tmp_path / "out.jsonl")
    with file.open("a") as stream:
        stream.write('{"text": "rain fell"}\n')
    assert P.predict(pipe, file, tmp_path / "out.jsonl").lines == 201
    assert records(tmp_path / "out.jsonl")[-1] == pytest.approx(pipe("rain fell")[0], abs=1e-5)


def test_another_input_model_or_option_is_refused(pipe, model, file, tmp_path):
    out = tmp_path / "out.jsonl"
    P.predict(pipe, file, out)
    content = out.read_bytes()
    with pytest.raises(UserError, match=r"begun with other settings: options .*'top_k': 2.*; expected the same"):
        P.predict(jaxformer.pipeline(model=str(model), top_k=2), file, out)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "rain"}\n')
    with pytest.raises(UserError, match=r"begun with other settings: file .*, the first lines of the file"):
        P.predict(pipe, other, out)
    os.utime(model / "model.safetensors", (1, 1))
    with pytest.raises(UserError, match="begun with other settings: model_files; expected the same"):
        P.predict(pipe, file, out)
    about_path(out).unlink()
    with pytest.raises(UserError, match="exists and was not begun by this command"):
        P.predict(pipe, file, out)
    assert out.read_bytes() == content
    with _locked(out), pytest.raises(UserError, match="is being written by another process"):
        P.predict(pipe, file, out)


@pytest.mark.parametrize("name", ["in.txt", "in.csv", "in.tsv.gz", "in.jsonl.gz"])
def test_kinds_of_files(pipe, name, tmp_path):
    content = {
        "in.txt": "rain fell\nbad\n",
        "in.csv": 'n,text\n1,rain fell\n2\n3,"bad"\n',
        "in.tsv.gz": "text\tn\nrain fell\t1\nbad\t2\n",
        "in.jsonl.gz": '"rain fell"\n{"text": "bad", "n": 1}',
    }[name].encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    done = P.predict(pipe, tmp_path / name, tmp_path / "out.jsonl")
    found = records(tmp_path / "out.jsonl")
    if name == "in.csv":
        assert found.pop(1) == {"error": "line 3: it has 1 fields, expected the header's 2"}
    assert done.errors == (name == "in.csv") and done.lines == len(found) + done.errors
    compare(found, pipe(["rain fell", "bad"]), 1e-5)


def test_memory_is_a_window(pipe, file, tmp_path, monkeypatch):
    """Lines are written before further ones are read."""
    seen, out = [], tmp_path / "out.jsonl"
    read = resumable.read_lines

    def watched(*arguments):
        for line in read(*arguments):
            seen.append((line.number, out.read_bytes().count(b"\n")))
            yield line

    monkeypatch.setattr(resumable, "read_lines", watched)
    P.predict(pipe, file, out)
    assert len(seen) == 200 and pipe.window_size == 64
    assert max(number - written for number, written in seen) == pipe.window_size


def test_the_command(model, file, tmp_path, capsys):
    def call(*more, out="out.jsonl"):
        return run("predict", ["--model", str(model), "--file", str(file), "--out", str(tmp_path / out), *more])

    assert call("--task", "text-classification", "top_k=2", "--batch-size", "16") == 1
    assert "7 of 200 lines failed" in capsys.readouterr().out
    assert [len(record["output"]) for record in records(tmp_path / "out.jsonl") if "output" in record] == [2] * 193
    assert call("--text-column", "sentence", out="x.jsonl") == 2
    assert "line 1: there is no column 'sentence', only text; --text-column" in capsys.readouterr().err
    assert call("top_k") == 2 and "expected key=value" in capsys.readouterr().err
    assert call("topk=2") == 2 and "did you mean top_k?" in capsys.readouterr().err
    assert call("--task", "text-clasification") == 2 and "did you mean text-classification?" in capsys.readouterr().err
    assert call("--task", "ner") == 2
    said = capsys.readouterr().err
    assert "has no trained head token_classification" in said and "can do: text-classification, zero-shot" in said
    assert not (tmp_path / "nothing").exists() and call(out="nothing/out.jsonl") == 2
    assert "folder of" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_a_process_is_stopped_and_gone_on_with(model, tmp_path, how):
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"text": text_of(n)}) + "\n" for n in range(30_000)))
    code = "import sys; from jaxformer.cli import main; main()"
    command = [sys.executable, "-c", code, "predict", "--model", str(model), "--file", str(file), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not out.exists() or out.stat().st_size < 20_000:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(getattr(signal, how))
    said, code = process.communicate(timeout=60)[0], process.returncode
    assert code == {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}[how]
    assert how == "SIGKILL" or "run the same command to resume" in said
    begun = out.read_bytes().count(b"\n")
    assert 0 < begun < 30_000
    assert "were there already; written" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pipe = jaxformer.pipeline(model=str(model))
    compare(records(out), pipe([text_of(n) for n in range(30_000)]), 1e-5)
