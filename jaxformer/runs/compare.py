"""Some runs beside each other: the keys in which they differ, and one page of their curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxformer import report
from jaxformer.atomic import write_atomically
from jaxformer.runs.summary import Summary

# Keys that differ between any two runs and change nothing that is learned.
NO_DIFFERENCE = ("output_dir",)


def differences(runs: Sequence[Summary]) -> dict[str, dict[str, Any]]:
    """The keys whose values are not the same in all runs, with the value of each run by its name."""
    keys = sorted({key for run in runs for key in run.config if key not in NO_DIFFERENCE})
    found = {key: {run.name: run.config.get(key) for run in runs} for key in keys}
    return {key: values for key, values in found.items() if len({repr(value) for value in values.values()}) > 1}


def write_comparison(runs: Sequence[Summary], path: Path) -> None:
    """Writes one page of all runs: a table, what differs in their configurations, and their curves."""
    records = {run.name: run.records for run in runs}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, report.comparison_page(records, [run.row for run in runs], differences(runs)))
