"""The floor under a step's time: its matrix products, each timed alone; and what the machine's products run at."""

import importlib.util
import math
import os
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from _timing import time_calls

SECONDS, CALLS = 0.15, 5
PROBES = ((1024, 384, 1536), (2048, 2048, 2048))  # rows, inner, columns


class Product(NamedTuple):
    """A batch of matrix products, ``[batch, rows, inner] x [batch, inner, columns]``."""

    batch: int
    rows: int
    inner: int
    columns: int
    dtype: str

    @property
    def flops(self) -> int:
        """Floating-point operations, 2 per multiply-add."""
        return 2 * self.batch * self.rows * self.inner * self.columns


def products(jaxpr: Any, times: int = 1) -> Iterator[tuple[Product, int]]:
    """Yields the products of a traced program, and how often each runs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (v.aval.shape for v in equation.invars)
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            inner = math.prod(left[axis] for axis in contracted)
            batch = math.prod(left[axis] for axis in batched)
            rows, columns = (math.prod(shape) // (inner * batch) for shape in (left, right))
            yield Product(batch, rows, inner, columns, str(equation.invars[0].aval.dtype)), times
            continue
        turns = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            for inner_jaxpr in value if isinstance(value, (tuple, list)) else (value,):
                inner_jaxpr = getattr(inner_jaxpr, "jaxpr", inner_jaxpr)
                if hasattr(inner_jaxpr, "eqns"):
                    yield from products(inner_jaxpr, turns)


def time_product(product: Product) -> float:
    """Milliseconds of the product alone, compiled by XLA, as it is fastest: each matrix whole and in order."""
    import jax
    import jax.numpy as jnp

    batch = (product.batch,) if product.batch > 1 else ()
    left = jnp.full((*batch, product.rows, product.inner), 0.5, product.dtype)
    right = jnp.full((*batch, product.inner, product.columns), 0.5, product.dtype)
    run = jax.jit(jnp.matmul)
    return median_time(lambda: jax.block_until_ready(run(left, right)))


def median_time(call: Callable[[], Any]) -> float:
    """Milliseconds of a call, after one that warms up."""
    call()
    return statistics.median(time_calls(call, SECONDS, CALLS))


def floor(jaxpr: Any) -> float:
    """Returns the milliseconds of all products of a traced program, each timed alone."""
    counts: Counter[Product] = Counter()
    for product, times in products(jaxpr):
        counts[product] += times
    return sum(times * time_product(product) for product, times in counts.items())


def machine() -> str:
    """Describes the CPU and what products of XLA and, where it is installed, of PyTorch run at."""
    text = f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores; float32 products of "
    text += " and ".join(" x ".join(map(str, probe)) for probe in PROBES)
    speeds = {
        "XLA": [Product(1, *probe, "float32").flops / time_product(Product(1, *probe, "float32")) for probe in PROBES]
    }
    if importlib.util.find_spec("torch"):
        speeds["PyTorch"] = [torch_speed(*probe) for probe in PROBES]
    said = [f"{name} {' and '.join(f'{speed / 1e6:,.0f}' for speed in found)}" for name, found in speeds.items()]
    return f"{text}: {', '.join(said)} GFLOP/s"


def cpu_name() -> str:
    """The name of the processor, with its family and model where names say little."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def torch_speed(rows: int, inner: int, columns: int) -> float:
    """Operations per millisecond of one product in PyTorch."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    left, right = torch.full((rows, inner), 0.5), torch.full((inner, columns), 0.5)
    return 2 * rows * inner * columns / median_time(lambda: torch.matmul(left, right))
