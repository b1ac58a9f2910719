"""Answers questions from passages: chunks, embeddings, a vector store, re-ranking, and an answer with its sources.

    pip install -e ".[serve,examples]"
    jaxformer serve --model answerer=runs/tasks --model encoder=SENTENCE_ENCODER [--model ranker=CROSS_ENCODER]
    python examples/rag.py --data DATA/xquad_en/train.jsonl.gz --data DATA/xquad_en/dev.jsonl.gz \
        --answerer answerer --encoder encoder [--ranker ranker] --question "Who recovered the ball?"

Without ``--question`` it evaluates the questions of the last file: how often the right passage is among the first k,
and the answers without a passage, with the passages that were found, and with the right one. Every model is asked
through the server; the store is LanceDB, a folder on disk.
"""

import argparse
import gzip
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lancedb
import numpy as np
import openai
from rich.console import Console
from rich.table import Table

from jaxformer.tasks.metrics import answer_scores

WORDS, OVERLAP = 60, 20  # of a chunk, and of two chunks after each other
KEPT = (1, 3, 5, 10)
PROMPT = "Passage: {passage}\nQuestion: {question}\nAnswer:"
ALONE = "Question: {question}\nAnswer:"


class Question(NamedTuple):
    """A question, its passage and its answers."""

    text: str
    passage: str
    answers: list[str]


class Found(NamedTuple):
    """A chunk that was found; higher scores are better."""

    text: str
    passage: int
    title: str
    score: float


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file in the format of SQuAD, flattened."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def chunks(passage: str) -> list[str]:
    """Whole sentences of about ``WORDS`` words, each chunk beginning some words before the last one ended.

    >>> len(chunks("One two three. " * 40)) > 1
    True
    """
    sentences = re.split(r"(?<=[.!?])\s+", passage.strip())
    found: list[str] = []
    now: list[str] = []
    for sentence in sentences:
        if now and sum(len(one.split()) for one in now) + len(sentence.split()) > WORDS:
            found.append(" ".join(now))
            while now and sum(len(one.split()) for one in now) > OVERLAP:
                now.pop(0)
        now.append(sentence)
    return [*found, " ".join(now)]


class Store:
    """Chunks of passages with their vectors.

    Args:
        client: of the server.
        encoder: name of the model that makes vectors.
        folder: of the database.
    """

    def __init__(self, client: openai.OpenAI, encoder: str, folder: str) -> None:
        self.client, self.encoder = client, encoder
        self.database = lancedb.connect(folder)
        self.table: Any = None

    def vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The vector of each text."""
        found: list[np.ndarray] = []
        for start in range(0, len(texts), 256):
            made = self.client.embeddings.create(model=self.encoder, input=list(texts[start : start + 256]))
            found += [np.array(one.embedding, np.float32) for one in made.data]
        return found

    def fill(self, passages: Sequence[tuple[str, str]]) -> int:
        """Stores the chunks of passages, each with its title; returns how many there are."""
        rows: list[dict[str, Any]] = [
            {"text": chunk, "passage": number, "title": title}
            for number, (title, passage) in enumerate(passages)
            for chunk in chunks(passage)
        ]
        for row, vector in zip(rows, self.vectors([str(row["text"]) for row in rows]), strict=True):
            row["vector"] = vector
        self.table = self.database.create_table("chunks", rows, mode="overwrite")
        return len(rows)

    def search(self, question: str, count: int) -> list[Found]:
        """The chunks nearest to a question by the cosine of the vectors."""
        rows = self.table.search(self.vectors([question])[0]).distance_type("cosine").limit(count).to_list()
        return [Found(row["text"], row["passage"], row["title"], 1 - row["_distance"]) for row in rows]


def rerank(client: openai.OpenAI, ranker: str, question: str, found: list[Found]) -> list[Found]:
    """The same chunks in the order of a cross-encoder's scores."""
    body = {"model": ranker, "query": question, "documents": [one.text for one in found], "return_documents": False}
    results = client.post("/rerank", body=body, cast_to=object)
    assert isinstance(results, dict)
    return [found[one["index"]]._replace(score=one["relevance_score"]) for one in results["results"]]


