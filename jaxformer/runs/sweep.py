"""Runs over all combinations of some keys' values, one after the other; finished ones are not run again."""

import hashlib
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxformer.atomic import write_atomically
from jaxformer.runs.summary import Summary, is_run, summarise
from jaxformer.schema import UserError, local_path
from jaxformer.signals import handling
from jaxformer.training.config import dump_config
from jaxformer.training.console import Display
from jaxformer.training.sources import load_config

FINISHED_FILE, PAGE = "sweep.json", "sweep.html"
SEED = "seed"
# Share of the intervals that hold the mean of all seeds.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Combination:
    """One run of a sweep.

    Attributes:
        values: the values of the keys that are swept, as they were written.
        folder: of the run.
        overrides: of the configuration, that of the folder among them.
        fingerprint: hash of the resolved configuration.
    """

    values: Mapping[str, str]
    folder: Path
    overrides: tuple[str, ...]
    fingerprint: str


def split_values(text: str) -> list[str]:
    """The values of ``a,b,c``; commas in brackets, braces and quotes do not part.

    >>> split_values("1e-3,3e-4"), split_values("[a,b],[c]"), split_values("'a,b'")
    (['1e-3', '3e-4'], ['[a,b]', '[c]'], ["'a,b'"])
    """
    values, depth, quote, part = [], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and not quote and depth == 0:
            values.append(part)
            part = ""
        else:
            part += character
    return [*values, part]


def combinations(config: str | None, overrides: Sequence[str]) -> tuple[Path, list[Combination]]:
    """The folder of a sweep and its runs; every configuration is resolved, so that a wrong one is found before any run.

    Args:
        config: the YAML file.
        overrides: ``key=value``, or ``key=value,value`` for a key that is swept.

    Raises:
        UserError: if no key has several values, a value is given twice, or a configuration is wrong.
    """
    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        values = split_values(text) if equals else []
        if len(values) < 2:
            fixed.append(override)
            continue
        if key in swept or len(set(values)) < len(values) or "" in values:
            raise UserError(f"{override!r} repeats a key or a value, or has an empty one; expected each once")
        swept[key] = values
    if not swept:
        raise UserError(
            "no key has several values, expected at least one, for example optimizer.learning_rate=1e-3,3e-4 seed=0,1,2"
        )
    if "output_dir" in swept:
        raise UserError("output_dir has several values, expected one: the folder of all runs of the sweep")
    base = load_config(config, [*fixed, *(f"{key}={values[0]}" for key, values in swept.items())])
    given = any(override.startswith("output_dir=") for override in fixed)
    top = local_path(base.output_dir if given else f"{base.output_dir}_sweep")
    short = _short_keys(list(swept))
    found = []
    for chosen in itertools.product(*swept.values()):
        pairs = dict(zip(swept, chosen, strict=True))
        name = ",".join(f"{short[key]}={value}" for key, value in pairs.items())
        folder = top / re.sub(r"[^\w.,=+-]", "_", name)
        own = (*fixed, *(f"{key}={value}" for key, value in pairs.items()), f"output_dir={folder}")
        resolved = dump_config(load_config(config, own))
        found.append(Combination(pairs, folder, own, hashlib.sha256(resolved.encode()).hexdigest()))
    if len({run.folder for run in found}) < len(found):
        raise UserError("two combinations have the same folder; expected values that differ in letters and digits")
    return top, found


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last parts of keys, or whole keys where these are the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


class SweepResult(NamedTuple):
    """The runs that have finished, those that failed with their exit codes, and the signal that ended the sweep."""

    finished: dict[Path, Summary]
    failed: dict[Path, int]
    stopped_by: str | None


def run_sweep(config: str | None, top: Path, runs: Sequence[Combination], display: Display) -> SweepResult:
    """Trains the runs that have not finished yet, each in a process of its own; a run that fails ends no other."""
    top.mkdir(parents=True, exist_ok=True)
    done = read_finished(top)
    failed: dict[Path, int] = {}
    finished: dict[Path, Summary] = {}
    for number, run in enumerate(runs, 1):
        said = f"run {number} of {len(runs)}: {' '.join(f'{key}={value}' for key, value in run.values.items())}"
        if done.get(run.folder.name) == run.fingerprint and is_run(run.folder):
            display.say(f"{said}: finished before")
            finished[run.folder] = summarise(run.folder)
            continue
        display.console.rule(said, style="dim")
        source = [] if config is None else ["--config", config]
        code, signal_name = train_alone([*source, *run.overrides])
        if signal_name is not None:
            return SweepResult(finished, failed, signal_name)
        if code:
            failed[run.folder] = code
            continue
        done[run.folder.name] = run.fingerprint
        write_atomically(top / FINISHED_FILE, json.dumps(done, indent=1, ensure_ascii=False) + "\n")
        finished[run.folder] = summarise(run.folder)
    return SweepResult(finished, failed, None)


def read_finished(top: Path) -> dict[str, str]:
    """The finished runs of a sweep, with the fingerprints of their configurations; none where the file is not whole."""
    try:
        found = json.loads((top / FINISHED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def train_alone(arguments: Sequence[str]) -> tuple[int, str | None]:
    """Trains in a process of its own; returns its exit code, and the signal that this process got meanwhile.

    Signals are passed on, so that the run saves its step; in a group of its own it does not get a terminal's as well.
    """
    command = [sys.executable, "-m", "jaxformer", "train", *arguments]
    received: list[str] = []
    with subprocess.Popen(command, process_group=0) as process:

        def pass_on(number: int, _: Any) -> None:
            received.append(signal.Signals(number).name)
            process.send_signal(number)

        with handling(pass_on):
            code = process.wait()
    return code, received[0] if received else None


class Mean(NamedTuple):
    """Mean over seeds and half the width of its interval; None with one seed."""

    value: float
    half: float | None

    def __str__(self) -> str:
        """``"3.512 ± 0.021"``."""
        return f"{self.value:.4f}" if self.half is None else f"{self.value:.4f} ± {self.half:.4f}"


def mean(values: Sequence[float]) -> Mean:
    """The mean, and half of its 95 % interval by Student's t distribution with ``n - 1`` degrees of freedom.

    >>> str(mean([1.0, 2.0, 3.0])), str(mean([2.0]))
    ('2.0000 ± 2.4841', '2.0000')
    """
    count, middle = len(values), float(np.mean(values))
    if count < 2:
        return Mean(middle, None)
    error = float(np.std(values, ddof=1)) / count**0.5
    return Mean(middle, float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error)


def table(runs: Sequence[Combination], finished: Mapping[Path, Summary]) -> list[dict[str, str]]:
    """A line for each combination of all keys but the seed: means over the seeds, the lowest loss first."""
    groups: dict[tuple[tuple[str, str], ...], list[Summary]] = {}
    for run in runs:
        if run.folder in finished:
            alike = tuple((key, value) for key, value in run.values.items() if key != SEED)
            groups.setdefault(alike, []).append(finished[run.folder])
    lines = []
    for alike, group in groups.items():
        found = {"best loss": [s.loss if s.loss is not None else s.training_loss for s in group]}
        found |= {key: [s.results.get(key) for s in group] for key in group[0].results}
        means = {key: mean(known) for key, values in found.items() if (known := [v for v in values if v is not None])}
        words = {key.replace("_", " "): str(value) for key, value in means.items()}
        order = means["best loss"].value if "best loss" in means else float("inf")
        lines.append((order, {**dict(alike), "runs": str(len(group)), **words}))
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]
