"""Attention step by step in plain ``jax.numpy``, each step beside the library's function, and its heads as a picture.

python examples/attention_from_scratch.py [attention.png]

A token's vector has a one for its word and a one for its place. Three heads are made by hand for such vectors: one
looks for the same word, one at the word before, one at all words alike.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer import plot

TEXT = "the cat sat on the mat and the dog sat on the cat"


def same(step: str, mine: jax.Array, library: Any) -> None:
    """Prints the largest difference of a step to the library's function, which must be rounding."""
    difference = float(jnp.max(jnp.abs(mine.astype(jnp.float32) - library)))
    print(f"{step:40} largest difference {difference:.1e}")
    assert difference < 1e-5, step


def embed(words: list[str]) -> jax.Array:
    """``[T, D]``: a one for the word, and a one for the place."""
    known = sorted(set(words))
    ids = jnp.array([known.index(word) for word in words])
    return jnp.concatenate([jax.nn.one_hot(ids, len(known)), jnp.eye(len(words))], axis=1)


def projections(vectors: jax.Array, places: int) -> dict[str, dict[str, jax.Array]]:
    """Kernels of three heads, ``[D, N, H]`` to queries, keys and values, and ``[N, H, D]`` from the heads."""
    D, sharp = vectors.shape[1], 30.0
    word = jnp.diag(jnp.arange(D) < D - places).astype(jnp.float32)  # keeps the word of a vector
    place = jnp.eye(D) - word
    # A query for the place before its own: row p, the place p, becomes p - 1.
    before = place @ jnp.eye(D, k=-1) @ place
    nothing = jnp.zeros((D, D))
    query = jnp.stack([sharp * word, sharp * before, nothing], axis=1)
    key = jnp.stack([word, place, nothing], axis=1)
    value = jnp.stack([jnp.eye(D)] * 3, axis=1)
    output = jnp.stack([jnp.eye(D) / 3] * 3)
    kernels = {"query": query, "key": key, "value": value, "output": output}
    return {name: {"kernel": kernel} for name, kernel in kernels.items()}


def attention(words: list[str]) -> jax.Array:
    """The attention weights ``[N, T, T]`` of the three heads, and every step on the way compared."""
    x = embed(words)
    T, weights = len(words), projections(x, len(words))

    # 1. Each token asks (query), is found (key) and is read (value): three linear maps to each head.
    query, key, value = (jnp.einsum("td,dnh->tnh", x, weights[name]["kernel"]) for name in ("query", "key", "value"))
    same("1. queries", query, F.linear(x, weights["query"]["kernel"]))

    # 2. How well does each key fit each query? The product, over the root of the width, so that it stays near 1.
    scores = jnp.einsum("tnh,snh->nts", query, key) / jnp.sqrt(query.shape[-1])

    # 3. A language model does not see what comes later.
    seen = jnp.arange(T)[None, :] <= jnp.arange(T)[:, None]
    mask = F.Mask(causal=True)
    same("2. what a query may see", seen[None], mask.array(T, T))
    scores = jnp.where(seen, scores, -jnp.inf)

    # 4. Softmax: the scores of a query become shares of 1.
    shares = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = shares / shares.sum(axis=-1, keepdims=True)

    # 5. What is read: the mean of the values, weighted by the shares.
    read = jnp.einsum("nts,snh->tnh", shares, value)
    batch = [array[None] for array in (query, key, value)]  # the library's arrays have a batch in front
    expected, weights_of_library = F.dot_product_attention(*batch, mask=mask, return_weights=True)
    same("3. attention weights", shares, weights_of_library[0])
    same("4. what the heads read", read, expected[0])

    # 6. The heads together are one vector a token again.
    y = jnp.einsum("tnh,nhd->td", read, weights["output"]["kernel"])
    same("5. multi-head attention", y, F.multi_head_attention(x[None], weights, mask=mask)[0])
    return shares


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "attention.png"
    words = TEXT.split()
    title = "The same word, the word before, all words"
    plot.attention(attention(words), words, title=title).savefig(path)
    print(f"written: {path}")
