"""One training step of the same GPT-2 in jaxformer and in PyTorch, on the CPU of this machine.

    python benchmarks/train_step.py                     # jaxformer alone
    pip install -e ".[benchmark]" && python benchmarks/train_step.py --compare torch [--markdown]

A step is forward pass, loss, backward pass, clipping to global norm 1 and AdamW (learning rate 1e-3, betas 0.9 and
0.99, decay 0.1 on the matrices of the layers), float32, no dropout. jaxformer runs the step of its training loop. The
peers are Hugging Face ``GPT2LMHeadModel`` and a plain GPT written for speed, as it comes and with ``torch.compile``.
jaxformer tells the C library to keep freed memory; a peer is tried both ways and takes part with the faster one.

All start from the same weights and batch, and their losses over the first steps must agree before anything is timed.
Each runs in a process of its own; they take turns, so that a slow minute of the machine falls on all of them.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _timing import Worker, WorkerError, closing_all, print_table, serve, take_turns, time_calls

LEARNING_RATE, BETAS, DECAY, CLIP_NORM, EPSILON = 1e-3, (0.9, 0.99), 0.1, 1.0, 1e-8
CHECKED_STEPS, TOLERANCE = 3, 1e-4
SECONDS_A_TURN, STEPS_A_TURN = 1.0, 2

Arrays = dict[str, np.ndarray]
Step = Callable[[], float]  # one training step, done when it returns; the loss before its update


class Shape(NamedTuple):
    """Sizes of the model and the batch."""

    layers: int
    width: int
    heads: int
    length: int
    batch: int
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.layers} x {self.width}, T {self.length}, B {self.batch}, V {self.vocabulary:,}"


SHAPES = {
    "tiny": Shape(2, 16, 2, 8, 2, 11),  # for the tests
    "small": Shape(4, 128, 4, 64, 12, 65),
    "medium": Shape(6, 384, 6, 256, 8, 65),
    "large": Shape(12, 768, 12, 128, 4, 32_000),
}

JAXFORMER = "jaxformer"
PEERS = {
    "torch": {
        "compiled": "plain GPT, torch.compile",
        "eager": "plain GPT, PyTorch eager",
        "hugging_face": "Hugging Face, PyTorch eager",
    }
}
# What jaxformer.training.memory sets from inside its process, as glibc's environment variables.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_ARENA_MAX": "1"}


def make_batch(shape: Shape) -> Arrays:
    """Random tokens, each row one longer than the inputs, so that each has a label."""
    tokens = np.random.default_rng(0).integers(shape.vocabulary, size=(shape.batch, shape.length + 1), dtype=np.int32)
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:].copy()}


# jaxformer


def jaxformer_step(shape: Shape, weights: Path) -> Step:
    """The step of the training loop, compiled as the loop compiles it; writes its initial weights for the peers."""
    from jaxformer.training.memory import keep_freed_memory

    keep_freed_memory()  # before JAX is imported, as the command line does
    import jax
    from flax.traverse_util import flatten_dict
    from jax.sharding import NamedSharding

    from jaxformer.families import build_model
    from jaxformer.parallel.mesh import BATCH, make_mesh
    from jaxformer.tasks import CausalLM, CausalLMConfig
    from jaxformer.training.config import parse_config
    from jaxformer.training.optimizer import build_optimizer, build_schedule
    from jaxformer.training.state import abstract_state, init_state
    from jaxformer.training.step import make_train_step

    model_keys = {"type": "gpt2", "num_layers": shape.layers, "hidden_size": shape.width, "num_heads": shape.heads}
    keys = {
        "model": {**model_keys, "max_length": shape.length, "vocab_size": shape.vocabulary},
        "optimizer": {
            "type": "adamw",
            "learning_rate": LEARNING_RATE,
            "beta1": BETAS[0],
            "beta2": BETAS[1],
            "epsilon": EPSILON,
            "weight_decay": DECAY,
            "clip_norm": CLIP_NORM,
        },
        "schedule": {"type": "constant"},
    }
    c = parse_config(keys, "the benchmark")
    model, mesh = build_model(c.model), make_mesh(c.parallel)
    optimizer = build_optimizer(c.optimizer, build_schedule(c.schedule, c.optimizer.learning_rate, c.training.steps))
    abstract = abstract_state(model, optimizer, False, mesh)
    state = init_state(model, optimizer, c.seed, abstract)
    arrays: Any = {name: np.asarray(array) for name, array in flatten_dict(state.params, sep="/").items()}
    np.savez(weights, **arrays)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    train_step = make_train_step(model, CausalLM(CausalLMConfig(), c.sequence_length), optimizer, seed=c.seed)
    compiled = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
    batch = jax.device_put(make_batch(shape), NamedSharding(mesh, BATCH))

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(compiled(state, batch))
        return float(metrics.sums["loss"]) / float(metrics.weight)

    return step


# PyTorch

EMBEDDINGS = ("wte.weight", "wpe.weight")  # they do not decay, as in jaxformer


def torch_weights(params: Arrays, shape: Shape) -> Arrays:
    """jaxformer's parameters under the names of Hugging Face's GPT-2, kernels ``[in, out]``."""
    D = shape.width
    names = {
        "attention_norm/scale": "ln_1.weight",
        "attention_norm/bias": "ln_1.bias",
        "attention/output/kernel": "attn.c_proj.weight",
        "attention/output/bias": "attn.c_proj.bias",
        "feed_forward_norm/scale": "ln_2.weight",
        "feed_forward_norm/bias": "ln_2.bias",
        "feed_forward/up/kernel": "mlp.c_fc.weight",
        "feed_forward/up/bias": "mlp.c_fc.bias",
        "feed_forward/down/kernel": "mlp.c_proj.weight",
        "feed_forward/down/bias": "mlp.c_proj.bias",
    }
    weights = {
        "wte.weight": params["embeddings/token/embedding"],
        "wpe.weight": params["embeddings/position/embedding"],
        "ln_f.weight": params["final_norm/scale"],
        "ln_f.bias": params["final_norm/bias"],
    }
    for layer in range(shape.layers):
        for ours, theirs in names.items():
            array = params[f"layers/{ours}"][layer]
            weights[f"h.{layer}.{theirs}"] = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array
        parts = [f"layers/attention/{part}" for part in ("query", "key", "value")]
        kernels = [params[f"{part}/kernel"][layer].reshape(D, D) for part in parts]
        biases = [params[f"{part}/bias"][layer].reshape(D) for part in parts]
        weights[f"h.{layer}.attn.c_attn.weight"] = np.concatenate(kernels, axis=1)
        weights[f"h.{layer}.attn.c_attn.bias"] = np.concatenate(biases)
    return weights


def plain_gpt(shape: Shape) -> Any:
    """GPT-2 as short as PyTorch allows, for speed: one product for query, key and value, fused attention, tied head.

    Its parts have Hugging Face's names, so that both take the same weights.
    """
    import torch
    from torch import nn

    D = shape.width

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_attn, self.c_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            heads = self.c_attn(x).view(B, T, 3, shape.heads, D // shape.heads)
            query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
            y = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            return self.c_proj(y.transpose(1, 2).reshape(B, T, D))

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_fc, self.c_proj = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

        def forward(self, x: Any) -> Any:
            return self.c_proj(nn.functional.gelu(self.c_fc(x), approximate="tanh"))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(D), Attention(), nn.LayerNorm(D), FeedForward()

        def forward(self, x: Any) -> Any:
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(shape.vocabulary, D), nn.Embedding(shape.length, D)
            self.h, self.ln_f = nn.ModuleList(Block() for _ in range(shape.layers)), nn.LayerNorm(D)

        def forward(self, ids: Any) -> Any:
            x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
            for block in self.h:
                x = block(x)
            return nn.functional.linear(self.ln_f(x), self.wte.weight)

    return GPT()


def hugging_face_gpt(shape: Shape) -> Any:
    """``GPT2LMHeadModel`` without dropout; its GELU by tanh is PyTorch's own, the faster of the two it offers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=shape.length,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
    )


