"""Judging with a client that stands for a server: orders, ties, rankings, models of two strengths, resuming."""

import json
from types import SimpleNamespace

import pytest

from jaxformer.cli import run
from jaxformer.evaluation import judge as module
from jaxformer.evaluation.judge import Judge, Settings, count, judge
from jaxformer.schema import UserError

openai = pytest.importorskip("openai")
URL = "http://nowhere.invalid/v1"


class Client:
    """Answers as ``says(question)`` does; it counts what it is asked."""

    def __init__(self, says, writes=lambda prompt, options: ["text"]):
        self.asked = []

        def chat(messages, **options):
            self.asked.append((messages, options))
            judges = "response_format" in options
            found = [says(messages[0]["content"])] if judges else writes(messages, options)
            return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text)) for text in found])

        def complete(prompt, **options):
            self.asked.append((prompt, options))
            return SimpleNamespace(choices=[SimpleNamespace(text=text) for text in writes(prompt, options)])

        self.chat = SimpleNamespace(completions=SimpleNamespace(create=chat))
        self.completions = SimpleNamespace(create=complete)


def answers_of(question):
    first = question.partition("[Answer A]\n")[2].partition("\n\n[Answer B]")[0]
    second = question.partition("[Answer B]\n")[2].partition("\n\nReply")[0]
    return first, second


def longer(question):
    first, second = answers_of(question)
    verdict = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return json.dumps({"verdict": verdict})


def write(tmp_path, rows):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def judged(tmp_path, rows, client, **settings):
    maker = Judge(Settings(URL, **settings), client)
    out = tmp_path / "out.jsonl"
    done = judge(maker, write(tmp_path, rows), out)
    return done, [json.loads(line) for line in out.read_text().splitlines()]


def test_both_orders_are_asked_and_only_what_holds_in_both_counts(tmp_path):
    def first(question):
        return '{"verdict": "A"}'

    rows = [{"prompt": "Why?", "completions": ["so", "because of that"]}]
    client = Client(longer)
    done, [row] = judged(tmp_path, rows, client, judge="j", rubric="Longer is better.")
    assert (row["chosen"], row["rejected"], row["points"], done.errors) == ("because of that", "so", [0.0, 2.0], 0)
    questions = [messages[0]["content"] for messages, _ in client.asked]
    assert [answers_of(question) for question in questions] == [("so", "because of that"), ("because of that", "so")]
    assert all(question.startswith("Longer is better.") and "Why?" in question for question in questions)
    assert all(options["temperature"] == 0 and options["model"] == "j" for _, options in client.asked)
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "out.jsonl.about.json").unlink()
    done, [row] = judged(tmp_path, rows, Client(first), judge="j")
    assert row["error"] == "line 1: the orders disagree" and row["points"] == [1.0, 1.0] and done.errors == 1
    assert count(tmp_path / "out.jsonl").disagreed == 1


def test_ties_nonsense_and_equal_answers_prefer_nothing(tmp_path):
    rows = [{"prompt": "a", "completions": ["xx", "yy"]}, {"prompt": "a", "completions": ["x", "x"]}]
    _, found = judged(tmp_path, rows, Client(longer), judge="j")
    assert [row["error"] for row in found] == [f"line {n}: no answer is better" for n in (1, 2)]
    maker = Judge(Settings(URL, judge="j"), Client(lambda question: "no JSON"))
    assert maker.verdict("a", "b", "c") == "tie"


def test_a_list_is_ranked_by_all_its_pairs(tmp_path):
    rows = [{"prompt": "a", "completions": ["xxx", "x", "xxxxx", "xx"]}]
    client = Client(longer)
    _, [row] = judged(tmp_path, rows, client, judge="j")
    assert row["points"] == [4.0, 0.0, 6.0, 2.0] and (row["chosen"], row["rejected"]) == ("xxxxx", "x")
    assert len(client.asked) == 12


