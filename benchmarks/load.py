"""Loading the same GPT-2 in jaxformer and in PyTorch ``transformers``: time and memory, on the CPU of this machine.

    python benchmarks/load.py                      # jaxformer alone
    pip install -e ".[benchmark]" && python benchmarks/load.py --compare torch [--markdown]

``jaxformer.hub.save_pretrained`` writes a model of random parameters as ``model.safetensors`` into a temporary folder;
both read it with ``AutoModelForCausalLM.from_pretrained``, as float32 like the file, and as bfloat16.

Every load has a process of its own, and they take turns. It begins when the libraries are imported and have made their
first array, and ends when a value of every page of every parameter was read: PyTorch leaves a file mapped into memory,
and would otherwise be measured before it has loaded anything. The file is in the system's cache, so that the disk is
not measured. Memory is what the system counts as resident (``VmHWM`` of Linux, mapped pages of the file included), at
its highest until that moment; "above libraries" is without what the process had before the load. Before the table is
printed, the parameters that both loaded are compared.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _timing import print_table

SHAPES = {
    "tiny": {"vocab_size": 64, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_length": 16},
    "small": {"vocab_size": 8_192, "hidden_size": 512, "num_layers": 8, "num_heads": 8},
    "gpt2": {"vocab_size": 50_257},
}
JAXFORMER, TORCH = "jaxformer", "torch"
NAMES = {JAXFORMER: "jaxformer", TORCH: "PyTorch transformers"}
DTYPES = ("float32", "bfloat16")
VALUES_A_PAGE = 1024  # at 4 bytes; a page of bfloat16 is then read twice
MIB = 2**20

Measured = dict[str, Any]


def memory(key: str) -> int:
    """A line of this process's account, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split(f"{key}:")[1].split()[0])


def write_model(folder: Path, shape: str) -> None:
    """A GPT-2 of random parameters."""
    import flax.linen as nn
    import jax

    from jaxformer.families import model_config
    from jaxformer.hub import save_pretrained
    from jaxformer.hub.kinds import abstract_params, build
    from jaxformer.models.config import TransformerConfig

    model = build(TransformerConfig(**model_config({"type": "gpt2", **SHAPES[shape]})), "causal_lm")
    random = np.random.default_rng(0)
    shapes = nn.unbox(abstract_params(model))
    save_pretrained(folder, model, jax.tree.map(lambda a: random.standard_normal(a.shape, np.float32), shapes))


def jaxformer_load(folder: Path, dtype: str) -> Callable[[], Iterator[np.ndarray]]:
    """The function that loads with jaxformer and gives every parameter; its libraries are imported."""
    import jax

    from jaxformer.hub import AutoModelForCausalLM

    jax.numpy.zeros(1).block_until_ready()

    def load() -> Iterator[np.ndarray]:
        params = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).params
        return (np.asarray(value) for value in jax.tree.leaves(params))

    return load


def torch_load(folder: Path, dtype: str) -> Callable[[], Iterator[np.ndarray]]:
    """The same with PyTorch; the values of bfloat16 are given as float32, whose sums NumPy can take."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.zeros(1)
    kind = getattr(torch, dtype)

    def load() -> Iterator[Any]:
        # The class that AutoModelForCausalLM finds for this file, so that its module is imported already.
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=kind)
        assert model.dtype == kind
        return (value.detach() for value in model.parameters())

    return load


def measure(kind: str, folder: Path, dtype: str) -> Measured:
    """Loads once: seconds, memory before and at its highest, the parameters' bytes and the sum of their squares."""
    load = {JAXFORMER: jaxformer_load, TORCH: torch_load}[kind](folder, dtype)
    before, start = memory("VmRSS"), time.perf_counter()
    params = list(load())
    for value in params:
        float(value.reshape(-1)[::VALUES_A_PAGE].sum())
    seconds, peak = time.perf_counter() - start, memory("VmHWM")
    squares = sum(float((value**2).sum()) for value in (to_float32(value) for value in params))
    sizes = [value.nbytes for value in params]
    return {
        "seconds": seconds,
        "peak": peak,
        "above": peak - before,
        "size": sum(sizes),
        "largest": max(sizes),
        "squares": squares,
    }


