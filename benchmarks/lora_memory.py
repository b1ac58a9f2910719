"""Memory of fine-tuning GPT-2's 124 million parameters: all of them, by LoRA, and by LoRA beside int8 kernels.

    python benchmarks/lora_memory.py --markdown

Each case is a run of its own, in a process of its own: initial weights are written as a model in the Hugging Face
format, the run starts from them and takes a few steps as ``train.py`` does. Two numbers are told of each:

- program: what XLA says the compiled step needs, arguments + temporaries + outputs - those that lie in the arguments;
- measured: the largest resident memory of the process (``VmHWM``) from start to end, less what it had with JAX imported
  and nothing done, so that reading the model, making the state, compiling and stepping all count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MIB = 2**20
SHAPES = {"1 x 128": (1, 128), "4 x 128": (4, 128), "4 x 256": (4, 256)}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"lora": {"rank": 8}},
    "LoRA, int8 base": {"lora": {"rank": 8, "base": "int8"}},
}


def write_model(folder: Path) -> None:
    """GPT-2 with its initial weights, and a text."""
    import jax
    import numpy as np
    from flax.linen import unbox

    from jaxformer.families import build_model, model_config
    from jaxformer.hub import save_pretrained
    from jaxformer.models import TransformerConfig
    from jaxformer.tokenizers import TokenizerConfig, save_tokenizer, train_tokenizer

    model = build_model(TransformerConfig(**model_config({"type": "gpt2", "vocab_size": 50257})))
    params = unbox(jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32)))["params"]
    save_pretrained(folder / "model", model, params)
    save_tokenizer(train_tokenizer(TokenizerConfig(type="byte"), ["a"]), folder / "tokenizer")
    lines = ("".join(chr(97 + (7 * i + j * j) % 26) for j in range(400)) for i in range(60))
    (folder / "text.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))


def resident(key: str) -> int:
    """``VmHWM`` or ``VmRSS`` of this process, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def run_case(folder: Path, case: str, shape: str, remat: str, steps: int) -> dict[str, Any]:
    """Trains for a few steps in this process and says what it took."""
    import jax

    from jaxformer.training.console import Display
    from jaxformer.training.loop import train
    from jaxformer.training.run import prepare
    from jaxformer.training.sources import resolve_config

    rows, length = SHAPES[shape]
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    before = resident("VmRSS")
    keys = {
        "output_dir": str(folder / f"{case}-{shape}-{remat}"),
        "model": {"pretrained": str(folder / "model"), "remat": remat},
        "tokenizer": {"type": "file", "path": str(folder / "tokenizer")},
        "data": {"path": str(folder / "text.jsonl"), "cache_dir": str(folder / "cache"), "validation_fraction": 0},
        "training": {
            "steps": steps,
            "batch_size": rows,
            "sequence_length": length,
            "log_every": 1,
            "compilation_cache": None,
        },
        "logging": {"tensorboard": False},
        "sample": {"max_new_tokens": 0},
        **CASES[case],
    }
    run = prepare(resolve_config(keys, "the benchmark"), Display())
    train(run, Display())
    peak = resident("VmHWM") - before
    memory = run.lowered().compile().memory_analysis()
    program = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    program += memory.output_size_in_bytes - memory.alias_size_in_bytes
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return {
        "state": memory.argument_size_in_bytes / MIB,
        "temporary": memory.temp_size_in_bytes / MIB,
        "program": program / MIB,
        "measured": peak / MIB,
        "losses": [json.loads(line)["loss"] for line in lines],
    }


def fresh(folder: Path, case: str, shape: str, remat: str, steps: int) -> dict[str, Any]:
    """The same in a process of its own."""
    arguments = ["--folder", str(folder), "--case", case, "--shape", shape, "--remat", remat, "--steps", str(steps)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"{case}, {shape}, remat {remat} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(rows: list[tuple[str, str, str, dict[str, Any]]], markdown: bool) -> None:
    """One line a case, with its share of full fine-tuning at the same shape."""
    heads = [
        "batch",
        "remat",
        "",
        "state MiB",
        "in a step",
        "program",
        "of full",
        "measured MiB",
        "of full",
        "last loss",
    ]
    full = {(shape, remat): found for shape, remat, case, found in rows if case == "full"}
    if markdown:
        print(f"| {' | '.join(heads)} |\n| --- | --- | --- |{' ---: |' * 7}")
    for shape, remat, case, found in rows:
        whole = full[shape, remat]
        cells = [shape, remat, case, *(f"{found[name]:,.0f}" for name in ("state", "temporary", "program"))]
        cells.append(f"{found['program'] / whole['program']:.2f}")
        cells += [f"{found['measured']:,.0f}", f"{found['measured'] / whole['measured']:.2f}"]
        cells.append(f"{found['losses'][-1]:.4f}")
        print(f"| {' | '.join(cells)} |" if markdown else "  ".join(f"{cell:>16}" for cell in cells))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="of each run (default 3)")
    parser.add_argument("--markdown", action="store_true", help="a table for docs/benchmarks.md")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="rows x tokens")
    parser.add_argument("--remats", nargs="+", default=["none", "full"], help="values of model.remat")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--remat", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        from jaxformer.training.memory import keep_freed_memory

        keep_freed_memory()  # before JAX is imported, as the command line does
        found = run_case(options.folder, options.case, options.shape, options.remat, options.steps)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        rows = [
            (shape, remat, case, fresh(folder, case, shape, remat, options.steps))
            for shape in options.shapes
            for remat in options.remats
            for case in CASES
        ]
    show(rows, options.markdown)


if __name__ == "__main__":
    main()
