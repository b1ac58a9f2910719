"""Throughput and latency of `jaxformer serve` under load, beside `transformers serve` and one call after the other.

    python benchmarks/serving.py                         # jaxformer serve, and jaxformer.generate one by one
    python benchmarks/serving.py --compare transformers  # also transformers serve, on PyTorch

Clients ask at the same time, each for the next text when it has one; prompts and texts have mixed lengths, the same in
every row, and greedy search never ends a text early. Each server runs in a process of its own while it is measured,
the clients in this one, on the same cores. `first` is the time from a request to its first piece of text, `next` from
one piece to another, divided by the tokens in it; milliseconds.
"""

import argparse
import asyncio
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _floor import machine
from _timing import print_table

SIZES = {
    "124m": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "max_length": 1024},
    "27m": {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "max_length": 512},
    "tiny": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_length": 128},
}
VOCABULARY = {"124m": 50_257, "27m": 4_000, "tiny": 400}
PROMPTS, TEXTS = (8, 160), (8, 64)  # tokens, uniformly
READY_SECONDS = 300.0


class Ask(NamedTuple):
    """One request."""

    prompt: str
    new: int


class Seen(NamedTuple):
    """What a client saw of one text; seconds."""

    first: float
    gaps: list[float]
    whole: float
    tokens: int


def make_model(folder: Path, size: str) -> None:
    """Writes a model with initial parameters and a tokenizer of one token a word, without a token that ends a text."""
    import jax
    import jax.numpy as jnp
    from flax.linen import unbox
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    import jaxformer
    from jaxformer.families import build_model, model_config
    from jaxformer.models import TransformerConfig

    count = VOCABULARY[size]
    keys = model_config({"type": "gpt2", "vocab_size": count, **SIZES[size]})
    model = build_model(TransformerConfig(**keys))
    params = unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    jaxformer.save_pretrained(folder, model, params)
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(count)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    # No token is special: every one is seen in a text, and counted there.
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "bos_token_id": None, "eos_token_id": None}))


