"""The benchmarks run and print their table; the peers do the same work. How fast anything is, no test asks."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "train_step.py"


def run_tiny(*options):
    command = [sys.executable, SCRIPT, "--shapes", "tiny", "--repeats", "1", "--seconds", "0", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_train_step_alone_prints_its_table():
    result = run_tiny("--markdown")
    assert result.returncode == 0, result.stderr
    header, marks, row = (line.split(" | ") for line in result.stdout.splitlines()[2:])
    assert header[1:3] == ["implementation", "median ms"]
    assert len(header) == len(marks) == len(row)
    assert row[1] == "jaxformer"
    assert float(row[2]) >= float(row[3]) > 0


@pytest.mark.parity
def test_train_step_takes_peers_only_with_equal_losses():
    result = run_tiny("--compare", "torch")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("losses of the first 3 steps agree") == 3
    for name in ("jaxformer", "torch.compile", "PyTorch eager", "Hugging Face"):
        assert name in result.stdout


def test_a_missing_peer_is_one_line():
    # As if torch were not installed, wherever the test runs.
    code = "import sys; sys.path.insert(0, sys.argv[1]); sys.modules['torch'] = None; del sys.argv[1]; "
    code += "import train_step; sys.exit(train_step.main())"
    command = [sys.executable, "-c", code, SCRIPT.parent, "--compare", "torch"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: torch")
    assert 'pip install -e ".[benchmark]"' in result.stderr
    assert result.stderr.count("\n") == 1
