"""Receipts: beside each checkpoint the hashes of all that the next step depends on, and of what it made of them."""

import hashlib
import json
import platform
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import jaxformer
from jaxformer.parallel.hosts import from_first, is_first
from jaxformer.training.checkpoint import RECEIPT, Checkpoints
from jaxformer.training.run import Run
from jaxformer.training.sources import CONFIG_FILE
from jaxformer.training.state import TrainState
from jaxformer.training.step import StepMetrics

PARAMS = "params/"
LIBRARIES = ("jaxformer", "jax", "jaxlib", "flax", "optax")


def hashes(tree: Any) -> dict[str, str]:
    """SHA-256 of the bytes, type and shape of each array of a tree, by name; arrays are read one at a time.

    With several processes all must call it, since each has a part of the arrays.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        array = np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))
        digest = hashlib.sha256(f"{array.dtype.name}{list(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.ndim else array.tobytes())
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = digest.hexdigest()
    return found


def joined(found: dict[str, str]) -> str:
    """One hash of the hashes of arrays."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def code_hash() -> str:
    """SHA-256 of the names and contents of the package's source files."""
    root, digest = Path(jaxformer.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


def circumstances(run: Run, folder: Path) -> dict[str, Any]:
    """Facts that a step depends on beside the state: configuration, data, tokenizer, code, versions and machine."""
    device, config = run.mesh.devices.flat[0], folder / CONFIG_FILE
    return {
        "configuration": hashlib.sha256(config.read_bytes()).hexdigest() if config.exists() else None,
        **run.facts,
        "code": code_hash(),
        **{name: version(name) for name in LIBRARIES},
        "machine": f"{platform.system()} {platform.machine()}",
        "device": f"{device.platform} {device.device_kind}",
        "processor": _processor() if device.platform == "cpu" else "",
        "devices": run.mesh.size,
        "processes": jax.process_count(),
    }


def _processor() -> str:
    """The model of the CPU, whose instructions decide how sums are rounded."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


def outcome(state: TrainState, metrics: StepMetrics) -> dict[str, Any]:
    """The loss of a step as its record has it, and the hashes of the parameters after it."""
    loss, weight = (float(value) for value in jax.device_get((metrics.sums["loss"], metrics.weight)))
    return {"loss": loss / (weight or 1.0), "parameters": hashes(state.params)}


def read_receipt(folder: Path) -> dict[str, Any] | None:
    """The receipt of a checkpoint; None if there is none, or a part of one."""
    try:
        found = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("parameters"), dict) else None


class Receipts:
    """Writes the receipts of a run: one with each checkpoint, and the next step into it when that is done."""

    def __init__(self, run: Run, checkpoints: Checkpoints) -> None:
        """Takes the run and its checkpoints; the code is hashed now, before its files can change."""
        self._run, self._checkpoints = run, checkpoints
        self._open: tuple[int, dict[str, Any]] | None = None  # the receipt that lacks the next step
        code_hash()

    def resume(self, step: int) -> None:
        """Goes on with the receipt of the checkpoint that a run resumes from, where nothing has changed since."""

        def unchanged() -> bytes:
            found = read_receipt(self._checkpoints.folder / str(step)) or {}
            now = circumstances(self._run, self._run.folder)
            alike = found and "next" not in found and all(found.get(key) == value for key, value in now.items())
            return json.dumps(found).encode() if alike else b""

        if known := from_first(unchanged):
            self._open = step, json.loads(known)

    def begin(self, step: int, state: TrainState) -> None:
        """Writes the receipt of a checkpoint that is being saved; one that it has already stays."""
        folder = self._checkpoints.folder / str(step)
        if from_first(lambda: b"" if read_receipt(folder) is None else b"known"):
            return
        every = hashes(state)
        params = {name.removeprefix(PARAMS): found for name, found in every.items() if name.startswith(PARAMS)}
        facts = {"step": step, **circumstances(self._run, self._run.folder)}
        self._open = step, {**facts, "state": joined(every), "parameters": params}
        self._write()

    def follow(self, step: int, state: TrainState, metrics: StepMetrics) -> None:
        """Adds a step that is done to the receipt of the checkpoint before it, if there is one."""
        if self._open is None:
            return
        before, receipt = self._open
        if step == before + 1:
            receipt["next"] = outcome(state, metrics)
            self._write()
        self._open = None

    def _write(self) -> None:
        assert self._open is not None
        if is_first():
            self._checkpoints.attach(self._open[0], json.dumps(self._open[1], indent=1) + "\n")