def to_float32(value: Any) -> Any:
    """A parameter of either library as float32."""
    return value.astype(np.float32) if isinstance(value, np.ndarray) else value.float()


def run(*arguments: str) -> Measured:
    """What this file, started with these arguments, answers.

    Raises:
        RuntimeError: if it failed; the message is what it said last.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, __file__, "--worker", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(result.stdout.splitlines()[-1])


def compare(kinds: list[str], shape: str, dtypes: list[str], repeats: int) -> dict[tuple[str, str], list[Measured]]:
    """All loads by dtype and kind; the kinds take turns.

    Raises:
        RuntimeError: if a load failed, or two loaded other values.
    """
    found: dict[tuple[str, str], list[Measured]] = {(dtype, kind): [] for dtype in dtypes for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        run("write", folder, shape)
        for _ in range(repeats):
            for (dtype, kind), loads in found.items():
                loads.append(run(kind, folder, dtype))
    for dtype in dtypes:
        ours, theirs = found[dtype, JAXFORMER][0], found[dtype, kinds[-1]][0]
        if ours["size"] != theirs["size"] or not np.isclose(ours["squares"], theirs["squares"], rtol=1e-5):
            raise RuntimeError(f"{kinds[-1]} loaded other parameters: {theirs}, expected {ours}")
    return found


def table_rows(shape: str, found: dict[tuple[str, str], list[Measured]]) -> list[list[str]]:
    """A row for each, jaxformer first: medians."""
    rows = []
    for (dtype, kind), loads in found.items():
        middle = {key: statistics.median(load[key] for load in loads) for key in loads[0]}
        ours = statistics.median(load["seconds"] for load in found[dtype, JAXFORMER])
        limit = middle["size"] + middle["largest"]
        numbers = [
            f"{middle['seconds']:.2f}",
            f"{min(load['seconds'] for load in loads):.2f}",
            f"{middle['peak'] / MIB:,.0f}",
            f"{middle['above'] / MIB:,.0f}",
            f"{middle['above'] / middle['size']:.2f}",
            f"{middle['above'] / limit:.2f}",
            f"{middle['seconds'] / ours:.2f}",
        ]
        rows.append([f"{shape}, {dtype}: {middle['size'] / MIB:,.0f} MiB", NAMES[kind], *numbers])
    return rows


def main() -> int:
    """The command line; ``--worker`` is how the benchmark starts its own processes."""
    if sys.argv[1:2] == ["--worker"]:
        kind, folder, which = sys.argv[2:]
        if kind == "write":
            write_model(Path(folder), which)
        print(json.dumps({} if kind == "write" else measure(kind, Path(folder), which)))
        return 0
    parser = argparse.ArgumentParser(description="Time and memory of loading a model, side by side.")
    parser.add_argument("--compare", choices=[TORCH], help="measure this peer too")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["gpt2"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="loads of each (default %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    missing = [name for name in ("torch", "transformers") if options.compare and not importlib.util.find_spec(name)]
    if missing:
        print(f'error: {" and ".join(missing)} not installed; pip install -e ".[benchmark]"', file=sys.stderr)
        return 2
    kinds = [JAXFORMER, *([options.compare] if options.compare else [])]
    rows = []
    try:
        for shape in options.shapes:
            rows += table_rows(shape, compare(kinds, shape, options.dtypes, options.repeats))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    memory_columns = ("peak MiB", "above libraries MiB", "/ model", "/ (model + largest)")
    header = ("model", "implementation", "median s", "min s", *memory_columns, "time / ours")
    print_table("Loading a GPT-2 from safetensors", header, rows, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
