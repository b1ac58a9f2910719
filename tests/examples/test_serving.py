"""The examples of retrieval, tools and tasks, as far as they need no server."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def agent():
    return loaded("agent")


def test_the_calculator_computes_and_executes_nothing_else(agent):
    assert agent.calculate("-3 * (4 - 10)") == 18
    for wrong in ("__import__('os')", "2 ** 9", "1 / 2", "1.5", "a", "", "(" * 150, "1+" * 150):
        with pytest.raises(ValueError):
            agent.calculate(wrong)


def test_conversations_have_right_answers(agent):
    for _, one in zip(range(200), agent.sums(3), strict=False):
        messages = agent.conversation(one)
        assert int(messages[2]["content"]) == eval(one.expression) == one.answer
        assert agent.is_right(messages, one.answer) and not agent.is_right(messages, one.answer + 1)


def test_the_loop_computes_what_the_model_calls(agent):
    """A model that calls first, with an expression that is none, then another, and then says the result."""
    said = iter(["12 +", "12 + 30", None])
    seen = []

    def create(messages, **options):
        seen.append([dict(message) for message in messages])
        expression = next(said)
        content = None if expression else f"It is {messages[-1]['content']}."
        call = SimpleNamespace(id="c", function=SimpleNamespace(arguments=json.dumps({"expression": expression})))
        message = SimpleNamespace(content=content, tool_calls=[call] if expression else None)
        message.model_dump = lambda **_: {"role": "assistant", "content": content}
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    messages = agent.ask(client, "m", "What is 12 + 30?")
    results = [message["content"] for message in messages if message["role"] == "tool"]
    assert results[0].startswith("error: '12 +' is no expression") and results[1] == "42"
    assert agent.is_right(messages, 42) and len(seen) == 3


def test_tasks_and_training_texts_are_written(tmp_path, monkeypatch, capsys):
    module = loaded("harness_tasks")
    rows = {
        "sst2": [{"sentence": "a fine film", "label": 1}, {"sentence": "dull", "label": 0}],
        "klue_ynat": [{"title": "반도체", "label": "경제"}],
    }
    for name, some in rows.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for part in ("train", "dev", "validation"):
            import gzip

            with gzip.open(tmp_path / "data" / name / f"{part}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in some)
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "tasks")])
    module.main()
    assert "nli_ko: there is no" in capsys.readouterr().out
    texts = [json.loads(line)["text"] for line in (tmp_path / "tasks" / "train.jsonl").read_text().splitlines()]
    assert texts == [
        "Review: a fine film\nSentiment: positive",
        "Review: dull\nSentiment: negative",
        "제목: 반도체\n분야: 경제",
    ]
    task = yaml.safe_load((tmp_path / "tasks" / "sentiment_en.yaml").read_text())
    assert (
        task["doc_to_choice"] == [" negative", " positive"]
        and Path(task["dataset_kwargs"]["data_files"]["test"]).exists()
    )
