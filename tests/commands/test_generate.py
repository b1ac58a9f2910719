"""``jaxformer generate``: the texts of the pipeline, as they are written; what a user may get wrong."""

import io
import sys

import pytest

import jaxformer
from jaxformer.cli import run
from tests.pipelines import tiny

GREEDY = ["do_sample=false", "max_new_tokens=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.save(tmp_path_factory.mktemp("writes"), "writes"))


@pytest.fixture(scope="module")
def pipe(folder):
    return jaxformer.pipeline(model=folder, do_sample=False, max_new_tokens=8)


def written(pipe, inputs):
    return pipe(inputs, return_full_text=False)[0]["generated_text"]


class Keyboard(io.StringIO):
    def isatty(self):
        return True


def test_a_prompt(folder, pipe, capsys, monkeypatch):
    assert run("generate", ["--model", folder, "--plain", "--prompt", "the old mill", *GREEDY]) == 0
    plain = capsys.readouterr().out
    assert plain == written(pipe, "the old mill") + "\n"
    assert run("generate", ["--model", folder, "--prompt", "the old mill", *GREEDY]) == 0
    chat = capsys.readouterr().out  # the tokenizer has a chat template
    assert chat == written(pipe, [{"role": "user", "content": "the old mill"}]) + "\n" != plain
    monkeypatch.setattr(sys, "stdin", io.StringIO("the old mill"))
    assert run("generate", ["--model", folder, "--plain", *GREEDY]) == 0
    assert capsys.readouterr().out == plain


def test_a_file_of_prompts(folder, pipe, capsys, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "by a river"}\nnothing\n{"text": "Ann said"}\n')
    assert run("generate", ["--model", folder, "--plain", "--file", str(file), *GREEDY]) == 1
    said = capsys.readouterr()
    assert said.out == written(pipe, "by a river") + "\n\n\n" + written(pipe, "Ann said") + "\n"
    assert said.err.startswith("error: line 2: it is not JSON") and said.err.count("\n") == 1


def test_a_conversation_remembers(folder, pipe, capsys, monkeypatch):
    lines = iter(["good", "", "bad"])

    def typed(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(sys, "stdin", Keyboard())
    monkeypatch.setattr("builtins.input", typed)
    assert run("generate", ["--model", folder, "--system", "work", *GREEDY]) == 0
    said = [{"role": "system", "content": "work"}, {"role": "user", "content": "good"}]
    first = written(pipe, said)
    second = written(pipe, [*said, {"role": "assistant", "content": first}, {"role": "user", "content": "bad"}])
    assert capsys.readouterr().out == f"{first}\n{second}\n\n"


def test_beams_and_encoder_decoders(tmp_path, capsys):
    folder = str(tiny.save(tmp_path, "rewrites"))
    expected = jaxformer.pipeline(model=folder, max_new_tokens=8)("the rain")[0]["generated_text"]
    assert run("generate", ["--model", folder, "--prompt", "the rain", "max_new_tokens=8"]) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_what_a_model_writes_does_not_steer_the_terminal():
    from jaxformer.commands.generate import harmless

    assert harmless("a\x1b[2Jb\x07\r\n\tc\x9b1m한") == "a�[2Jb��\n\tc�1m한"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "x", "--file", "y.txt"], "--prompt and --file are both given, expected one of them"),
        (["--file", "nothing.txt"], "no such file: nothing.txt"),
        (["--plain", "--system", "x", "--prompt", "x"], "--system is given without a chat template"),
        (["--prompt", "x", "temprature=1"], "has no option 'temprature'; did you mean temperature?"),
        (["--prompt", "x", "max_new_tokens=1000"], "1000 new tokens were asked of a model of 128"),
        (["--plain", "--prompt", "the " * 200], "expected room for at least one"),
    ],
)
def test_what_a_user_may_get_wrong(folder, options, message, capsys):
    assert run("generate", ["--model", folder, *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_model_that_writes_nothing(tmp_path, capsys):
    folder = str(tiny.save(tmp_path, "classes"))
    assert run("generate", ["--model", folder, "--prompt", "x"]) == 2
    assert "is a model for text-classification and generates no text" in capsys.readouterr().err