def torch_model(kind: str, shape: Shape, weights: Arrays) -> tuple[Any, Callable[[Any], Any]]:
    """A model with the weights given, and the function from its inputs to its logits."""
    import torch

    tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    if kind == "hugging_face":
        model = hugging_face_gpt(shape)
        model.transformer.load_state_dict(tensors)
        return model, lambda ids: model(ids).logits
    model = plain_gpt(shape)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    model.load_state_dict({name: tensor.T if name in linear else tensor for name, tensor in tensors.items()})
    return model, model


def torch_step(kind: str, shape: Shape, weights: Path) -> Step:
    """A training step as a PyTorch user would write it for speed."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with np.load(weights) as params:
        model, logits = torch_model(kind, shape, torch_weights(dict(params), shape))
    batch = {name: torch.from_numpy(array).long() for name, array in make_batch(shape).items()}
    named = list(model.named_parameters())
    decaying = [p for name, p in named if p.ndim > 1 and not name.endswith(EMBEDDINGS)]
    others = [p for name, p in named if p.ndim == 1 or name.endswith(EMBEDDINGS)]
    groups = [{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)

    def loss_of(ids: Any, labels: Any) -> Any:
        return cross_entropy(logits(ids).flatten(0, 1), labels.flatten())

    forward = torch.compile(loss_of) if kind == "compiled" else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(batch["input_ids"], batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM, foreach=True)
        optimizer.step()
        return loss.item()

    return step


# The comparison


def work(kind: str, shape: Shape, weights: Path) -> None:
    """A worker: makes its step and answers."""
    step = jaxformer_step(shape, weights) if kind == JAXFORMER else torch_step(kind, shape, weights)

    def answer(losses: int = 0, seconds: float = 0.0, steps: int = 0) -> list[float]:
        return [step() for _ in range(losses)] if losses else time_calls(step, seconds, steps)

    serve(answer)


def start(kind: str, shape_name: str, weights: Path, environment: dict[str, str]) -> Worker:
    """A worker process of this file."""
    title = JAXFORMER if kind == JAXFORMER else PEERS["torch"][kind] + (", memory kept" if environment else "")
    command = [__file__, "--worker", kind, "--shapes", shape_name, "--weights", str(weights)]
    return Worker(title, command, {"JAX_PLATFORMS": "cpu", **environment})


def check_losses(worker: Worker, expected: list[float]) -> float:
    """Trains the first steps, which also compiles and warms up; the largest difference from the losses expected.

    Raises:
        WorkerError: if it is beyond the tolerance, so that the two would not do the same work.
    """
    losses = worker.ask(losses=CHECKED_STEPS)
    difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    if not difference <= TOLERANCE:
        raise WorkerError(f"{worker.name}: losses {losses}, expected {expected} to {TOLERANCE}")
    return difference


def faster_of_both(kind: str, shape_name: str, weights: Path, expected: list[float], running: list[Worker]) -> float:
    """Tries a peer with and without kept memory and leaves the faster running; the difference of its losses."""
    tried = [start(kind, shape_name, weights, environment) for environment in ({}, KEEP_MEMORY)]
    running += tried
    difference = max(check_losses(worker, expected) for worker in tried)
    times = take_turns(tried, 3, seconds=SECONDS_A_TURN, steps=STEPS_A_TURN)
    slower = max(tried, key=lambda worker: statistics.median(times[worker.name]))
    running.remove(slower)
    slower.close()
    return difference


def compare(shape_name: str, kinds: list[str], repeats: int, turn: dict[str, float]) -> dict[str, list[float]]:
    """Milliseconds of every step of jaxformer and the peers, by name."""
    with tempfile.TemporaryDirectory() as folder, closing_all() as running:
        weights = Path(folder) / "weights.npz"
        running.append(start(JAXFORMER, shape_name, weights, {}))
        expected = running[0].ask(losses=CHECKED_STEPS)
        for kind in kinds:
            difference = faster_of_both(kind, shape_name, weights, expected, running)
            say(f"{shape_name}: {running[-1].name}: losses of the first {CHECKED_STEPS} steps agree ({difference:.0e})")
        return take_turns(running, repeats, **turn)


def say(text: str) -> None:
    """Progress, beside the table that goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def table_rows(shape_name: str, times: dict[str, list[float]]) -> list[list[str]]:
    """A row for each, jaxformer first."""
    ours = statistics.median(times[JAXFORMER])
    tokens = SHAPES[shape_name].batch * SHAPES[shape_name].length
    rows = []
    for name, milliseconds in times.items():
        median = statistics.median(milliseconds)
        numbers = [
            f"{median:,.1f}",
            f"{min(milliseconds):,.1f}",
            f"{1e3 * tokens / median:,.0f}",
            f"{median / ours:.2f}",
        ]
        rows.append([f"{shape_name}: {SHAPES[shape_name]}", name, *numbers])
    return rows


