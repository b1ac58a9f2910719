"""The example's data and its reward, as a run opens it."""

import importlib.util
from pathlib import Path

import numpy as np

from jaxformer.tokenizers import TokenizerConfig, train_tokenizer
from jaxformer.training.rewards import Sample, open_reward

FILE = Path(__file__).parents[2] / "examples" / "sums.py"


def example():
    spec = importlib.util.spec_from_file_location("sums", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reward_knows_right_from_wrong():
    score = open_reward(f"{FILE}:right", train_tokenizer(TokenizerConfig(type="byte"), ["1+1=2"]))
    samples = [Sample({"prompt": "7+8="}, [], [], True, "7+8=", text) for text in ("15", "14", "", "15 ")]
    np.testing.assert_array_equal(score(samples), [1, 0, 0, 0])


def test_so_many_answers_are_wrong():
    module = example()
    rows = module.rows(2000, share_wrong=0.6)
    right = module.right([row["prompt"] for row in rows], [row["completion"] for row in rows])
    # A wrong answer is drawn among 19 and is right by chance.
    assert abs(np.mean(right) - (0.4 + 0.6 / 19)) < 0.04
