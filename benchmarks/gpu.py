"""What is to be shown on an NVIDIA GPU, in one command of less than eight minutes.

    pip install -e ".[cuda,test,benchmark]"
    python benchmarks/gpu.py --markdown
    python benchmarks/gpu.py --device cpu --sizes tiny    # the command itself, where there is none

- Training of GPT-2 124M and BERT-base: a step of jaxformer's loop and the same step in PyTorch, compiled, with fused
  attention, both with products in bfloat16 and parameters in float32; the share of the GPU's peak (MFU) and the memory
  that the compiled step was to need beside what was used.
- Greedy generation of GPT-2's size in bfloat16 at 1, 8 and 64 rows, beside ``transformers`` with a static cache.
- The tests of functions, models and generation, computed on the GPU, for as long as is left.

Losses of both sides must agree before anything is timed. Each is a process of its own and takes turns with the other.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bert_step
import generate
import train_step
from _compare import Shape, Step
from _floor import median_time
from _steps import jaxformer_step, torch_step
from _timing import Worker, WorkerError, closing_all, print_table, serve, take_turns, time_calls

ROOT = Path(__file__).parents[1]
MINUTES = 8
DTYPE = "bfloat16"
STEPS, SECONDS_A_TURN, ROUNDS, TOLERANCE = 3, 2.0, 3, 0.03
OURS, TORCH = "jaxformer", "PyTorch"
TESTS = ["tests/functional", "tests/models", "tests/generation"]
# On one device, and without cases that count the CPU's eight simulated ones.
PYTEST = ["-q", "-n", "4", "-m", "not slow and not parity", "-p", "no:cacheprovider", "--no-header", "--tb=line"]


class Sizes(NamedTuple):
    """What is measured."""

    gpt: Shape
    bert: Shape
    generated: str
    rows: tuple[int, ...]
    product: int


SIZES = {
    "full": Sizes(Shape(12, 768, 12, 1024, 16, 50_304), Shape(12, 768, 12, 512, 32, 30_528), "124m", (1, 8, 64), 8192),
    "tiny": Sizes(train_step.SHAPES["tiny"], bert_step.SHAPES["tiny"], "tiny", (1, 2), 256),
}


class Case(NamedTuple):
    """What a process of the benchmark does: ``gpt``, ``bert``, ``product`` or the number of rows that it writes."""

    what: str
    framework: str
    device: str
    sizes: str
    folder: Path


def training_step(case: Case) -> Step:
    """The step of one framework; jaxformer's writes the initial weights, PyTorch's reads them."""
    shape = getattr(SIZES[case.sizes], case.what)
    benchmark: Any = train_step if case.what == "gpt" else bert_step
    batch, weights = benchmark.make_batch(shape), case.folder / f"{case.what}.npz"
    if case.framework == OURS:
        model = {"type": "gpt2" if case.what == "gpt" else "bert", "dtype": DTYPE, "dropout": 0.0}
        sizes = {"num_layers": shape.layers, "hidden_size": shape.width, "num_heads": shape.heads}
        sizes |= {"max_length": shape.length, "vocab_size": shape.vocabulary, "intermediate_size": 4 * shape.width}
        return jaxformer_step({**model, **sizes, "attention_dropout": 0.0}, batch, weights)
    if case.what == "bert":
        batch = bert_step.places_in_all_rows(batch)
    build = partial(benchmark.build, "plain" if case.what == "gpt" else True, shape)
    return torch_step(build, batch, weights, case.device == "cuda", case.device, DTYPE)


def writer(case: Case) -> Any:
    """A call that generates."""
    sizes = SIZES[case.sizes].generated
    rows = generate.Case("torch", int(case.what), sizes, str(case.folder))
    if case.framework == TORCH:
        return generate.theirs(rows, case.device, DTYPE)[0]
    import jaxformer
    from jaxformer.generation import prepare

    model, params = jaxformer.AutoModelForCausalLM.from_pretrained(rows.folder, dtype=DTYPE)
    params, ids = prepare(model, params), generate.prompts(rows)
    return lambda: jaxformer.generate(model, params, ids, max_new_tokens=generate.NEW, eos_token_id=()).tokens


def product_speed(case: Case) -> dict[str, Any]:
    """The device, and the FLOP/s of a product of square matrices in bfloat16."""
    size = SIZES[case.sizes].product
    if case.framework == TORCH:
        import torch

        a = torch.full((size, size), 0.5, dtype=torch.bfloat16, device=case.device)
        done = torch.cuda.synchronize if case.device == "cuda" else lambda: None
        seconds = median_time(lambda: (torch.matmul(a, a), done())) / 1000
        return {"speed": 2 * size**3 / seconds, "device": f"PyTorch {torch.__version__}", "peak": None}
    import jax
    import jax.numpy as jnp

    from jaxformer.training.flops import peak_flops

    b, multiply = jnp.full((size, size), 0.5, jnp.bfloat16), jax.jit(jnp.matmul)
    seconds = median_time(lambda: jax.block_until_ready(multiply(b, b))) / 1000
    device = jax.devices()[0]
    name = f"{device.device_kind}, jax {jax.__version__}"
    return {"speed": 2 * size**3 / seconds, "device": name, "peak": peak_flops(device)}


def work(case: Case) -> None:
    """Answers the parent."""
    if case.what == "product":
        serve(lambda: product_speed(case))
        return
    if case.what.isdigit():
        write = writer(case)
        serve(lambda what: time_calls(write, 0.0, 1) if what == "time" else write().tolist())
        return
    step = training_step(case)

    def answer(what: str) -> Any:
        if what == "losses":
            return [step() for _ in range(STEPS)]
        if what == "time":
            return time_calls(step, SECONDS_A_TURN, 2)
        predicted = None if step.predicted is None else step.predicted()
        return {"used": step.used(), "predicted": predicted, "flops": step.flops}

    serve(answer)


def start(case: Case) -> Worker:
    """A process of the benchmark."""
    command = [__file__, "--worker", case.what, "--framework", case.framework, "--device", case.device]
    command += ["--sizes", case.sizes, "--folder", str(case.folder)]
    # Two processes share the device.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_PLATFORMS": case.device}
    return Worker(case.framework, command, environment)


def both(what: str, options: argparse.Namespace, folder: Path, workers: list[Worker]) -> tuple[Worker, Worker]:
    """jaxformer's process and PyTorch's, one started after the other."""
    for framework in (OURS, TORCH):
        workers.append(start(Case(what, framework, options.device, options.sizes, folder)))
    return workers[-2], workers[-1]


def train(what: str, peak: float | None, options: argparse.Namespace, folder: Path) -> list[list[str]]:
    """The rows of one model's training."""
    shape: Shape = getattr(SIZES[options.sizes], what)
    with closing_all() as workers:
        workers.append(start(Case(what, OURS, options.device, options.sizes, folder)))
        losses = [workers[0].ask(what="losses")]  # the weights are written now
        workers.append(start(Case(what, TORCH, options.device, options.sizes, folder)))
        losses.append(workers[1].ask(what="losses"))
        if max(abs(a - b) for a, b in zip(*losses, strict=True)) > TOLERANCE:
            raise WorkerError(f"{what}: the losses {losses[1]} of PyTorch are not those of jaxformer, {losses[0]}")
        times = take_turns(workers, ROUNDS, what="time")
        facts = {worker.name: worker.ask(what="facts") for worker in workers}
    rows, ours = [], statistics.median(times[OURS])
    for name, found in times.items():
        median = statistics.median(found)
        share = f"{facts[OURS]['flops'] / median * 1000 / peak:.0%}" if peak else "not known"
        memory = [facts[name]["predicted"], facts[name]["used"]]
        sizes = ["" if size is None else f"{size / 2**30:.2f}" for size in memory]
        tokens = f"{1e3 * shape.batch * shape.length / median:,.0f}"
        rows.append([f"{what}: {shape}", name, f"{median:,.1f}", tokens, f"{median / ours:.2f}", share, *sizes])
    return rows


