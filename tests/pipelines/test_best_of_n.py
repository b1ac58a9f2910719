"""``jaxformer best-of-n``: the best of what ``generate`` draws, line by line, whatever happens in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import jaxformer
from jaxformer.cli import run
from jaxformer.data.config import DataConfig
from jaxformer.data.records import open_records
from jaxformer.data.sources import in_validation
from jaxformer.generation.best_of_n import Summary, prompt_seed, summarise
from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.pipelines import resumable
from jaxformer.pipelines.best_of_n import BestOfN, Settings, best_of_n
from jaxformer.schema import UserError
from jaxformer.tasks import Instruction, InstructionConfig
from jaxformer.tokenizers import find_special
from jaxformer.training.rewards import Sample, open_reward
from tests.pipelines import tiny

# Every second token ends a text: the model is not trained, and would hardly find the one that does.
ENDS = list(range(0, 300, 2))
OPTIONS = {"max_new_tokens": 6, "eos_token_id": ENDS}
USER, ANSWER = {"role": "user", "content": "rain fell"}, {"role": "assistant", "content": "six years"}
PROMPTS = ["the old mill", "by a river", "Ann said it", "hills"]
PROMPTS += ["past hills over", "rain", "good work", "nobody in six"]
FUNCTION = """
def closest(prompts, completions, wish, **kwargs):
    return [-abs(len(text) - int(length)) for text, length in zip(completions, wish)]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that writes, a reward model of the same tokenizer, and a function."""
    folder = tmp_path_factory.mktemp("best")
    tiny.save(folder / "writes", "writes")
    tiny.save(folder / "reward", "number", "gpt2")
    (folder / "rewards.py").write_text(FUNCTION, encoding="utf-8")
    return folder


def make(folder, reward="reward", **settings):
    settings = {"plain": True, "batch_size": 4, "n": 2, "options": OPTIONS, **settings}
    return BestOfN(str(folder / "writes"), str(folder / reward), Settings(**settings))


@pytest.fixture(scope="module")
def maker(folder):
    return make(folder)


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def file(tmp_path):
    """21 lines, two windows of 8 and a part of one; some are bad."""
    rows = [{"prompt": PROMPTS[n % 8] + " it" * (n // 8)} for n in range(21)]
    rows[2], rows[9], rows[12], rows[17] = "{\n", {"prompt": "x" * 200}, {"text": "a"}, {"prompt": " "}
    return write(tmp_path / "in.jsonl", rows)


def drawn(folder, prompt, line, n):
    """What ``generate`` draws for one prompt alone."""
    model, params = jaxformer.AutoModelForCausalLM.from_pretrained(str(folder / "writes"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "writes"))
    ids = tokenizer(prompt)["input_ids"]
    options = {**OPTIONS, "do_sample": True, "num_return_sequences": n}
    return ids, jaxformer.generate(model, params, [ids], tokenizer=tokenizer, seed=[prompt_seed(0, line)], **options)


@pytest.mark.slow
def test_the_best_of_what_generate_draws(folder, maker, tmp_path):
    file, out = write(tmp_path / "in.jsonl", [{"prompt": prompt} for prompt in PROMPTS]), tmp_path / "out.jsonl"
    best_of_n(maker, file, out)
    score = open_reward(str(folder / "reward"), AutoTokenizer.from_pretrained(str(folder / "writes")))
    seen = set()
    for line, (prompt, record) in enumerate(zip(PROMPTS, records(out), strict=True), 1):
        ids, output = drawn(folder, prompt, line, 2)
        texts = [row[:size].tolist() for row, size in zip(output.tokens, output.lengths, strict=True)]
        ended = [reason == "stop" for reason in output.finish_reasons]
        scores = score([Sample({}, ids, text, True, "", "") for text in texts])
        np.testing.assert_allclose(record["scores"], scores, atol=1e-5)
        assert record["truncated"] == 2 - sum(ended)
        able = [n for n in range(2) if ended[n] and output.text[n].strip()]
        if not able:
            assert record["error"].startswith(f"line {line}: none of 2 texts ended within 6 tokens")
            continue
        best = max(able, key=lambda n: scores[n])
        assert record["prompt"] == prompt and record["completion"] == output.text[best]
        assert record["score"] == record["scores"][best]
        assert record["mean_score"] == pytest.approx(np.mean(scores), abs=1e-5)
        seen.add(best)
    assert seen == {0, 1}


def test_bad_lines_are_errors_in_place(maker, file, tmp_path):
    done = best_of_n(maker, file, tmp_path / "out.jsonl")
    found = records(tmp_path / "out.jsonl")
    assert done.lines == len(found) == 21
    reasons = {
        3: "it is not JSON",
        10: "the prompt has 200 tokens, expected 1 to 122, which leaves room for max_new_tokens=6",
        13: "there is no prompt, only the columns text",
        18: "the prompt is empty",
    }
    for line, reason in reasons.items():
        assert found[line - 1].keys() == {"error"} and found[line - 1]["error"].startswith(f"line {line}: {reason}")
    none_ended = [line for line, record in enumerate(found, 1) if "none of 2" in record.get("error", "")]
    assert done.errors == len(reasons) + len(none_ended) and all("scores" in found[line - 1] for line in none_ended)


def test_a_crash_changes_no_byte(folder, maker, file, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    best_of_n(maker, file, whole)
    calls = iter([None])

    def fsync(number):
        if next(calls, "power") == "power":
            raise SystemError("power failure")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SystemError):
        best_of_n(maker, file, out)
    monkeypatch.undo()
    out.write_bytes(out.read_bytes()[:-30])  # in the middle of a line in the middle of a window
    begun = out.read_bytes().count(b"\n")
    assert begun % 8
    assert best_of_n(maker, file, out).earlier == begun
    assert out.read_bytes() == whole.read_bytes()
    assert best_of_n(maker, file, out).earlier == 21 and out.read_bytes() == whole.read_bytes()
    with pytest.raises(UserError, match=r"begun with other settings: seed 0 -> 1; expected the same"):
        best_of_n(make(folder, seed=1), file, out)


@pytest.mark.parametrize("left", [18, 12])
def test_a_file_that_has_shrunk_is_refused(maker, file, tmp_path, monkeypatch, left):
    monkeypatch.setattr(resumable, "HEAD", 20)  # what is looked at of the file
    best_of_n(maker, file, tmp_path / "out.jsonl")
    content = (tmp_path / "out.jsonl").read_bytes()
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:left]))
    with pytest.raises(UserError, match=f"has 21 lines and .* only {left}"):
        best_of_n(maker, file, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == content


def test_another_function_of_the_same_name_is_another_reward(folder, tmp_path):
    (tmp_path / "rewards.py").write_text(FUNCTION, encoding="utf-8")
    file, out = write(tmp_path / "in.jsonl", [{"prompt": "hills", "wish": 3}] * 3), tmp_path / "out.jsonl"
    reward = str(tmp_path / "rewards.py") + ":closest"
    best_of_n(make(folder, reward), file, out)
    (tmp_path / "rewards.py").write_text(FUNCTION.replace("-abs", "abs"), encoding="utf-8")
    with pytest.raises(UserError, match="begun with other settings: reward_files; expected the same"):
        best_of_n(make(folder, reward), file, out)


def test_a_function_sees_the_columns(folder, tmp_path):
    file, out = write(tmp_path / "in.jsonl", [{"prompt": p, "wish": "5"} for p in PROMPTS]), tmp_path / "out.jsonl"
    best_of_n(make(folder, "rewards.py:closest", n=4, others=True), file, out)
    for record in records(out):
        lengths = [len(text) for text in record["completions"]]
        assert record["scores"] == [-abs(length - 5) for length in lengths]


def test_dialogues_and_held_out_rows(folder, tmp_path):
    rows = [{"messages": [USER, ANSWER, USER, ANSWER]}] * 40
    file, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    chat = make(folder, plain=False, validation_fraction=0.2)
    best_of_n(chat, file, out)
    held_out = records(out)
    data = DataConfig(path=str(file), validation_fraction=0.2)
    apart = [int(row.name.rpartition(":")[2]) for row in open_records(data).validation or []]
    assert apart and apart == [n for n, record in enumerate(held_out, 1) if "held out" in record.get("error", "")]
    assert in_validation(f"in.jsonl:{apart[0]}", 0.2)
    good = [record for record in held_out if "completion" in record]
    assert good and all(record["prompt"] == [USER, ANSWER, USER] for record in good)
    assert all([m["role"] for m in record["completion"]] == ["assistant"] for record in good)
    # Of the dialogue only the answer that was drawn is learned.
    task = Instruction(InstructionConfig(packed=False), chat.tokenizer, 128, "decoder")
    batch = task.rows(good[:1]).take(np.arange(1))
    learned = [int(i) for i in batch["labels"][0] if i >= 0]
    assert chat.tokenizer.decode(learned).strip() == good[0]["completion"][0]["content"]


def test_the_output_is_what_instruction_reads(maker, file, tmp_path):
    best_of_n(maker, file, tmp_path / "out.jsonl")
    found = records(tmp_path / "out.jsonl")
    data = open_records(DataConfig(path=str(tmp_path / "out.jsonl"), validation_fraction=0.0)).train
    task = Instruction(InstructionConfig(packed=False), maker.tokenizer, 64, "decoder")
    rows = task.rows(data)
    bad = [line for line, record in enumerate(found, 1) if "error" in record]
    assert [(where, reason) for where, reason in rows.left_out] == [
        (f"{tmp_path / 'out.jsonl'}, line {line}", "the row is an error of the command that wrote the file")
        for line in bad
    ]
    batch = rows.take(np.arange(rows.num_rows))
    for place, record in enumerate(record for record in found if "error" not in record):
        learned = [int(i) for i in batch["labels"][place] if i >= 0]
        assert learned[-1] == find_special(maker.tokenizer, "eos")
        assert maker.tokenizer.decode(learned[:-1]) == record["completion"]


def test_what_does_not_fit_is_refused(folder, tmp_path):
    shutil.copytree(folder / "reward", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    keys = json.loads(path.read_text())
    vocabulary = keys["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(keys))
    with pytest.raises(UserError, match=r"was trained with another tokenizer: .* is token 50 here and 51 there"):
        make(folder, tmp_path / "other")
    with pytest.raises(UserError, match="do_sample is false and n is 2, expected n=1"):
        make(folder, options={"do_sample": False})
    with pytest.raises(UserError, match="num_return_sequences is given, expected --n"):
        make(folder, options={"num_return_sequences": 3})
    with pytest.raises(UserError, match="'max_tokens' is no option of generate"):
        make(folder, options={"max_tokens": 3})
    with pytest.raises(UserError, match="reward generates no text, expected a language model"):
        BestOfN(str(folder / "reward"), str(folder / "reward"), Settings())
    with pytest.raises(UserError, match="n is 0 and the batch size 64, expected 1 or more"):
        BestOfN(str(folder / "writes"), str(folder / "reward"), Settings(n=0))


def test_a_summary_by_hand(tmp_path):
    rows = [
        {"score": 3.0, "scores": [1.0, 3.0], "truncated": 1},
        {"error": "line 2: too long"},
        {"error": "line 3: none", "scores": [-1.0, 0.0], "truncated": 2},
        {"score": 3.0, "scores": [3.0, 2.0], "truncated": 0},
    ]
    found = summarise(write(tmp_path / "out.jsonl", rows))
    # First scores 1, -1, 3: mean 1, standard deviation 2.
    assert found == Summary(4, 2, 3, 6, 3, 1.0, pytest.approx(1.96 * 2 / 3**0.5, abs=1e-3), 3.0)


def test_the_command(folder, file, tmp_path, capsys):
    def call(*more, out="out.jsonl"):
        paths = ["--model", str(folder / "writes"), "--file", str(file), "--out", str(tmp_path / out)]
        ends = f"eos_token_id={ENDS}"
        return run("best-of-n", [*paths, "--reward", str(folder / "reward"), *more, "max_new_tokens=6", ends])

    assert call("--n", "2", "--batch-size", "4", "--plain") == 0
    said = capsys.readouterr().out
    assert 'of 21 lines have no answer, see their "error"' in said and "first texts for 17 prompts" in said
    assert "next: python train.py --config configs/assistant/best.yaml" in said
    assert call("--prompt-column", "question", out="x.jsonl") == 2
    assert "there is no column 'question', only the columns prompt; --prompt-column" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_process_is_stopped_and_gone_on_with(folder, tmp_path, how):
    rows = [{"prompt": " ".join(PROMPTS[n % 8].split()[: n % 3 + 1])} for n in range(3000)]
    file, out, whole = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    best_of_n(make(folder, batch_size=16), file, whole)
    code = "import sys; from jaxformer.cli import main; main()"
    command = [sys.executable, "-c", code, "best-of-n", "--model", str(folder / "writes"), "--n", "2", "--plain"]
    command += ["--reward", str(folder / "reward"), "--file", str(file), "--out", str(out), "--batch-size", "16"]
    command += ["max_new_tokens=6", f"eos_token_id={ENDS}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not out.exists() or out.stat().st_size < 20_000:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(getattr(signal, how))
    process.communicate(timeout=60)
    assert process.returncode == {"SIGKILL": -9, "SIGTERM": 143}[how]
    assert 0 < out.read_bytes().count(b"\n") < 3000
    assert "were there already" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.read_bytes() == whole.read_bytes()
