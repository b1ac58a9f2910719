"""The benchmarks run and print their table; the peers do the same work. How fast anything is, no test asks."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
# Of each benchmark the implementations that its table names.
PEERS = {
    "train_step": ("plain GPT, torch.compile", "plain GPT, PyTorch eager", "Hugging Face, PyTorch eager"),
    "bert_step": (
        "Hugging Face, predicted tokens, torch.compile",
        "Hugging Face, predicted tokens, PyTorch eager",
        "Hugging Face, torch.compile",
        "Hugging Face, PyTorch eager",
    ),
}

each = pytest.mark.parametrize("benchmark", PEERS)


def run_tiny(benchmark, *options):
    script = FOLDER / f"{benchmark}.py"
    command = [sys.executable, script, "--shapes", "tiny", "--repeats", "1", "--seconds", "0", *options]
    return subprocess.run(command, capture_output=True, text=True)


@each
def test_alone_it_prints_its_table(benchmark):
    result = run_tiny(benchmark, "--markdown")
    assert result.returncode == 0, result.stderr
    header, marks, row = (line.split(" | ") for line in result.stdout.splitlines()[2:])
    assert header[1:3] == ["implementation", "median ms"]
    assert len(header) == len(marks) == len(row)
    assert row[1] == "jaxformer"
    assert float(row[2]) >= float(row[3]) > 0


@pytest.mark.parity
@each
def test_peers_take_part_only_with_equal_losses(benchmark):
    result = run_tiny(benchmark, "--compare", "torch")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("losses of the first 3 steps agree") == len(PEERS[benchmark])
    for name in ("jaxformer", *PEERS[benchmark]):
        assert name in result.stdout


@each
def test_a_missing_peer_is_one_line(benchmark):
    # As if torch were not installed, wherever the test runs.
    code = "import importlib, sys; sys.path.insert(0, sys.argv[1]); sys.modules['torch'] = None; "
    code += "benchmark = sys.argv[2]; del sys.argv[1:3]; sys.exit(importlib.import_module(benchmark).main())"
    command = [sys.executable, "-c", code, FOLDER, benchmark, "--compare", "torch"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: torch")
    assert 'pip install -e ".[benchmark]"' in result.stderr
    assert result.stderr.count("\n") == 1


def write_tiny(*options):
    command = [sys.executable, FOLDER / "generate.py", "--sizes", "tiny", "--rounds", "1", "--batches", "2", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_generation_prints_its_table():
    result = write_tiny("--markdown", "--kinds", "int8")
    assert result.returncode == 0, result.stderr
    header, _, *rows = (line.strip("| ").split(" | ") for line in result.stdout.splitlines()[2:])
    assert header[2] == "tokens/s" and [row[1] for row in rows] == ["jaxformer", "jaxformer, int8 weights"]
    assert all(float(row[2]) > 0 and row[-1].endswith("%") for row in rows)


@pytest.mark.parity
def test_generation_beside_a_peer_that_writes_the_same():
    result = write_tiny("--compare", "torch", "--kinds", "as loaded")
    assert result.returncode == 0, result.stderr
    assert "transformers, PyTorch" in result.stdout
