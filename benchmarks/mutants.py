"""Faults put into jaxformer one at a time, and whether ``jaxformer check`` names each: how much the checks are worth.

    python benchmarks/mutants.py                       # each fault against the line that should name it
    python benchmarks/mutants.py --whole --only mask   # all lines, for the faults whose name or file contains "mask"

A fault is a change of a few characters in a module's source, made while the module is imported in a process of its own;
nothing is written to the package. A check passes on the unchanged source (the first row of each run says so) and must
fail on the changed one.
"""

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import sys
import tempfile
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

from _mutants import MUTANTS, Mutant

from jaxformer.parallel.compiler_flags import FAST_COMPILATION

ROOT = Path(__file__).parents[1] / "jaxformer"
os.environ["XLA_FLAGS"] = FAST_COMPILATION
LIMIT_S = 600.0


class _Changed(importlib.machinery.SourceFileLoader):
    """Loads a module with one piece of its source replaced."""

    def __init__(self, name: str, path: str, mutant: Mutant) -> None:
        super().__init__(name, path)
        self.mutant = mutant

    def get_code(self, fullname: str) -> Any:
        """The code of the changed source; never of a compiled file."""
        source = Path(self.path).read_text(encoding="utf-8")
        if (times := source.count(self.mutant.old)) != 1:
            raise ValueError(f"{self.mutant.name}: {self.mutant.file} has its text {times} times")
        return compile(source.replace(self.mutant.old, self.mutant.new), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.module = "jaxformer." + mutant.file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """The module to be changed; no other."""
        if fullname != self.module:
            return None
        file = str(ROOT / self.mutant.file)
        return importlib.util.spec_from_file_location(fullname, file, loader=_Changed(fullname, file, self.mutant))


class Found(NamedTuple):
    """The lines of a check that failed, the number of lines, and the time."""

    failed: dict[str, str]
    lines: int
    seconds: float


def check(config: Path, mutant: Mutant | None, only: list[str], cache: Path) -> Found:
    """The checks of a configuration in a process of its own, with a fault if there is one."""
    start = time.perf_counter()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w") as out, redirect_stderr(io.StringIO()):
            try:
                json.dump(_checked(config, mutant, only, cache), out)
            except BaseException as error:  # the parent reports it
                json.dump([["the check itself", False, f"{type(error).__name__}: {error}"[:200]]], out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        found = json.loads(answer.read() or "[]")
    os.waitpid(child, 0)
    failed = {name: place for name, passed, place in found if passed is False}
    return Found(failed, len(found), time.perf_counter() - start)


def _checked(config: Path, mutant: Mutant | None, only: list[str], cache: Path) -> list[list[Any]]:
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    import jax

    jax.config.update("jax_num_cpu_devices", 2)
    # Programs that the fault does not change are read, not compiled.
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from rich.console import Console

    from jaxformer.check.subjects import check_config
    from jaxformer.training.console import Display
    from jaxformer.training.sources import load_config

    display = Display(Console(file=io.StringIO()))
    found = check_config(load_config(config), display, only or None)
    return [[outcome.name, outcome.passed, outcome.place[:150]] for outcome in found]


def main() -> int:
    """Prints a table and returns 1 if a fault was not named, or a line failed without one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose name, file, configuration or line contains this")
    parser.add_argument("--whole", action="store_true", help="run all lines of the check for each fault")
    parser.add_argument("--markdown", action="store_true", help="print the table as in docs/check.md")
    parser.add_argument("--skip-unchanged", action="store_true", help="do not check the unchanged source first")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only in " ".join((m.name, m.file, m.config, *m.lines))]
    # Third-party modules are imported once, before the processes part; JAX has no backend yet.
    for name in ("datasets", "flax.linen", "grain", "optax", "orbax.checkpoint", "transformers"):
        importlib.import_module(name)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write(folder)
        wrong = 0 if options.skip_unchanged else _clean(folder, chosen)
        missed = _each(folder, chosen, options.whole, options.markdown)
    print(f"{len(chosen) - missed} of {len(chosen)} faults named by the right line; {wrong} false alarms")
    return 1 if missed or wrong else 0


def _write(folder: Path) -> None:
    """Writes the configurations in a process of its own, so that this one has no backend when it parts."""
    child = os.fork()
    if child == 0:
        from _check_configs import write

        write(folder)
        os._exit(0)
    os.waitpid(child, 0)


def _clean(folder: Path, chosen: list[Mutant]) -> int:
    """Checks the unchanged source; returns the number of lines that failed."""
    wrong = 0
    for name in dict.fromkeys(mutant.config for mutant in chosen):
        found = check(folder / f"{name}.yaml", None, [], folder / "compiled")
        wrong += len(found.failed)
        said = f"{found.lines} lines, failed: {found.failed or 'none'}; {found.seconds:.0f} s"
        print(f"unchanged, {name}: {said}", flush=True)
    return wrong


def _each(folder: Path, chosen: list[Mutant], whole: bool, markdown: bool) -> int:
    missed = 0
    if markdown:
        print("| fault | where | configuration | named by | s |\n|---|---|---|---|---|")
    for mutant in chosen:
        only = [] if whole else list(mutant.lines)
        found = check(folder / f"{mutant.config}.yaml", mutant, only, folder / "compiled")
        named = [line for line in mutant.lines if line in found.failed]
        missed += not named
        said = ", ".join(named) if named else f"MISSED ({found.failed or 'nothing failed'})"
        also = sorted(found.failed.keys() - set(named))
        said += f" (also {', '.join(also)})" if also and named else ""
        if markdown:
            print(f"| {mutant.name} | `{mutant.file}` | {mutant.config} | {said} | {found.seconds:.0f} |", flush=True)
        else:
            print(f"{'ok' if named else 'MISSED':7}{mutant.name}: {said}; {found.seconds:.0f} s", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
