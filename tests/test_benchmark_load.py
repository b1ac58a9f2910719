"""The benchmark of loading runs and prints its table; how much memory a load may take is asked here too."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "load.py"
COLUMNS = ("model", "implementation", "median s", "min s", "peak MiB", "above libraries MiB", "/ model")


def run(*options):
    command = [sys.executable, SCRIPT, "--repeats", "1", *options]
    return subprocess.run(command, capture_output=True, text=True)


def rows_of(result):
    """The table's rows, each by column."""
    assert result.returncode == 0, result.stderr
    header, _, *rows = (line.strip("| ").split(" | ") for line in result.stdout.splitlines()[2:])
    assert tuple(header[: len(COLUMNS)]) == COLUMNS
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.slow
def test_a_load_stays_under_the_model_and_its_largest_parameter():
    (row,) = rows_of(run("--shapes", "small", "--dtypes", "float32", "--markdown"))
    assert row["implementation"] == "jaxformer"
    assert float(row["peak MiB"]) > float(row["above libraries MiB"]) > 100
    assert 0.5 < float(row["/ (model + largest)"]) < 1


@pytest.mark.parity
def test_the_peer_takes_part_only_with_equal_parameters():
    rows = rows_of(run("--shapes", "tiny", "--compare", "torch", "--markdown"))
    assert [row["implementation"] for row in rows] == ["jaxformer", "PyTorch transformers"] * 2


def test_a_missing_peer_is_one_line():
    # As if torch were not installed, wherever the test runs.
    code = "import sys; sys.modules['torch'] = None; sys.path.insert(0, sys.argv.pop(1)); "
    code += "import load; sys.exit(load.main())"
    command = [sys.executable, "-c", code, SCRIPT.parent, "--compare", "torch"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: torch")
    assert result.stderr.count("\n") == 1
