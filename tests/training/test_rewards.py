"""Scores: those of a reward run's own evaluation, whatever is scored beside; functions; what is refused."""

import copy
import json

import numpy as np
import pytest

from jaxformer.data.formats import Row
from jaxformer.schema import UserError
from jaxformer.tokenizers import (
    TokenizerConfig,
    add_special_tokens,
    difference,
    encode,
    find_special,
    load_tokenizer,
    train_tokenizer,
)
from jaxformer.training.export import export
from jaxformer.training.rewards import Sample, describe_reward, open_reward
from tests.training.helpers import run_training, tiny_keys

PAIRS = [
    {"prompt": f"{a}{b}?", "chosen": " yes" * (1 + n % 2), "rejected": " no"}
    for n, a in enumerate(("cat", "dog", "mat"))
    for b in ("", " hat", " rat sat")
]
FUNCTIONS = """
from dataclasses import dataclass

@dataclass
class Weight:
    value: float = 0.5

def length(prompts, completions, completion_ids, **kwargs):
    return [Weight().value * len(text) + len(prompt) for prompt, text in zip(prompts, completions)]

def matches(completions, answer):
    return [text.strip() == right for text, right in zip(completions, answer)]

def short(completions, **kwargs):
    return [1.0]

def none(completions, **kwargs):
    return [1.0, None, 2.0][: len(completions)]

def nan(completions, **kwargs):
    return [1.0] + [float("nan")] * (len(completions) - 1)

def text(completions, **kwargs):
    return "12"

def broken(completions, **kwargs):
    return [1 / 0]

async def later(completions, **kwargs):
    return [1.0]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base run and a reward model trained from it, a step each."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    (folder / "functions.py").write_text(FUNCTIONS, encoding="utf-8")
    keys = tiny_keys(folder, steps=1)
    keys["model"] |= {"max_length": 32}
    run_training(keys)
    data = {**keys["data"], "path": str(folder / "pairs.jsonl"), "validation_path": str(folder / "pairs.jsonl")}
    model = {"pretrained": str(folder / "run"), "dropout": 0.0}
    reward = {**keys, "model": model, "data": data, "task": {"type": "reward"}, "output_dir": str(folder / "reward")}
    run_training(reward)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    """That of the model which writes: without the padding that the reward run added."""
    return load_tokenizer(folder / "run")


def sample(tokenizer, prompt, text, ended=True, **record):
    end = [find_special(tokenizer, "eos")] if ended else []
    row = Row({"prompt": prompt, **record}, "a:1", "a.jsonl, line 1")
    return Sample(row, encode(tokenizer, prompt), [*encode(tokenizer, text), *end], ended, prompt, text)


def pairs(tokenizer, side):
    return [sample(tokenizer, row["prompt"], row[side]) for row in PAIRS]


@pytest.mark.parametrize("form", ["run", "hub"])
def test_scores_are_those_of_the_runs_own_evaluation(folder, tokenizer, tmp_path, form):
    if form == "hub":
        export(folder / "reward", tmp_path)
    score = open_reward(str(folder / "reward" if form == "run" else tmp_path), tokenizer, 32, batch_size=4)
    lines = (folder / "reward" / "predictions.jsonl").read_text().splitlines()
    for side in ("chosen", "rejected"):
        expected = [json.loads(line)[f"{side}_score"] for line in lines]
        found = score(pairs(tokenizer, side))
        assert found.dtype == np.float32 and np.ptp(expected) > 1e-2
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_score_is_that_of_its_text_alone(folder, tokenizer):
    score = open_reward(str(folder / "reward"), tokenizer, batch_size=3)
    texts = pairs(tokenizer, "chosen")
    alone = [float(score([text])[0]) for text in texts]
    np.testing.assert_allclose(score(texts), alone, atol=1e-6)
    np.testing.assert_allclose(score(texts[::-1]), alone[::-1], atol=1e-6)
    assert score([]).shape == (0,)
    # The end of the text is part of it.
    cut = sample(tokenizer, PAIRS[0]["prompt"], PAIRS[0]["chosen"], ended=False)
    assert abs(score([cut])[0] - alone[0]) > 1e-4


def test_functions(folder, tokenizer):
    rows = [sample(tokenizer, "ab", " yes", answer="yes"), sample(tokenizer, "c", " no", answer="yes")]
    found = open_reward(f"{folder / 'functions.py'}:length", tokenizer)(rows)
    assert found.dtype == np.float32 and found.tolist() == [0.5 * 4 + 2, 0.5 * 3 + 1]
    assert open_reward(f"{folder / 'functions.py'}:matches", tokenizer)(rows).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"short returned 1 values for 2 samples, expected a list of one number for each"),
        ("none", r"none returned None for sample 1 \(a\.jsonl, line 1\), expected a number"),
        ("nan", r"nan gave nan for sample 1 \(a\.jsonl, line 1\), expected a finite number"),
        ("text", r"text returned a str for 2 samples"),
        ("broken", r"the reward function .*:broken failed: ZeroDivisionError: division by zero"),
        ("later", r"later in .*functions\.py is an async function"),
        ("lenght", r"functions\.py has no function 'lenght', only length, .*; did you mean length\?"),
    ],
)
def test_functions_that_give_no_score(folder, tokenizer, name, message):
    with pytest.raises(UserError, match=message):
        open_reward(f"{folder / 'functions.py'}:{name}", tokenizer)(pairs(tokenizer, "chosen")[:1] * 2)


def test_what_is_no_reward(folder, tokenizer, tmp_path):
    with pytest.raises(UserError, match="a run of causal_lm, expected one of reward"):
        open_reward(str(folder / "run"), tokenizer)
    with pytest.raises(UserError, match=r"functions\.py is a Python file, expected a function in it: .*:FUNCTION"):
        open_reward(str(folder / "functions.py"), tokenizer)
    with pytest.raises(UserError, match=r"no such file: .*none\.py"):
        open_reward(str(folder / "none.py:length"), tokenizer)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name", encoding="utf-8")
    with pytest.raises(UserError, match=r"broken\.py cannot be loaded: ModuleNotFoundError"):
        open_reward(f"{tmp_path / 'broken.py'}:f", tokenizer)
    with pytest.raises(UserError, match=r"the reward model is .*, which has no config\.yaml"):
        open_reward(str(tmp_path), tokenizer)
    export(folder / "run", tmp_path / "lm")
    with pytest.raises(UserError, match=r"has no classifier/.*, expected a classifier with one trained class"):
        open_reward(str(tmp_path / "lm"), tokenizer)
    config = json.loads((tmp_path / "lm" / "config.json").read_text())
    config["id2label"] = {"0": "bad", "1": "good"}
    (tmp_path / "lm" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has 2 classes, expected one"):
        open_reward(str(tmp_path / "lm"), tokenizer)


def test_texts_that_do_not_fit(folder, tokenizer):
    with pytest.raises(UserError, match=r"may have 33 tokens and the reward model .* reads 32"):
        open_reward(str(folder / "reward"), tokenizer, 33)
    long = sample(tokenizer, "x" * 20, "y" * 12)
    with pytest.raises(UserError, match=r"sample 1 \(a\.jsonl, line 1\) has 33 tokens, expected at most the 32"):
        open_reward(str(folder / "reward"), tokenizer)([*pairs(tokenizer, "chosen")[:1], long])
    assert open_reward(str(folder / "reward"), tokenizer)([sample(tokenizer, "x" * 19, "y" * 12)]).shape == (1,)


def test_tokenizers_are_compared(folder, tokenizer):
    reward = str(folder / "reward")
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{{ messages }}"
    open_reward(reward, changed)
    other = train_tokenizer(TokenizerConfig(type="bpe", vocab_size=260), ["abab abab"])
    with pytest.raises(UserError, match=r"was trained with another tokenizer: .* here and .* there; expected that of"):
        open_reward(reward, other)
    # Of one vocabulary, but special tokens that the reward model does not know.
    with pytest.raises(UserError, match=r"'<mask>' is token \d+ here and none there"):
        open_reward(reward, add_special_tokens(changed, ("pad", "mask")))
    bpe = TokenizerConfig(type="bpe", vocab_size=260)
    first, second = (train_tokenizer(bpe, ["abcdefgh abcdefgh"]) for _ in range(2))
    assert difference(first, second) is None
    larger = train_tokenizer(TokenizerConfig(type="bpe", vocab_size=262), ["abcdefgh abcdefgh"])
    assert "is a token there and none here" in difference(larger, first)
    assert "here and none there" in difference(first, larger)


def test_a_reward_is_told_from_another(folder, tmp_path):
    file = tmp_path / "reward.py"
    file.write_text("def f(): ...\n", encoding="utf-8")
    first = describe_reward(f"{file}:f")
    file.write_text("def f(): ... # other\n", encoding="utf-8")
    assert first["reward"] == f"{file}:f" and describe_reward(f"{file}:f") != first
    model = describe_reward(str(folder / "reward"))
    assert model["reward_files"] and model["reward_files"] != describe_reward(str(folder / "run"))["reward_files"]
    assert describe_reward("owner/name") == {"reward": "owner/name", "reward_files": None}