def answer(client: openai.OpenAI, model: str, question: str, passage: str | None) -> str:
    """The answer of a model, from a passage or from what it knows."""
    prompt = ALONE.format(question=question)
    if passage is not None:
        prompt = PROMPT.format(passage=passage, question=question)
    made = client.completions.create(model=model, prompt=prompt, max_tokens=24, temperature=0, stop=["\n"])
    return made.choices[0].text.strip()


def interval(values: Sequence[float]) -> str:
    """A mean with its 95 % interval, by the normal approximation.

    >>> interval([0.0, 1.0, 1.0, 1.0])
    '0.750 ± 0.490'
    """
    half = 1.96 * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def evaluate(
    store: Store, client: openai.OpenAI, options: argparse.Namespace, passages: list[str], questions: list[Question]
) -> list[tuple[str, str]]:
    """The rows of the table."""
    hits: dict[str, list[list[float]]] = {"vectors": [], "re-ranked": []}
    scores: dict[str, list[tuple[float, float]]] = {
        "without a passage": [],
        "with what was found": [],
        "with a chunk that has the answer": [],
    }
    for question in questions:
        found = store.search(question.text, 2 * KEPT[-1])
        orders = {"vectors": found}
        if options.ranker:
            orders["re-ranked"] = rerank(client, options.ranker, question.text, found)
        right = passages.index(question.passage)
        for name, order in orders.items():
            firsts = list(dict.fromkeys(one.passage for one in order))
            hits[name].append([float(right in firsts[:k]) for k in KEPT])
        best = list(orders.values())[-1][0].text
        has = [one for one in chunks(question.passage) if any(answer in one for answer in question.answers)]
        given = (None, best, has[0] if has else best)
        for name, passage in zip(scores, given, strict=True):
            said = answer(client, options.answerer, question.text, passage)
            scores[name].append(answer_scores(said, question.answers))
    rows = []
    for name, hit in hits.items():
        for place, k in enumerate(KEPT):
            if hit:
                rows.append((f"{name}: right passage among the first {k}", interval([one[place] for one in hit])))
    for name, pairs in scores.items():
        rows.append((f"answers {name}: exact match", interval([one[0] for one in pairs])))
        rows.append((f"answers {name}: F1", interval([one[1] for one in pairs])))
    return rows


def main() -> None:
    """Answers a question, or evaluates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--data", type=Path, action="append", required=True, help="files in the format of SQuAD")
    parser.add_argument("--answerer", required=True, help="name of the model that answers")
    parser.add_argument("--encoder", required=True, help="name of the sentence encoder")
    parser.add_argument("--ranker", help="name of a cross-encoder")
    parser.add_argument("--store", default="store", help="folder of the vectors")
    parser.add_argument("--question", help="default: evaluate the questions of the last file")
    parser.add_argument("--limit", type=int, help="first questions to evaluate")
    options = parser.parse_args()
    client = openai.OpenAI(base_url=options.server, api_key="none")
    rows = [row for path in options.data for row in read(path)]
    titles = {row["context"]: row["title"] for row in rows}
    store, console = Store(client, options.encoder, options.store), Console()
    count = store.fill([(title, passage) for passage, title in titles.items()])
    console.print(f"{len(titles):,} passages in {count:,} chunks: {options.store}")
    if options.question:
        found = store.search(options.question, KEPT[-1])
        if options.ranker:
            found = rerank(client, options.ranker, options.question, found)
        console.print(answer(client, options.answerer, options.question, found[0].text), style="bold")
        for one in found[:3]:
            console.print(f"{one.score:.3f}  {one.title}: {one.text}", highlight=False)
        return
    questions = [Question(row["question"], row["context"], row["answers"]["text"]) for row in read(options.data[-1])]
    table = Table("", f"{len(questions[: options.limit]):,} questions")
    for row in evaluate(store, client, options, list(titles), questions[: options.limit]):
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