def test_pairs_of_people_are_judged_and_counted(tmp_path):
    rows = [
        {"chosen": f"\n\nHuman: Hi\n\nAssistant: {good}", "rejected": f"\n\nHuman: Hi\n\nAssistant: {bad}"}
        for good, bad in (("hello there", "no"), ("hm", "what is it"), ("same", "four"))
    ]
    _, found = judged(tmp_path, rows, Client(longer), judge="j")
    assert found[0]["prompt"] == [{"role": "user", "content": "Hi"}]
    assert found[0]["chosen"] == [{"role": "assistant", "content": "hello there"}]
    counts = count(tmp_path / "out.jsonl")
    assert (counts.first, counts.second, counts.ties, counts.disagreed) == (1, 1, 1, 0)


def test_models_write_the_answers(tmp_path):
    def writes(prompt, options):
        return [f"{options['model']} {number} {'!' * number}" for number in range(options["n"])]

    client = Client(longer, writes)
    _, [row] = judged(tmp_path, [{"prompt": "a"}], client, models=("strong", "weak"), seed=3)
    assert (row["chosen"], row["rejected"]) == ("strong 0", "weak 0")
    assert [options["seed"] for _, options in client.asked] == [4, 4]
    for name in ("out.jsonl", "out.jsonl.about.json"):
        (tmp_path / name).unlink()
    _, [row] = judged(
        tmp_path,
        [{"messages": [{"role": "user", "content": "a"}]}],
        Client(longer, writes),
        models=("m",),
        n=3,
        judge="j",
    )
    assert row["chosen"][0]["content"] == "m 2 !!" and row["rejected"][0]["content"] == "m 0"


def test_it_is_resumed_and_bad_lines_and_servers_are_named(tmp_path, monkeypatch):
    rows = [{"prompt": f"q{n}", "completions": ["x" * (n + 1), "y"]} for n in range(40)] + [
        {"prompt": "a", "completions": ["x"]}
    ]
    file, out = write(tmp_path, rows), tmp_path / "out.jsonl"
    whole = judge(Judge(Settings(URL, judge="j"), Client(longer)), file, tmp_path / "whole.jsonl")
    assert whole.errors == 2  # "x" and "y" are equally long, and the last line has one answer
    judge(Judge(Settings(URL, judge="j"), Client(longer)), file, out)
    out.write_bytes(out.read_bytes()[:700])  # a process that was killed
    client = Client(longer)
    done = judge(Judge(Settings(URL, judge="j"), client), file, out)
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text() and 0 < done.earlier < 41
    assert "expected two or more texts" in out.read_text().splitlines()[-1]
    with pytest.raises(UserError, match="was begun with other settings: rubric"):
        judge(Judge(Settings(URL, judge="j", rubric="Other."), client), file, out)

    def fails(question):
        raise openai.OpenAIError("connection refused")

    one = write(tmp_path, rows[:1])
    judge(Judge(Settings(URL, judge="j"), Client(fails)), one, tmp_path / "failed.jsonl")
    assert "line 1: the server did not answer: connection refused" in (tmp_path / "failed.jsonl").read_text()


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        module,
        "need",
        lambda *names: SimpleNamespace(OpenAI=lambda **options: Client(longer), OpenAIError=openai.OpenAIError),
    )
    file = write(tmp_path, [{"prompt": "a", "completions": ["xx", "y"]}, {"prompt": "b", "completions": ["x", "yyy"]}])
    out = str(tmp_path / "out.jsonl")
    assert run("judge", ["--server", URL, "--judge", "j", "--file", str(file), "--out", out]) == 0
    said = capsys.readouterr().out
    assert "of 2 pairs the first answer won 1, the second 1, 0 were ties" in said and "0.500 ± 0.693" in said
    for arguments, error in (
        (["--server", URL], "no judge is given, expected --judge, or a strong and a weak model"),
        (["--server", URL, "--judge", "j", "--answers-by", "m"], "expected several: --n, or --answers-by twice"),
        (["--server", URL, "--judge", "j", "--answers-column", "texts"], "there is no column 'texts'"),
    ):
        assert run("judge", [*arguments, "--file", str(file), "--out", str(tmp_path / "new.jsonl")]) == 2
        assert error in capsys.readouterr().err
