"""The cost of a run, from shapes alone: no parameter is created and no step is run."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.parallel.mesh import batch_devices
from jaxformer.training.console import duration, number
from jaxformer.training.flops import peak_flops
from jaxformer.training.run import Run, size_of
from jaxformer.training.sources import CHECKPOINTS

# Typical share of a device's matrix-product peak that a training step reaches; only for the estimated time.
TYPICAL_USE = 0.4


def matmul_flops(devices: int) -> float:
    """Measured FLOP/s of a 2048-wide float32 matrix product on one device of a CPU machine, times nothing else."""
    x = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    start = time.perf_counter()
    for _ in range(3):
        product(x, x).block_until_ready()
    # Simulated CPU devices share the machine's cores.
    return 3 * 2 * 2048**3 / (time.perf_counter() - start) / devices


def plan(run: Run) -> dict[str, str]:
    """The run in a few lines: devices, parameters, batch, tokens, memory, steps and time."""
    c, mesh = run.config, run.mesh
    t = c.training
    devices: Any = list(mesh.devices.flat)
    tokens_per_step = t.batch_size * c.sequence_length
    per_device = t.batch_size // batch_devices(mesh) // t.accumulate
    batches = run.train_batches
    memory = run.lowered().compile().memory_analysis()
    assert memory is not None, "every backend of JAX analyses its memory"
    state, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = peak_flops(devices[0])
    speed = (peak or matmul_flops(len(devices))) * TYPICAL_USE * len(devices)
    flops = run.flops_per_step
    seconds = t.steps * flops / speed
    basis = "of the data sheet's peak" if peak else "of a matrix product measured now"
    done = [int(p.name) for p in (run.folder / CHECKPOINTS).glob("*") if p.name.isdigit()]
    validation = "none" if run.splits.validation is None else size_of(run.splits.validation)
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return {
        "model": f"{c.model.type}, {run.size}, {c.model.dtype} compute",
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {axes}",
        "data": f"{run.splits.name}: {run.splits.size} to train on, for validation {validation}",
        "batch": f"{t.batch_size} rows = {per_device} per device x {batch_devices(mesh)} devices x {t.accumulate} "
        f"accumulated; {c.sequence_length} tokens a row, {tokens_per_step:,} tokens a step",
        "epoch": f"{batches.rows.num_rows:,} rows, {batches.steps_per_epoch:,.1f} steps",
        "memory": f"{state / 2**20:,.0f} MiB of state and batch + {temporary / 2**20:,.0f} MiB in a step, per device",
        "steps": f"{t.steps:,} = {t.steps / batches.steps_per_epoch:.2f} epochs, {number(t.steps * flops)}FLOP"
        + (f"; {run.folder} is at step {max(done):,}" if done else ""),
        "time": f"about {duration(seconds)}, guessed at {TYPICAL_USE:.0%} {basis}",
    }
