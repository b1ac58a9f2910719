"""Checkpoints: Orbax (asynchronous, atomic), and beside each a list of its files by which damage is detected."""

import contextlib
import json
import logging
import shutil
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxformer.atomic import write_atomically
from jaxformer.parallel.hosts import from_first, is_first
from jaxformer.schema import UserError

logger = logging.getLogger(__name__)

MANIFEST, RECEIPT = "files.json", "receipt.json"


def _file_sizes(folder: Path) -> dict[str, int]:
    # A receipt is completed later.
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".partial" and p.name != RECEIPT)
    return {str(p.relative_to(folder)): p.stat().st_size for p in files}


def find_damage(folder: Path) -> str | None:
    """Describes the first damaged file of a checkpoint; None if there is none.

    A checkpoint without a list is intact: its process died after Orbax committed it and before the list was written.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        return None
    try:
        expected: dict[str, int] = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return f"{manifest} is not readable"
    for name, size in expected.items():
        file = folder / name
        if not file.exists():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size} bytes, expected {size}"
    return None


class Checkpoints:
    """The checkpoints of one run, ``folder/<step>/``: the newest ``keep_last`` and the ``keep_best`` of lowest loss."""

    def __init__(self, folder: Path, keep_last: int = 2, keep_best: int = 1, *, read_only: bool = False) -> None:
        self.folder, self._keep_last, self._keep_best = folder, keep_last, keep_best
        # What looks unfinished may be what the run's own process is writing now.
        self._cleans = not read_only
        self._damaged = False
        self._lock = threading.Lock()
        # What this process saved: the folder of a shared file system may show it to others late.
        self._saved: set[int] = set()
        self._pending: tuple[int, Any] | None = None
        self._receipts: dict[int, str] = {}  # to be written into checkpoints that are not committed yet

    @cached_property
    def _checkpointer(self) -> Any:
        """Orbax's, which remembers what is in the folder, so it is opened once that is settled."""
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["loss"],
            reverse=True,  # the last of descending losses are the best
            n=self._keep_best,
            keep_checkpoints_without_metrics=False,
        )
        policy = policies.AnyPreservationPolicy([policies.LatestN(self._keep_last), best])
        return ocp.training.Checkpointer(
            self.folder.absolute(), preservation_policy=policy, cleanup_tmp_directories=self._cleans
        )

    def _close(self) -> None:
        if (opened := self.__dict__.pop("_checkpointer", None)) is not None:
            opened.close()

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, oldest first."""
        return sorted(int(p.name) for p in self.folder.glob("*") if p.name.isdigit())

    def save(self, step: int, state: Any, loss: float | None = None) -> None:
        """Starts writing; returns once the next step may donate the state's buffers.

        An existing checkpoint is kept, since a step has one state; by the validation loss the best are kept. Raises
        ``UserError`` if this or the previous checkpoint could not be written.
        """
        self.wait()
        if step in self._saved:
            return
        self._saved.add(step)
        try:
            metrics = None if loss is None else {"loss": loss}
            response = self._checkpointer.save_async(step, state, metrics=metrics)
            response.on_complete(lambda _: self._list_files(step))
            self._pending = (step, response)
        except Exception as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Waits for the checkpoint being written; a ``UserError`` says that it failed and names the last good one."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
            self._list_files(step)
        except Exception as error:
            raise self._failed(step, error) from error

    def attach(self, step: int, receipt: str) -> None:
        """Writes a receipt beside a checkpoint, or replaces it; once it is committed, if it is still being written."""
        with self._lock:
            self._receipts[step] = receipt
            self._write_receipt(step)

    def _write_receipt(self, step: int) -> None:
        folder = self.folder / str(step)
        if folder.exists() and step in self._receipts:
            with contextlib.suppress(FileNotFoundError):  # the checkpoint is being deleted
                write_atomically(folder / RECEIPT, self._receipts.pop(step))

    def _list_files(self, step: int) -> None:
        """Writes the list of a committed checkpoint's files, once; called by Orbax's thread and by ``wait``."""
        if not is_first():
            return
        folder = self.folder / str(step)
        manifest = folder / MANIFEST
        with self._lock:
            if folder.exists() and not manifest.exists():
                write_atomically(manifest, json.dumps(_file_sizes(folder), indent=1))
            self._write_receipt(step)

    def _failed(self, step: int, error: Exception) -> UserError:
        good = [s for s in self.steps() if s != step and find_damage(self.folder / str(s)) is None]
        last = f"the last good one is step {good[-1]}" if good else "there is no earlier one"
        text = " ".join(str(error).split())
        reason = "the disk is full" if _is_disk_full(error) else text[:300] or type(error).__name__
        return UserError(
            f"checkpoint of step {step} could not be written to {self.folder}: {reason}; {last}; "
            "free some space and run the same command to resume"
        )

    def read(self) -> dict[str, Any]:
        """The newest intact checkpoint as it was written, a nested dict of NumPy arrays; else a ``UserError``."""
        for step in reversed(self.steps()):
            if find_damage(self.folder / str(step)) is None:
                return self._read(step)
        raise UserError(f"no checkpoint in {self.folder} can be used, expected one; train the run first")

    def _read(self, step: int) -> dict[str, Any]:
        metadata = self._checkpointer.metadata(step).metadata
        as_numpy = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
        return self._checkpointer.load(step, as_numpy)

    def restore(self, abstract: Any) -> tuple[int, Any] | None:
        """The newest intact checkpoint, as (step, state), each array with the sharding of ``abstract``.

        A damaged one is named in a warning and renamed to ``damaged-<step>``, and the one before it is tried.

        Raises:
            UserError: if checkpoints exist and none can be used, or the state has other shapes or parts; with several
                processes also if files that look whole cannot be loaded, since the others may have loaded theirs.
        """
        while (step := self._newest_whole()) is not None:
            folder = self.folder / str(step)
            try:
                self._check_shapes(step, abstract)
                state = self._checkpointer.load(step, abstract)
                self._saved.add(step)
                return step, state
            except UserError:
                raise
            except Exception as error:  # what Orbax raises for a damaged file depends on the file
                reason = " ".join(str(error).split())[:300]
                damage = f"{folder} cannot be loaded: {reason}"
                if jax.process_count() > 1:
                    raise UserError(f"{damage}; move it away to resume from the checkpoint before it") from error
                if self._can_be_read(step):
                    raise UserError(
                        f"checkpoint of step {step} is intact, but its tree differs from this run's, perhaps only in "
                        f"empty parts; use the config and the version of jaxformer that it was made with ({reason})"
                    ) from error
                self._set_aside(step, damage)
        return None

    def _can_be_read(self, step: int) -> bool:
        """True if a checkpoint is intact, even if its tree is not the one that was asked for."""
        try:
            self._read(step)
        except Exception:  # as in ``restore``
            return False
        return True

    def _newest_whole(self) -> int | None:
        """The newest step whose files are complete, as the first process sees it; renames damaged checkpoints."""

        def choose() -> bytes:
            for step in reversed(self.steps()):
                damage = find_damage(self.folder / str(step))
                if damage is None:
                    return str(step).encode()
                self._set_aside(step, damage)
            if self._damaged:
                raise UserError(f"no checkpoint in {self.folder} can be used, expected one; choose another output_dir")
            return b""

        found = from_first(choose)
        return int(found) if found else None

    def _set_aside(self, step: int, damage: str) -> None:
        logger.warning("checkpoint of step %d is damaged: %s; trying the one before it", step, damage)
        self._damaged = True
        self._saved.discard(step)
        folder = self.folder / str(step)
        self._close()
        target = folder.with_name(f"damaged-{folder.name}")
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)

    def _check_shapes(self, step: int, abstract: Any) -> None:
        """Compares the trees first, since Orbax's own message for another shape is unreadable."""
        metadata = self._checkpointer.metadata(step).metadata
        if metadata is None:
            raise ValueError("its metadata cannot be read")
        saved = _named_shapes(metadata)
        wanted = _named_shapes(abstract)
        changed = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
        if changed:
            name = changed[0]
            raise UserError(
                f"checkpoint of step {step}: {name} is {saved.get(name, 'absent')}, expected "
                f"{wanted.get(name, 'absent')} ({len(changed)} differ); use the config it was made with"
            )

    def close(self) -> None:
        """Waits for the checkpoint being written and closes Orbax."""
        try:
            self.wait()
        finally:
            # After a failed save Orbax raises the same error here once more; it was reported when it happened.
            with contextlib.suppress(Exception):
                self._close()


def load_step(folder: Path, step: int, abstract: Any) -> Any:
    """The state of one checkpoint of a run, with the shardings of ``abstract``; nothing in the folder is changed.

    Raises:
        UserError: there is none, it is damaged, or it has other shapes or parts.
    """
    path = folder / str(step)
    damage = find_damage(path) if path.is_dir() else f"{path} does not exist"
    if damage is not None:
        raise UserError(f"{damage}; expected a whole checkpoint of step {step}")
    try:
        return ocp.load(path.absolute(), abstract)
    except Exception as error:  # what Orbax raises depends on the file
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} cannot be loaded: {reason}; use the config it was made with") from error


def _named_shapes(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) == 28 or "No space left" in str(error) or "ENOSPC" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
