"""The start page: what it says to copy works, on a run that is smaller."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxformer.cli import parse_arguments
from tests.training.helpers import run_training, tiny_keys

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_picture_of_attention(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = tiny_keys(tmp_path)
    run_training({**keys, "output_dir": "runs/gpt_nano", "model": {**keys["model"], "max_length": 64}})
    script = re.search(r"```py\n(.*?)```", PAGE, re.DOTALL)[1]
    Path("attention.py").write_text(script, encoding="utf-8")
    result = subprocess.run([sys.executable, "attention.py"], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "attention.png").stat().st_size > 5000


def test_its_commands_exist():
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    train, generate = (next(line for line in commands if name in line) for name in ("train.py", "jaxformer generate"))
    assert parse_arguments("train", train.split()[2:]).config == "configs/gpt_nano.yaml"
    assert parse_arguments("generate", generate.replace('"', "").split()[2:]).model == "runs/gpt_nano"
    assert (ROOT / "configs" / "gpt_nano.yaml").exists()
