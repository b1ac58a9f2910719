"""The cost of a training step on accelerators that are not on this machine: compiled for them, not run."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer.cost.hlo import Collective, Executed, between_slices, collectives, parse_program
from jaxformer.cost.hlo_cost import Operation, hbm_bytes, kernels, matmul_flops, operations
from jaxformer.cost.topology import Chip, described_devices
from jaxformer.data.token_cache import TokenCache
from jaxformer.functional.kernels.splash import kernel_flops, kernel_name, visible_share
from jaxformer.schema import UserError, local_path
from jaxformer.tokenizers import TokenizerConfig, add_special_tokens, train_tokenizer
from jaxformer.training.config import RunConfig
from jaxformer.training.console import Display, duration, number
from jaxformer.training.flops import PEAK_FLOPS
from jaxformer.training.forecast import gib, less_memory, peak_memory
from jaxformer.training.run import Run, Splits, check_spread, prepare


@dataclass(frozen=True)
class StepCost:
    """One training step on one chip; sizes are in bytes."""

    parameters: int
    optimizer: int  # the rest of the state: the optimizer's statistics and the average of the weights
    activations: int  # everything the step needs besides: activations, gradients, copies
    peak: int  # maximum in use: the three above, the batch and the program itself
    model_flops: float  # floating-point operations by the formula of ``training/flops.py``
    flops: float  # those of the matrix products that the program executes, recomputation included
    moved: float  # read from and written to main memory
    collectives: list[Collective]  # between the chips
    waited_for: list[Collective]  # those of them that nothing is computed beside
    operations: list[Operation]  # what the core runs one after the other
    kernels: list[str]  # in the program, without what their names say of their options
    seconds: float  # that compiling took
    between: float = 0.0  # sent to other slices over the data center's network

    @property
    def sent(self) -> float:
        """Bytes sent to other chips."""
        return sum(one.sent * one.times for one in self.collectives)

    def times(self, chip: Chip) -> dict[str, float]:
        """Seconds that each part of the chip is busy at its full speed, at least.

        ``in turn`` are the instructions of the core one after the other, each as long as its products or its memory
        takes, whatever is longer, and the collectives that it waits for. ``slices`` is the network between slices,
        where there are several.
        """
        peak = PEAK_FLOPS[chip.device_kind]
        core = math.fsum(o.times * max(o.flops / peak, o.bytes / chip.hbm_bandwidth) for o in self.operations)
        waiting = math.fsum(one.times * one.sent for one in self.waited_for) / chip.ici_bandwidth
        return {
            "compute": self.flops / peak,
            "memory": self.moved / chip.hbm_bandwidth,
            "network": self.sent / chip.ici_bandwidth,
            "in turn": core + waiting,
            **({"slices": self.between / chip.dcn_bandwidth} if self.between else {}),
        }

    def mfu_bound(self, chip: Chip) -> float:
        """Upper bound on the share of the peak that the model's FLOPs can reach (MFU).

        ``model FLOPs / peak / max(compute, memory, network, in turn)``: a roofline (Williams et al. 2009) of the step,
        and one of each of its instructions. It takes each part of the chip at the data sheet's speed. It leaves out
        what makes a real step slower: matrix products that do not fill the units, vector arithmetic, operands read more
        than once, the latency of collectives, and collectives that can use only some of the links. It may be above 1:
        the model's FLOPs count all scores (Chowdhery et al. 2022, appendix B), and a kernel skips those that are
        masked.
        """
        return self.model_flops / PEAK_FLOPS[chip.device_kind] / max(self.times(chip).values())


def shape_run(config: RunConfig, devices: Sequence[jax.Device]) -> Run:
    """A run with the right shapes whose batches come from a made-up text; no data is read."""
    check_spread(config, tuple(devices))
    tokenizer = train_tokenizer(TokenizerConfig(type="byte"), ("a",))
    add_special_tokens(tokenizer, config.task.special_tokens, config.task.sentinels)
    document, documents = 2 * config.sequence_length, 8
    tokens = np.zeros(documents * document, np.uint16)
    cache = TokenCache(Path(), tokens, np.arange(documents + 1, dtype=np.int64) * document)
    return Run(config, local_path(config.output_dir), tokenizer, Splits("shapes", "", cache, None), tuple(devices))


def step_cost(run: Run) -> StepCost:
    """Compiles the training step for the devices of the run and returns its cost on one of them."""
    lowered = run.lowered()
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None, "XLA:TPU says both"
    program = parse_program(text)
    of_kernel = attention_flops(run)
    return StepCost(
        parameters=_bytes_on_one((run.abstract.params, run.abstract_frozen)),
        optimizer=_bytes_on_one((run.abstract.opt_state, run.abstract.ema)),
        activations=memory.temp_size_in_bytes,
        peak=peak_memory(compiled),
        model_flops=run.flops_per_step / run.mesh.size,
        flops=matmul_flops(program) + math.fsum(one.times * of_kernel(one) for one in kernels(program)),
        moved=hbm_bytes(program),
        collectives=collectives(program),
        waited_for=collectives(program, waited_for=True),
        operations=operations(program, of_kernel),
        kernels=sorted({kernel_name(one.instruction.name) for one in kernels(program)}),
        seconds=seconds,
        between=between_slices(program),
    )


def fitting_cost(run: Run, chip: Chip) -> StepCost | str:
    """The cost of a step that fits on a chip, or in words how much memory it needs."""
    try:
        cost = step_cost(run)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return xla_need(str(error))
    return cost if cost.peak <= chip.hbm else f"{gib(cost.peak)}, {gib(cost.peak - chip.hbm)} too much"


def attention_flops(run: Run) -> Callable[[Executed], float]:
    """Returns the floating-point operations of an attention kernel, at least: those of scores that are not masked."""
    c = run.config.model
    share = visible_share(run.config.sequence_length, c.architecture != "encoder", c.window)

    def flops(one: Executed) -> float:
        shapes = [array.shape for array in one.operand_types if array.dtype in ("bf16", "f16", "f32")]
        return kernel_flops(one.instruction.name, shapes, share)

    return flops


def _bytes_on_one(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def compile_for(config: RunConfig, target: str, display: Display) -> dict[str, str]:
    """Compiles the run's training step for ``CHIP:TOPOLOGY`` and returns its cost on each chip.

    Raises:
        UserError: if the target is not known or libtpu is not installed, the configuration does not divide over the
            chips or is for pmap, or the step needs more memory than a chip has.
    """
    chip, devices = described_devices(target)
    if config.parallel.strategy == "pmap":
        raise UserError(
            f"--compile-for {target}: parallel.strategy is pmap, expected jit: pmap compiles for devices "
            "that are there; set parallel.strategy=jit, whose step computes the same"
        )
    shapes_suffice = config.model.vocab_size is not None and config.task.reads == "text"
    run = shape_run(config, devices) if shapes_suffice else prepare(config, display, tuple(devices))
    cost = fitting_cost(run, chip)
    if isinstance(cost, str):
        raise too_large(run, chip, target, cost)
    return report(run, chip, cost)


def too_large(run: Run, chip: Chip, target: str, need: str) -> UserError:
    """The error for a step that needs more memory than a chip has."""
    return UserError(
        f"--compile-for {target}: the step needs {need}, expected at most {gib(chip.hbm)} a chip; "
        f"{less_memory(run.config, split=True)}"
    )


def xla_need(error: str) -> str:
    """The memory in GiB that a program needs, from XLA:TPU's error.

    >>> xla_need("the total memory required for HLO temporaries (23.39G) exceeds available HBM (15.75G).")
    '23.39 GiB where XLA has 15.75 GiB, 7.64 GiB too much'
    """
    sizes = re.findall(r"([\d.]+)([KMG])\b", error)
    if len(sizes) < 2:
        return f"more memory than there is ({' '.join(error.split())[:200]})"
    need, have = (float(size) / {"G": 1, "M": 2**10, "K": 2**20}[unit] for size, unit in sizes[:2])
    return f"{need:.2f} GiB where XLA has {have:.2f} GiB, {need - have:.2f} GiB too much"


def report(run: Run, chip: Chip, cost: StepCost) -> dict[str, str]:
    """The cost of a step as lines by name, all but the first two for one chip."""
    c = run.config
    axes = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    busy = ", ".join(f"{name} {1000 * seconds:,.0f} ms" for name, seconds in cost.times(chip).items())
    rows, bound = c.training.batch_size, cost.mfu_bound(chip)
    return {
        "model": f"{c.model.type}, {run.size}, {c.model.dtype} compute, "
        f"remat {c.model.remat}, {rows:,} x {c.sequence_length:,} tokens a step in {c.training.accumulate} part(s)",
        "devices": f"{run.mesh.size} x {chip.device_kind}, {axes}; compiled in {duration(cost.seconds)}",
        "parameters": gib(cost.parameters),
        "optimizer state": gib(cost.optimizer),
        "activations": gib(cost.activations),
        "peak memory": f"{gib(cost.peak)} of {gib(chip.hbm)}",
        "kernels": ", ".join(cost.kernels) or "none, attention is as XLA compiles it",
        "FLOPs": f"{number(cost.flops)} executed, {number(cost.model_flops)} of the model",
        "bytes moved": f"{number(cost.moved)}B to and from memory, {number(cost.sent)}B to other chips"
        + (f", {number(cost.between)}B to other slices" if cost.between else ""),
        "busy at least": busy,
        "MFU at most": f"{bound:.0%}"
        + (" (the model's FLOPs count scores that the kernel skips)" if bound > 1 else ""),
        "collectives": "\n".join(map(collective_line, cost.collectives)) or "none",
    }


def collective_line(one: Collective) -> str:
    """One kind of collective: how often, what, how large, among how many.

    >>> collective_line(Collective("all-gather", 8_388_608, 16, 384))
    '   384 x all-gather of 8.39MB among 16, 3.02GB sent'
    """
    sent = number(one.sent * one.times)
    return f"{one.times:>6,} x {one.kind} of {number(one.bytes)}B among {one.group}, {sent}B sent"


def by_kind(collectives: list[Collective]) -> str:
    """Says in words each kind of collective of a step, its runs and what a chip sends in all of them."""
    kinds: dict[str, tuple[int, float]] = {}
    for one in collectives:
        times, sent = kinds.get(one.kind, (0, 0.0))
        kinds[one.kind] = times + one.times, sent + one.times * one.sent
    return "; ".join(f"{times:,} {kind} ({number(sent)}B)" for kind, (times, sent) in kinds.items())
