"""Warnings before a run begins: memory that its step lacks, and data that it reads too often."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from jaxformer.training.config import RunConfig
from jaxformer.training.run import Run

MANY_EPOCHS = 1000


def forewarnings(run: Run, step: int = 0) -> list[str]:
    """Warnings of a run from ``step`` on, a line each; the training step is compiled for them."""
    return [line for line in (memory_warning(run, step), epochs_warning(run)) if line is not None]


def start_warnings(run: Run, step: int) -> list[str]:
    """``forewarnings`` where training begins: nothing is compiled that is not needed.

    The step that was compiled here is the one that trains; but ``pmap`` would compile it again.
    """
    if run.config.parallel.strategy == "jit":
        return forewarnings(run, step)
    return [line for line in (epochs_warning(run),) if line is not None]


def peak_memory(compiled: Any) -> int:
    """Bytes that a compiled program needs on each device: arguments, results, temporary arrays and its own code."""
    memory = compiled.memory_analysis()
    assert memory is not None, "every backend of JAX analyses its memory"
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def memory_warning(run: Run, step: int = 0) -> str | None:
    """A line if the training step needs more memory than there is, else None."""
    device = run.mesh.local_devices[0]
    available = device_memory(device)
    if available is None:
        return None
    each = peak_memory(run.lowered(step).compile())
    # Simulated devices of a CPU share the machine's memory.
    sharing = len(run.mesh.local_devices) if device.platform == "cpu" else 1
    if each * sharing <= available:
        return None
    parts = f" ({sharing} simulated devices of {gib(each)})" if sharing > 1 else ""
    where = "this machine" if device.platform == "cpu" else f"each {device.device_kind}"
    advice = less_memory(run.config, split=device.platform != "cpu")
    return f"the training step needs {gib(each * sharing)}{parts} of memory, {where} has {gib(available)}; {advice}"


def less_memory(config: RunConfig, split: bool) -> str:
    """Keys that lower the memory of a step, with their values; with ``split`` also those that need more devices."""
    t, fsdp = config.training, f"parallel.fsdp (now {config.parallel.fsdp}) or " if split else ""
    return (
        f"raise {fsdp}training.accumulate (now {t.accumulate}), set model.remat to full (now {config.model.remat}), or "
        f"lower training.batch_size (now {t.batch_size})"
    )


def epochs_warning(run: Run) -> str | None:
    """A line if the run reads its data more than ``MANY_EPOCHS`` times, else None."""
    steps, batches = run.config.training.steps, run.train_batches
    epochs = steps / batches.steps_per_epoch
    if epochs <= MANY_EPOCHS:
        return None
    rows = batches.rows.num_rows
    return (
        f"training.steps is {steps:,}: with {batches.batch_size:,} rows a step, each of the {rows:,} rows of data is "
        f"read {epochs:,.0f} times; lower it (an epoch is {batches.steps_per_epoch:,.1f} steps), or train on more data"
    )


def device_memory(device: jax.Device) -> int | None:
    """Bytes that programs may use on a device, or on the whole machine for a CPU; None where nothing says it."""
    if device.platform == "cpu":
        return machine_memory()
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(limit)


def machine_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory of this machine, or the lowest limit of the control groups (a container's) of this process."""
    limits = list(_control_group_limits(root))
    with suppress(AttributeError, ValueError, OSError):  # not a POSIX system
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def _control_group_limits(root: Path) -> Iterator[int]:
    """Memory limits of the groups that this process is in, of version 2 and 1, from the innermost out."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                top, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            # In a container the path may be that of the host, and only the top be there.
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(top):
                    with suppress(OSError, ValueError):  # no file, or "max"
                        yield int((folder / name).read_text())


def gib(size: float) -> str:
    """Bytes in GiB.

    >>> gib(3 * 2**29)
    '1.50 GiB'
    """
    return f"{size / 2**30:.2f} GiB"