def main() -> int:
    """The command line; ``--worker`` is how it starts its own processes."""
    parser = argparse.ArgumentParser(description="Time of one training step, side by side.")
    parser.add_argument("--compare", choices=PEERS, help="measure these peers too")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small", "medium", "large"])
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="turns of each (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS_A_TURN, help="length of a turn (default %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, SHAPES[options.shapes[0]], options.weights)
        return 0
    missing = [name for name in ("torch", "transformers") if options.compare and not importlib.util.find_spec(name)]
    if missing:
        say(f'error: {" and ".join(missing)} not installed; pip install -e ".[benchmark]"')
        return 2
    turn = {"seconds": options.seconds, "steps": STEPS_A_TURN}
    kinds = list(PEERS[options.compare]) if options.compare else []
    load = os.getloadavg()[0]
    if load > 0.5:
        say(
            f"other processes use this machine (load {load:.1f}): PyTorch's threads wait for each other and suffer most"
        )
    rows = []
    try:
        for name in options.shapes:
            rows += table_rows(name, compare(name, kinds, options.repeats, turn))
    except WorkerError as error:
        say(f"error: {error}")
        return 1
    header = ("shape", "implementation", "median ms", "min ms", "tokens/s", "time / ours")
    print_table("One training step, float32", header, rows, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
