"""Tokens a second of greedy generation, GPT-2's shape, beside transformers on PyTorch; and how near to memory's speed.

    python benchmarks/generate.py                    # jaxformer alone
    python benchmarks/generate.py --compare torch    # side by side, the same weights and prompts

Every row is a process of its own; they take turns. With few tokens at a time a model writes as fast as its weights are
read: the roofline is the bytes of all weights that a step reads over the bandwidth measured in the same run.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from _floor import machine
from _timing import Worker, WorkerError, closing_all, print_table, serve, take_turns

PROMPT, NEW = 32, 64
# The sizes and, for the tests, small ones.
SIZES = {
    "124m": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "vocab_size": 50_257, "max_length": 1024},
    "tiny": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 101, "max_length": 128},
}
# Of jaxformer: what is handed to ``generate``.
OURS = {
    "float32": "jaxformer",
    "as loaded": "jaxformer, parameters as loaded",
    "bfloat16": "jaxformer, bfloat16 weights",
    "int8": "jaxformer, int8 weights",
}
PEERS = {"torch": "transformers, PyTorch"}


class Case(NamedTuple):
    """One row of the table, in a process of its own."""

    kind: str
    batch: int
    size: str
    folder: str


def prompts(case: Case) -> np.ndarray:
    return np.random.default_rng(0).integers(1, SIZES[case.size]["vocab_size"], (case.batch, PROMPT))


def make_model(folder: str, size: str) -> None:
    """Writes a model of this size with initial parameters, which all rows then open."""
    import jax
    import jax.numpy as jnp
    from flax.linen import unbox

    import jaxformer
    from jaxformer.families import build_model, model_config
    from jaxformer.models import TransformerConfig

    model = build_model(TransformerConfig(**model_config({"type": "gpt2", **SIZES[size]})))
    params = unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    jaxformer.save_pretrained(folder, model, params)


def ours(case: Case) -> tuple[Callable[[], np.ndarray], float]:
    """A call that writes, and the bytes of weights that one step reads."""
    from jaxformer.training.memory import keep_freed_memory

    keep_freed_memory()  # before JAX is imported, as the command line does
    import jax

    import jaxformer
    from jaxformer.generation import generate, prepare

    model, params = jaxformer.AutoModelForCausalLM.from_pretrained(case.folder)
    if case.kind != "as loaded":
        params = jax.block_until_ready(prepare(model, params, None if case.kind == "float32" else case.kind))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    size = sum(leaf.nbytes for path, leaf in leaves if "position" not in str(path))  # of that table it reads a row
    ids = prompts(case)
    return lambda: generate(model, params, ids, max_new_tokens=NEW, eos_token_id=()).tokens, size


def theirs(case: Case, device: str = "cpu", dtype: str = "float32") -> tuple[Callable[[], np.ndarray], float]:
    """The same by ``transformers``; on a GPU with a cache of one size, for which it compiles the step of a token."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(case.folder, attn_implementation="sdpa").eval()
    model.to(device, getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    ids = torch.tensor(prompts(case), device=device)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}
    if device == "cuda":
        options["cache_implementation"] = "static"

    def write() -> np.ndarray:
        return np.asarray(model.generate(ids, **options)[:, PROMPT:].cpu().numpy())

    size = sum(parameter.nbytes for name, parameter in model.named_parameters() if "wpe" not in name)
    return write, float(size)


def bandwidth() -> float:
    """Bytes a second at which both cores read memory: sums of arrays far larger than the caches, the best of ten."""
    from concurrent.futures import ThreadPoolExecutor

    arrays = [np.ones(2**26, np.float32) for _ in range(2)]
    best = 0.0
    with ThreadPoolExecutor(len(arrays)) as pool:
        for _ in range(10):
            start = time.perf_counter()
            list(pool.map(np.sum, arrays))
            best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - start))
    return best


def work(case: Case) -> None:
    """A worker: answers with what it wrote, the bytes it reads a token, or the seconds of a call."""
    write, size = (theirs if case.kind in PEERS else ours)(case)

    def answer(what: str) -> Any:
        if what == "bandwidth":
            return bandwidth()
        start = time.perf_counter()
        tokens = write()
        seconds = time.perf_counter() - start
        return [seconds] if what == "seconds" else {"tokens": tokens.tolist(), "bytes": size, "first": seconds}

    serve(answer)


def start(case: Case) -> Worker:
    command = [__file__, "--worker", case.kind, "--batch", str(case.batch), "--sizes", case.size]
    return Worker((OURS | PEERS)[case.kind], [*command, "--folder", case.folder], {"JAX_PLATFORMS": "cpu"})


def compare(size: str, batch: int, kinds: list[str], rounds: int, folder: str) -> list[list[str]]:
    """The rows of one batch size."""
    with closing_all() as workers:
        facts = {}
        for kind in kinds:
            workers.append(start(Case(kind, batch, size, folder)))
            facts[workers[-1].name] = workers[-1].ask(what="facts")
        first = facts[OURS["float32"]]["tokens"]
        for kind in kinds:
            same = facts[(OURS | PEERS)[kind]]["tokens"] == first
            if kind in ("as loaded", *PEERS) and not same:
                raise WorkerError(f"{(OURS | PEERS)[kind]} wrote other tokens than jaxformer")
        speed = workers[0].ask(what="bandwidth")
        times = take_turns(workers, rounds, what="seconds")
    rows = []
    peer = next((times[PEERS[kind]] for kind in kinds if kind in PEERS), None)
    for kind in kinds:
        name = (OURS | PEERS)[kind]
        median = statistics.median(times[name])
        spread = f"{batch * NEW / max(times[name]):.0f} to {batch * NEW / min(times[name]):.0f}"
        roof = batch * speed / facts[name]["bytes"]
        share = batch * NEW / median / roof
        ratio = "" if peer is None else f"{statistics.median(peer) / median:.2f}"
        rows.append([str(batch), name, f"{batch * NEW / median:.1f}", spread, ratio, f"{roof:.0f}", f"{share:.0%}"])
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", choices=list(PEERS), help="beside this library (extra benchmark)")
    parser.add_argument("--sizes", choices=list(SIZES), default="124m")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--kinds", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--rounds", type=int, default=7, help="times that each process takes its turn")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(Case(options.worker, options.batch, options.sizes, options.folder))
        return 0
    kinds = ["float32", *(kind for kind in options.kinds if kind != "float32")]
    kinds += [options.compare] if options.compare else []
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, options.sizes)
        rows = []
        for batch in options.batches:
            rows += compare(options.sizes, batch, kinds, options.rounds, folder)
    header = ["batch", "", "tokens/s", "slowest to fastest", "times the peer", "roofline", "share of it"]
    title = f"Greedy generation, {options.sizes}, {PROMPT} prompt and {NEW} new tokens, float32 arithmetic\n{machine()}"
    print_table(title, header, rows, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
