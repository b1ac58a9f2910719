"""What ``jaxformer data`` prints: decoded rows, the tokens that train marked."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from jaxformer.cli import run as run_command
from jaxformer.training.row_preview import passages, rows_of, show_rows
from tests.training.helpers import make_run, tiny_keys


def run_of(tmp_path, task, rows, model="gpt2", **keys):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = {**tiny_keys(tmp_path, batch_size=8), **keys}
    sizes = {"type": model, "hidden_size": 8, "num_heads": 2, "num_layers": 1, "max_length": 32}
    data = {**made["data"], "path": str(path), "validation_fraction": 0}
    return make_run({**made, "model": sizes, "data": data, "task": task})


def shown(run, count=1, coloured=False):
    console = Console(file=io.StringIO(), width=200, force_terminal=coloured, highlight=False)
    show_rows(run, count, console)
    return console.file.getvalue()


def test_answers_are_in_brackets(tmp_path):
    run = run_of(tmp_path, {"type": "instruction"}, [{"prompt": "[a]", "completion": "bc"}] * 8)
    text = shown(run, 2)
    assert text.count("[a][[bc<|endoftext|>]]") == 8
    # Six examples fit into 32 inputs: each has 5, and an end that is asked for and not read.
    assert ": 36 tokens, 18 trained" in text and ": 12 tokens, 6 trained" in text
    assert "\x1b[1;32mbc<|endoftext|>" in shown(run, 1, coloured=True)


TEXTS = [{"text": f"some text {n} of a length"} for n in range(8)]
LABELLED = [{"text": "good film", "label": "yes"}, {"text": "bad film", "label": "no"}] * 4
TAGGED = [{"words": ["Kim", "ran"], "tags": ["B-PS", "O"]}] * 8
SPANS = [{"question": "who", "context": "Kim ran", "answers": {"text": ["Kim"], "answer_start": [0]}}] * 8
CHOICES = [{"question": "q", "choices": ["aa", "b"], "label": 1}] * 8
PAIRS = [{"source": "ab", "target": "cd"}] * 8
CASES = {
    "causal_lm": ("gpt2", TEXTS, "[["),
    "prefix_lm": ("gpt2", TEXTS, "[["),
    "masked_lm": ("bert", TEXTS, "tokens are hidden from the model"),
    "replaced_token_detection": ("electra", TEXTS, "tokens are hidden from the model"),
    "span_corruption": ("t5", TEXTS, "[[<extra_id_0>"),
    "denoising": ("bart", TEXTS, "-- target"),
    "sequence_classification": ("bert", LABELLED, "label: "),
    "token_classification": ("bert", TAGGED, "[[K]]im [[r]]an<|endoftext|>\nB-PS O"),
    "question_answering": ("bert", SPANS, "[[K"),
    "multiple_choice": ("bert", CHOICES, "[[<s>q<|endoftext|>b<|endoftext|>]]"),
    "seq2seq": ("t5", PAIRS, "[[cd<|endoftext|>]]"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_objective_can_be_shown(tmp_path, name):
    model, rows, expected = CASES[name]
    settings = {"max_question_tokens": 8, "stride": 4} if name == "question_answering" else {}
    settings |= {"target_length": 32} if name == "seq2seq" else {}
    run = run_of(tmp_path, {"type": name, **settings}, rows, model)
    assert expected in shown(run, 3)
    for row in rows_of(run, 3):
        found = passages(run, row)
        assert found and all(len(p.ids) == len(p.trained) for p in found)
        if name in ("causal_lm", "prefix_lm", "seq2seq", "span_corruption", "masked_lm"):
            assert sum(sum(p.trained) for p in found) == np.sum(row["labels"] >= 0)


def test_the_command(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": "b"}] * 9 + [{"prompt": "a", "completion": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {{hidden_size: 8, num_heads: 2, num_layers: 1, max_length: 16}}\ntokenizer: {{type: byte}}\n"
        f"data: {{path: {path}, validation_fraction: 0}}\ntask: {{type: instruction}}\n"
    )
    assert (
        run_command("data", ["--config", str(config), "--show", "1", "task.packed=false", "training.batch_size=8"]) == 0
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "10 examples to train on, 9 rows of instruction" in out and "a[[b<|endoftext|>]]" in out
    assert "skipped 1 of 10 rows: the response is empty" in out and "line 10" in out
    assert run_command("data", ["--config", str(config), "task.bad_rows=error"]) == 2
    assert "line 10: the response is empty; fix the row" in capsys.readouterr().err