def asks(size: str, count: int) -> list[Ask]:
    """The requests, the same for every server."""
    generator = np.random.default_rng(0)
    longest = SIZES[size]["max_length"] // 2
    found = []
    for _ in range(count):
        length, new = (int(generator.integers(low, min(high, longest))) for low, high in (PROMPTS, TEXTS))
        words = generator.integers(2, VOCABULARY[size], length)
        found.append(Ask(" ".join(f"w{word}" for word in words), new))
    return found


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@contextmanager
def running(command: list[str], port: int) -> Iterator[tuple[str, float]]:
    """The address of a server while the block runs, and the seconds until it answered."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() - start > READY_SECONDS:
                        log.seek(0)
                        raise SystemExit(f"{' '.join(command)} did not start: {log.read().decode()[-2000:]}") from None
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1", time.monotonic() - start
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def client(session: Any, model: str, waiting: list[Ask], seen: list[Seen]) -> None:
    """One client, who asks as long as there is something to ask for."""
    while waiting:
        ask = waiting.pop()
        body = {"model": model, "prompt": ask.prompt, "max_tokens": ask.new, "temperature": 0, "stream": True}
        start, times, text = time.perf_counter(), [], ""
        async with session.stream("POST", "completions", json=body) as answer:
            if answer.status_code != 200:
                raise SystemExit(f"{answer.status_code}: {(await answer.aread()).decode()[:300]}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    piece = "".join(choice.get("text") or "" for choice in json.loads(line[6:]).get("choices", []))
                    if piece:
                        text += piece
                        times.append((time.perf_counter(), piece.count("w")))
        end, count = time.perf_counter(), text.count("w")
        if count != ask.new:
            raise SystemExit(
                f"{model}: {count} tokens came, expected {ask.new}: the servers would not do the same work"
            )
        gaps = [(b[0] - a[0]) / b[1] for a, b in itertools.pairwise(times)]
        seen.append(Seen(times[0][0] - start, gaps, end - start, count))


async def load(address: str, model: str, clients: int, todo: list[Ask]) -> tuple[float, list[Seen]]:
    """Seconds and what the clients saw."""
    import httpx

    waiting, seen = list(reversed(todo)), []  # type: ignore[var-annotated]
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=f"{address}/", timeout=600, limits=limits) as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(session, model, waiting, seen) for _ in range(clients)))
        return time.perf_counter() - start, seen


def row(name: str, clients: str, seconds: float, seen: list[Seen], against: float | None) -> list[str]:
    """A line of the table; ``against`` is the throughput of one call after the other."""

    def times(values: list[float]) -> str:
        if not values:
            return ""
        low, high = (1000 * float(np.percentile(values, share)) for share in (50, 99))
        return f"{low:,.0f} / {high:,.0f}"

    rate = sum(one.tokens for one in seen) / seconds
    ratio = "" if against is None else f"{rate / against:.2f}"
    gaps = [gap for one in seen for gap in one.gaps]
    return [name, clients, f"{rate:,.0f}", ratio, times([one.first for one in seen if one.first]), times(gaps)]


def one_by_one(folder: str, todo: list[Ask]) -> tuple[float, list[Seen]]:
    """``jaxformer.generate`` for each request, all programs compiled before."""
    import jax

    import jaxformer
    from jaxformer.training.memory import keep_freed_memory

    keep_freed_memory()
    model, params = jaxformer.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = jaxformer.AutoTokenizer.from_pretrained(folder)
    params = jax.block_until_ready(jaxformer.prepare(model, params))

    def write(ask: Ask) -> int:
        ids = tokenizer(ask.prompt)["input_ids"]
        out = jaxformer.generate(model, params, [ids], max_new_tokens=ask.new, eos_token_id=(), tokenizer=tokenizer)
        return int(out.lengths[0])

    for ask in todo:
        write(ask)
    start = time.perf_counter()
    seen = []
    for ask in todo:
        begin = time.perf_counter()
        count = write(ask)
        seen.append(Seen(0.0, [], time.perf_counter() - begin, count))
    return time.perf_counter() - start, seen


def worker(folder: str, size: str, count: int) -> None:
    """Prints what ``one_by_one`` took, from a process of its own."""
    seconds, seen = one_by_one(folder, asks(size, count))
    print(json.dumps([seconds, sum(one.tokens for one in seen)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="27m")
    parser.add_argument("--clients", default="1,4,16,64", help="numbers of clients")
    parser.add_argument("--requests", type=int, default=4, help="for each client, at least 16 in all")
    parser.add_argument("--slots", type=int, default=16, help="of jaxformer serve")
    parser.add_argument("--compare", choices=("transformers",), help="also measure this server")
    parser.add_argument("--options", nargs="*", default=[], help="further options of jaxformer serve")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.size, options.requests)
    numbers = [int(number) for number in options.clients.split(",")]
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        make_model(path, options.size)
        alone = [sys.executable, __file__, "--worker", str(path), "--size", options.size, "--requests", "16"]
        printed = subprocess.run(alone, check=True, capture_output=True, text=True).stdout
        seconds, tokens = json.loads(printed)
        rows.append(row("jaxformer.generate", "one by one", seconds, [Seen(0.0, [], seconds, tokens)], None))
        rate = tokens / seconds
        # Every other number of tokens that a run may need is compiled before it starts.
        servers = {
            "jaxformer serve": [
                *(sys.executable, "-m", "jaxformer", "serve", "--model", f"model={path}"),
                *("--slots", str(options.slots), *options.options),
            ]
        }
        if options.compare:
            servers["transformers serve"] = ["transformers", "serve", str(path), "--device", "cpu"]
            servers["transformers serve, continuous batching"] = [
                *servers["transformers serve"],
                "--continuous-batching",
            ]
        for name, command in servers.items():
            asked = "model" if name == "jaxformer serve" else str(path)
            with running(command, free_port()) as (address, ready):
                print(f"{name}: ready after {ready:.1f} s", file=sys.stderr)
                asyncio.run(load(address, asked, 4, asks(options.size, 8)))  # what is lazy happens here
                for clients in numbers:
                    todo = asks(options.size, max(16, options.requests * clients))
                    seconds, seen = asyncio.run(load(address, asked, clients, todo))
                    rows.append(row(name, str(clients), seconds, seen, rate))
                    print(rows[-1], file=sys.stderr)
    header = ["", "clients", "tokens/s", "times one by one", "first, p50 / p99", "next, p50 / p99"]
    title = f"GPT-2 of {options.size}, {options.slots} slots; {machine()}"
    print_table(title, header, rows, options.markdown)
    return None


if __name__ == "__main__":
    main()
