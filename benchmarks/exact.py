"""Exact numerics: where the bits of fast numerics move, that those of exact ones do not, and the price.

    python benchmarks/exact.py                 # both tables, then the price of a training step and of generation
    python benchmarks/exact.py --families gpt2 t5
    python benchmarks/exact.py --kills 20      # a run killed at random over 1, 4, 2 and 8 devices: one loss column
    python benchmarks/exact.py --ppo 200       # the gap between sampler and trainer in so many steps

An entry of a table is ``=`` where all bits are those of the row in a batch of 64, else the largest difference.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _floor import machine
from _timing import print_table

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 512,
    "max_length": 64,
    "unroll": 1,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
BATCHES = (1, 2, 3, 8)
ROWS, LENGTH, ROOM = 64, 24, 32
COLUMNS = ("family", *(f"batch {b}" for b in BATCHES), "left padding", "right padding", "cached")

PRICED = {
    "gpt2 nano": {"type": "gpt2", "hidden_size": 192, "num_layers": 4, "num_heads": 6},
    "bert nano": {"type": "bert", "hidden_size": 192, "num_layers": 4, "num_heads": 6},
    "t5 nano": {"type": "t5", "hidden_size": 192, "num_layers": 4, "num_heads": 6, "head_size": 32},
}


def random_params(model: Any, ids: Any) -> Any:
    """Parameters larger than an initialisation, so that differences show."""
    import flax.linen as nn
    import jax

    draw = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), ids[:1, :2]))["params"]
    return jax.tree.map(lambda leaf: np.float32(0.1 * draw.standard_normal(leaf.shape)), shapes)


def table_row(family: str, numerics: str) -> list[str]:
    """The differences of one family from the rows in a batch of 64."""
    import jax

    from jaxformer.families import build_model, model_config
    from jaxformer.models import TransformerConfig, init_cache

    c = TransformerConfig(**model_config({"type": family, **SIZES, "numerics": numerics}))
    model, ids = build_model(c), np.random.default_rng(1).integers(3, 1024, (ROWS, LENGTH)).astype(np.int32)
    params, two = random_params(model, ids), c.architecture == "encoder_decoder"

    @jax.jit
    def scores(params: Any, ids: Any, mask: Any, target: Any) -> Any:
        given = {"decoder_input_ids": target} if two else {}
        out = model.apply({"params": params}, ids, mask, **given)
        return out.last_hidden_state if c.architecture == "encoder" else out.logits

    def rows(ids: Any, mask: Any = None) -> np.ndarray:
        return np.asarray(scores(params, ids, mask, np.ascontiguousarray(ids[:, :LENGTH]) if two else None))

    whole = rows(ids)

    def differs(found: np.ndarray) -> str:
        expected = whole[: len(found)]
        return "=" if found.tobytes() == expected.tobytes() else f"{np.abs(found - expected).max():.0e}"

    cells = [differs(rows(ids[:b])) for b in BATCHES]
    for begin in (ROOM - LENGTH, 0):
        padded, mask = np.zeros((8, ROOM), np.int32), np.zeros((8, ROOM), np.int32)
        padded[:, begin : begin + LENGTH], mask[:, begin : begin + LENGTH] = ids[:8], 1
        target = np.ascontiguousarray(ids[:8]) if two else None
        found = np.asarray(scores(params, padded, mask, target))
        cells.append(differs(found if two else np.ascontiguousarray(found[:, begin : begin + LENGTH])))
    if c.architecture == "encoder":
        return [family, *cells, "-"]
    cache, source = init_cache(c, 3, ROOM), None
    if two:
        source = jax.jit(lambda p, i: model.apply({"params": p}, i, method="encode"))(params, ids[:3])

    @jax.jit
    def step(params: Any, source: Any, ids: Any, cache: Any) -> Any:
        if two:
            hidden, cache = model.apply({"params": params}, source, ids, cache=cache, method="decode")
            return model.apply({"params": params}, hidden, method="logits"), cache
        out = model.apply({"params": params}, ids, cache=cache)
        return out.logits, out.cache

    said = []
    for begin, end in [(0, 10), *((i, i + 1) for i in range(10, LENGTH))]:
        logits, cache = step(params, source, ids[:3, begin:end], cache)
        said.append(np.asarray(logits))
    return [family, *cells, differs(np.concatenate(said, axis=1))]


def timed(call: Callable[[], Any], times: int) -> float:
    """Median milliseconds of a call."""
    import jax

    jax.block_until_ready(call())
    found = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(1e3 * (time.perf_counter() - start))
    return float(np.median(found))


def step_of(keys: dict[str, Any], *, numerics: str, batch: int, length: int) -> Callable[[], Any]:
    """A training step on one device, forward, backward and Adam."""
    import jax

    from jaxformer.families import model_config
    from jaxformer.hub.kinds import abstract_params
    from jaxformer.models import TransformerConfig
    from jaxformer.parallel.fixed_tree import FixedTree
    from jaxformer.parallel.mesh import ParallelConfig, make_mesh
    from jaxformer.parallel.strategy import DeviceStep
    from jaxformer.tasks.base import Task
    from jaxformer.tasks.causal_lm import CausalLMConfig
    from jaxformer.training.optimizer import OptimizerConfig, build_optimizer
    from jaxformer.training.state import abstract_state, init_state
    from jaxformer.training.step import make_train_step

    c = TransformerConfig(**model_config({**keys, "vocab_size": 4096, "max_length": length, "numerics": numerics}))
    # The loss of all labels with the body's own head, the same work for every family.
    task = Task(CausalLMConfig(), None, length, c.architecture)
    if c.architecture == "encoder":
        from jaxformer.models.masked_lm import MaskedLM

        model: Any = MaskedLM(c)
    else:
        model = task.model(c)
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    optimizer = build_optimizer(OptimizerConfig(), lambda _: 1e-3)
    abstract = abstract_state(abstract_params(model), optimizer, False, mesh)
    exact = numerics == "exact"
    step = make_train_step(model, task, optimizer, seed=0, tree=FixedTree() if exact else None)
    program = DeviceStep(step, abstract, mesh, "jit", batch, exact=exact)
    ids = np.random.default_rng(0).integers(3, 4096, (batch, length)).astype(np.int32)
    arrays = {"input_ids": ids, "labels": ids}
    if c.architecture == "encoder_decoder":
        arrays |= {"decoder_input_ids": ids[:, : length // 4], "labels": ids[:, : length // 4]}
    placed, held = program.put(arrays), [init_state(model, optimizer, 0, abstract)]

    def run() -> Any:
        held[0], metrics, _ = program(held[0], placed)
        return metrics

    return run


def generation_of(keys: dict[str, Any], *, numerics: str, batch: int, prompt: int, new: int) -> Callable[[], Any]:
    """``generate`` of a batch, greedy."""
    from jaxformer.families import build_model, model_config
    from jaxformer.generation import generate, prepare
    from jaxformer.models import TransformerConfig

    c = TransformerConfig(
        **model_config(
            {**keys, "vocab_size": 4096, "max_length": 256, "numerics": numerics, "decoder_start_token_id": 0}
        )
    )
    model, ids = build_model(c), np.random.default_rng(0).integers(3, 4096, (batch, prompt)).astype(np.int32)
    params = prepare(model, random_params(model, ids))
    return lambda: generate(model, params, ids, max_new_tokens=new).tokens


def prices(rounds: int) -> list[list[str]]:
    """Milliseconds of fast and exact numerics, turn by turn, and their ratio."""
    found = []
    for name, keys in PRICED.items():
        works = {"training step, 16 x 256": partial(step_of, keys, batch=16, length=256)}
        for batch in () if keys["type"] == "bert" else (1, 8, 64):
            works[f"generate, {batch} x (32 + 64)"] = partial(generation_of, keys, batch=batch, prompt=32, new=64)
        for work, make in works.items():
            calls = {numerics: make(numerics=numerics) for numerics in ("fast", "exact")}
            times: dict[str, list[float]] = {numerics: [] for numerics in calls}
            for _ in range(rounds):
                for numerics, call in calls.items():
                    times[numerics].append(timed(call, 3))
            fast, exact = (float(np.median(times[numerics])) for numerics in ("fast", "exact"))
            found.append([name, work, f"{fast:.1f}", f"{exact:.1f}", f"{exact / fast:.2f}"])
            print(" ".join(found[-1]), flush=True)
    return found


def corpus(folder: Path) -> Path:
    """Random sentences, the same every time."""
    draw, words = random.Random(0), ["the", "cat", "sat", "on", "a", "mat", "then", "it", "ran", "away"]
    lines = [" ".join(draw.choices(words, k=draw.randrange(5, 60))) for _ in range(400)]
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return path


def run_keys(folder: Path, **training: Any) -> dict[str, Any]:
    """Keys of a small run with exact numerics and dropout."""
    return {
        "output_dir": str(folder / "run"),
        "model": {
            "hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_length": 64, "dropout": 0.1, "numerics": "exact"
        },
        "tokenizer": {"type": "byte"},
        "data": {"path": str(folder / "corpus.jsonl"), "cache_dir": str(folder / "cache"), "validation_fraction": 0.1},
        "training": {"batch_size": 16, "log_every": 1, "compilation_cache": str(folder / "compiled"), **training},
        "logging": {"tensorboard": False},
        "sample": {"max_new_tokens": 0},
    }  # fmt: skip


def start(keys: dict[str, Any], devices: int) -> subprocess.Popen[bytes]:
    """``train.py`` on so many simulated devices."""
    path = Path(keys["output_dir"]).parent / "run.yaml"
    path.write_text(json.dumps(keys), encoding="utf-8")
    command = [sys.executable, "train.py", "--config", str(path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def column(folder: Path) -> dict[tuple[int, str], str]:
    """The last loss and gradient norm written of each step, as text."""
    path = folder / "run" / "metrics.jsonl"
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:  # the last line of a process that was killed
            continue
    return {(r["step"], r["split"]): f"{r['loss']!r} {r.get('gradient_norm')!r}" for r in lines}


def kills(count: int, steps: int) -> bool:
    """Kills a run so many times on 1, 4, 2 and 8 devices in turn, and compares it with one that was left alone."""
    draw, folders = random.Random(0), [Path(tempfile.mkdtemp()) for _ in range(2)]
    for folder in folders:
        corpus(folder)
    alone, killed = ({**run_keys(f, steps=steps, eval_every=steps // 4, save_every=3)} for f in folders)
    if start(alone, 1).wait() != 0:
        raise SystemExit("the run that was left alone failed")
    done = 0
    while done < count:
        devices = (1, 4, 2, 8)[done % 4]
        before, process = max((s for s, _ in column(folders[1])), default=0), start(killed, devices)
        goal = before + draw.randrange(1, max(2, steps // count))
        while process.poll() is None and max((s for s, _ in column(folders[1])), default=0) < min(goal, steps - 1):
            time.sleep(0.02)
        time.sleep(draw.random() * 0.2)
        if process.poll() is not None:
            print(f"the run ended after {done} kills", flush=True)
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += 1
        print(
            f"kill {done} on {devices} devices at step {max((s for s, _ in column(folders[1])), default=0)}", flush=True
        )
    start(killed, 8).wait()
    one, other = column(folders[0]), column(folders[1])
    print(f"{done} kills, {len(one)} records, {sum(one[key] != other.get(key) for key in one)} of them differ")
    return one == other


def ppo(steps: int) -> bool:
    """The largest gap between sampler and trainer over a run of PPO."""
    folder = Path(tempfile.mkdtemp())
    corpus(folder)
    if start(run_keys(folder, steps=20), 1).wait() != 0:
        raise SystemExit("the first run failed")
    rows = [{"prompt": "the cat " * n} for n in range(1, 5)] * 16
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "rewards.py").write_text(
        "def letters(prompts, completions, **columns):\n    return [float(c.count('a')) for c in completions]\n"
    )
    keys = run_keys(folder, steps=steps)
    model = {"pretrained": str(folder / "run"), "numerics": "exact"}
    task = {"type": "ppo", "reward": f"{folder / 'rewards.py'}:letters", "max_new_tokens": 16, "minibatches": 2}
    data = {**keys["data"], "path": str(folder / "prompts.jsonl")}
    (folder / "ppo").mkdir()
    keys |= {"model": model, "task": task, "data": data, "output_dir": str(folder / "ppo" / "run")}
    if start(keys, 1).wait() != 0:
        raise SystemExit("the run of PPO failed")
    records = [json.loads(line) for line in (folder / "ppo" / "run" / "metrics.jsonl").read_text().splitlines()]
    gaps = [record["sampler_gap"] for record in records if record["split"] == "train"]
    scores = [record["score"] for record in records if record["split"] == "train"]
    print(f"{len(gaps)} steps of PPO, largest gap {max(gaps)!r}, score {scores[0]:.2f} to {scores[-1]:.2f}")
    return max(gaps) == 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what was asked for."""
    from jaxformer.families import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=sorted(FAMILIES), help="rows of the tables (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of fast and exact in the price (default: 5)")
    parser.add_argument("--only", choices=("tables", "price"), help="leave the other out")
    parser.add_argument("--kills", type=int, metavar="N", help="kill a run N times instead")
    parser.add_argument("--steps", type=int, default=120, help="steps of the run that is killed (default: 120)")
    parser.add_argument("--ppo", type=int, metavar="STEPS", help="train by PPO instead")
    parser.add_argument("--markdown", action="store_true", help="tables for a document")
    given = parser.parse_args(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if given.kills is not None or given.ppo is not None:
        sys.exit(0 if (kills(given.kills, given.steps) if given.ppo is None else ppo(given.ppo)) else 1)
    print(machine())
    if given.only != "price":
        for numerics in ("fast", "exact"):
            rows = []
            for family in given.families:
                rows.append(table_row(family, numerics))
                print(numerics, *rows[-1], flush=True)
            print_table(f"numerics: {numerics}", COLUMNS, rows, given.markdown)
    if given.only != "tables":
        header = ("model", "work", "fast, ms", "exact, ms", "exact / fast")
        print_table("price", header, prices(given.rounds), given.markdown)


if __name__ == "__main__":
    main()
