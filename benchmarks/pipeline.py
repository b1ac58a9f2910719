"""Sentences a second through a pipeline beside PyTorch, and the time to the first result of a new process.

    python benchmarks/pipeline.py --compare torch --repeats 7

A BERT of the size of MiniLM (6 layers of 384) with random weights embeds 2,000 sentences with lengths as in reviews.
PyTorch runs the same weights over the same sentences, tokenized by the same tokenizer, sorted by length, in batches of
as many rows as the pipeline is given. Each has a process of its own and takes turns with the other; first the
embeddings are compared. Programs are compiled before the clock starts; what that takes is in the second table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _timing import Worker, closing_all, print_table, serve, take_turns, time_calls

LAYERS, WIDTH, HEADS, VOCABULARY, LONGEST = 6, 384, 12, 8192, 512
JAXFORMER, TORCH = "jaxformer", "PyTorch, sorted"
TOLERANCE = 1e-4


def write_sentences(path: Path, count: int) -> None:
    """Sentences of made-up words; lengths are log-normal, 17 words in the middle, 2 to 60."""
    draw = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = ["".join(draw.choice(syllables, draw.integers(1, 4))) for _ in range(4000)]
    lengths = np.clip(np.exp(draw.normal(np.log(17), 0.55, count)), 2, 60).astype(int)
    path.write_text(json.dumps([" ".join(draw.choice(words, length)) for length in lengths]), encoding="utf-8")


def write_model(folder: Path, sentences: list[str]) -> None:
    """A model with random weights and a tokenizer that knows the sentences' words."""
    import flax.linen as nn
    import jax

    import jaxformer
    from jaxformer.families import model_config
    from jaxformer.hub.kinds import abstract_params, build
    from jaxformer.models import TransformerConfig
    from jaxformer.tokenizers import TokenizerConfig, give_frame, train_tokenizer

    tokenizer = train_tokenizer(TokenizerConfig(type="wordpiece", vocab_size=VOCABULARY), sentences)
    give_frame(tokenizer, "[CLS]", "[SEP]")
    keys = {"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "max_length": LONGEST}
    config = TransformerConfig(
        **model_config({"type": "bert", **keys, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id})
    )
    model, draw = build(config, "body"), np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw.normal("scale" in str(path[-1]), 0.04, leaf.shape).astype(np.float32),
        nn.unbox(abstract_params(model)),
    )
    jaxformer.save_pretrained(folder, model, params, tokenizer)


def make_ours(folder: Path, sentences: list[str], batch_size: int) -> Any:
    """A call of the pipeline."""
    import jaxformer

    options = {"pooling": "mean", "return_tensors": True}
    pipe = jaxformer.pipeline("feature-extraction", str(folder), batch_size=batch_size, **options)
    return lambda: np.stack(pipe(sentences))


def make_torch(folder: Path, sentences: list[str], batch_size: int) -> Any:
    """A loop over batches of sentences sorted by length: means of the last states."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()

    def call() -> np.ndarray:
        ids = tokenizer(sentences)["input_ids"]
        order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
        found = np.zeros((len(ids), WIDTH), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                some = order[start : start + batch_size]
                batch = tokenizer.pad({"input_ids": [ids[number] for number in some]}, return_tensors="pt")
                states = model(**batch).last_hidden_state
                mask = batch["attention_mask"][..., None]
                found[some] = ((states * mask).sum(1) / mask.sum(1)).numpy()
        return found

    return call


MAKERS = {JAXFORMER: make_ours, TORCH: make_torch}


def work(name: str, folder: Path, batch_size: int) -> None:
    """Answers the parent: the embeddings once, then times."""
    sentences = json.loads((folder / "sentences.json").read_text(encoding="utf-8"))
    call = MAKERS[name](folder, sentences, batch_size)

    def answer(what: str, seconds: float = 0.0) -> Any:
        if what == "embed":
            np.save(folder / f"{name}.npy", call())
            return None
        return time_calls(call, seconds, 1)

    serve(answer)


FIRST = """
import time; start = time.perf_counter()
import jaxformer
pipe = jaxformer.pipeline("feature-extraction", {folder!r}, pooling="mean")
pipe("the first sentence of a process")
print(time.perf_counter() - start)
"""


def first_result(folder: Path, cache: Path) -> float:
    """Seconds from the start of Python to the first result of a process that keeps programs in this folder."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", FIRST.format(folder=str(folder))]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(said.stdout.split()[-1])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", choices=("torch",), help="beside PyTorch")
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], Path(options.worker[1]), options.batch_size)
        return
    with tempfile.TemporaryDirectory() as place, closing_all() as workers:
        folder = Path(place)
        write_sentences(folder / "sentences.json", options.sentences)
        write_model(folder, json.loads((folder / "sentences.json").read_text(encoding="utf-8")))
        firsts = [first_result(folder, folder / "programs") for _ in range(3)]
        for name in (JAXFORMER, *([TORCH] if options.compare else [])):
            command = [__file__, "--batch-size", str(options.batch_size), "--worker", name, place]
            workers.append(Worker(name, command, {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}))
        for worker in workers:
            worker.ask(what="embed")
        if options.compare:
            first, second = (np.load(folder / f"{worker.name}.npy") for worker in workers)
            np.testing.assert_allclose(first, second, atol=TOLERANCE)
        times = take_turns(workers, options.repeats, what="time")
    medians = {name: float(np.median(found)) / 1000 for name, found in times.items()}
    rows = [
        [name, f"{options.sentences / seconds:,.0f}", f"{medians[name] / medians[JAXFORMER]:.2f}"]
        for name, seconds in medians.items()
    ]
    title = f"{options.sentences:,} sentences, batch size {options.batch_size}"
    print_table(title, ["", "sentences a second", "time over jaxformer's"], rows, options.markdown)
    rows = [[what, f"{seconds:.1f}"] for what, seconds in zip(("first", "second", "third"), firsts, strict=True)]
    print_table("Seconds to the first result", ["process", "seconds"], rows, options.markdown)


if __name__ == "__main__":
    main()