def write(rows: int, options: argparse.Namespace, folder: Path) -> list[list[str]]:
    """The rows of generation at one number of rows."""
    with closing_all() as workers:
        tokens = [worker.ask(what="tokens") for worker in both(str(rows), options, folder, workers)]
        pairs = [a == b for one, other in zip(*tokens, strict=True) for a, b in zip(one, other, strict=True)]
        times = take_turns(workers, ROUNDS, what="time")
    ours = statistics.median(times[OURS])
    return [
        [
            str(rows),
            name,
            f"{rows * generate.NEW * 1000 / statistics.median(found):,.0f}",
            f"{statistics.median(found) / ours:.2f}",
            f"{sum(pairs) / len(pairs):.0%}",
        ]
        for name, found in times.items()
    ]


def run_tests(device: str, seconds: float) -> str:
    """What pytest says at last, of the tests on this device."""
    environment = {**os.environ, "JAXFORMER_TEST_PLATFORM": device, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    log = Path(tempfile.mkdtemp()) / "tests.txt"
    with log.open("w") as stream:
        command = [sys.executable, "-m", "pytest", *PYTEST, *TESTS]
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            running.terminate()
            running.wait()
            return f"stopped after {seconds:.0f} s; see {log}"
    return f"{log.read_text().strip().splitlines()[-1]}; see {log}"


def has_cuda() -> bool:
    """True if both libraries see a GPU; asked in another process, which gives it back."""
    code = "import jax, torch; jax.devices('cuda'); assert torch.cuda.is_available()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def parse() -> argparse.Namespace:
    """The command line; ``--worker`` is how the benchmark starts its own processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", choices=list(SIZES), default="full")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--framework", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measures, tests and prints; the exit code."""
    options = parse()
    if options.worker:
        work(Case(options.worker, options.framework, options.device, options.sizes, options.folder))
        return 0
    began = time.monotonic()
    if options.device == "cuda" and not has_cuda():
        print(
            "error: there is no CUDA device that JAX and PyTorch both see, expected an NVIDIA GPU and "
            'pip install -e ".[cuda,test,benchmark]"; --device cpu --sizes tiny tries the command without one',
            file=sys.stderr,
        )
        return 2
    try:
        with tempfile.TemporaryDirectory() as place, closing_all() as workers:
            folder = Path(place)
            ours, theirs = (worker.ask() for worker in both("product", options, folder, workers))
            title = f"{ours['device']}; {theirs['device']}; products of {SIZES[options.sizes].product} in {DTYPE}: "
            title += f"XLA {ours['speed'] / 1e12:,.1f}, PyTorch {theirs['speed'] / 1e12:,.1f} TFLOP/s"
            generate.make_model(place, SIZES[options.sizes].generated)
            trained = [row for what in ("gpt", "bert") for row in train(what, ours["peak"], options, folder)]
            written = [row for rows in SIZES[options.sizes].rows for row in write(rows, options, folder)]
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    header = ["training", "", "ms a step", "tokens/s", "time / ours", "MFU", "GiB predicted", "GiB used"]
    print_table(title, header, trained, options.markdown)
    header = ["rows", "", "tokens/s", "time / ours", "equal tokens"]
    print_table("\nGreedy generation", header, written, options.markdown)
    if not options.no_tests:
        left = MINUTES * 60 - 10 - (time.monotonic() - began)
        print(f"\ntests on {options.device}: {run_tests(options.device, left)}")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
