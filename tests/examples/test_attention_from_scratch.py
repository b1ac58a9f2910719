import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "examples" / "attention_from_scratch.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("attention_from_scratch", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_head_looks_where_it_was_made_to_look(example, capsys):
    words = ["a", "b", "a", "c", "a"]
    same, before, alike = np.asarray(example.attention(words))
    third = 1 / 3
    expected = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0.5, 0, 0.5, 0, 0], [0, 0, 0, 1, 0], [third, 0, third, 0, third]]
    np.testing.assert_allclose(same, expected, atol=1e-4)
    np.testing.assert_allclose(before, np.eye(5, k=-1) + np.diag([1, 0, 0, 0, 0]), atol=1e-3)
    np.testing.assert_allclose(alike, np.tri(5) / np.arange(1, 6)[:, None], atol=1e-6)
    assert capsys.readouterr().out.count("largest difference") == 5


def test_a_step_that_differs_is_an_error(example):
    with pytest.raises(AssertionError, match="a step"):
        example.same("a step", np.ones(2, np.float32), np.ones(2) * 1.001)


def test_it_draws_the_heads(tmp_path):
    run = subprocess.run(
        [sys.executable, FILE, tmp_path / "heads.png"], check=True, capture_output=True, text=True, timeout=120
    )
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")
    assert "5. multi-head attention" in run.stdout
