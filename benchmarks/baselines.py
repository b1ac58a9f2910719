"""Simple baselines of the fine-tuning configurations, on the same files: what a model has to beat.

    python benchmarks/baselines.py --data data --markdown

Classification: the most frequent class, and a linear support vector machine on TF-IDF of character 1- to 4-grams.
Entities: each character tagged as it most often is. Questions: the sentence of the context that shares most words with
the question. Translation: the source as it is, and each word replaced by the one it most often stands with.
"""

import argparse
import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.tasks import metrics

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def classification(train: list[Record], test: list[Record], text: str) -> dict[str, float]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    labels, truth = [row["label"] for row in train], np.array([row["label"] for row in test])
    frequent = Counter(labels).most_common(1)[0][0]
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, min_df=2)
    found = {"majority": float(np.mean(truth == frequent))}
    for name, weight in (("linear SVM", None), ("with balanced classes", "balanced")):
        machine = make_pipeline(vectors, LinearSVC(C=0.3, class_weight=weight))
        predicted = machine.fit([row[text] for row in train], labels).predict([row[text] for row in test])
        found[name] = float(np.mean(truth == predicted))
    return found


def entities(train: list[Record], test: list[Record]) -> dict[str, float]:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        for character, tag in zip(row["chars"], row["tags"], strict=True):
            seen[character][tag] += 1
    frequent = {character: tags.most_common(1)[0][0] for character, tags in seen.items()}
    predicted = [[frequent.get(character, "O") for character in row["chars"]] for row in test]
    return {
        "most frequent tag of each character": metrics.tagging([row["tags"] for row in test], predicted)[0]["entity_f1"]
    }


def questions(test: list[Record]) -> dict[str, float]:
    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+", text.lower()))

    scores = []
    for row in test:
        sentences = re.split(r"(?<=[.!?])\s+", row["context"])
        answer = max(sentences, key=lambda sentence: len(words(sentence) & words(row["question"])))
        scores.append(metrics.answer_scores(answer, [a["text"] for a in answers_of(row)])[1])
    return {"sentence most like the question (F1)": float(np.mean(scores))}


def answers_of(row: Record) -> list[Record]:
    answers = row["answers"]
    if isinstance(answers, dict):
        return [{"text": text} for text in answers["text"]]
    return answers


def translation(train: list[Record], test: list[Record]) -> dict[str, float]:
    def words(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text)

    together: dict[str, Counter[str]] = defaultdict(Counter)
    counts: Counter[str] = Counter()
    for row in train:
        targets = set(words(row["de"]))
        counts.update(targets)
        for word in set(words(row["en"])):
            together[word].update(targets)
    # The Dice coefficient: words that stand together in most of the sentences in which either stands.
    sources = Counter(word for row in train for word in set(words(row["en"])))
    best = {
        word: max(found, key=lambda target: 2 * found[target] / (sources[word] + counts[target]))
        for word, found in together.items()
    }
    references = [row["de"] for row in test]
    by_word = [" ".join(best.get(word, word) for word in words(row["en"])) for row in test]
    by_word = [re.sub(r" ([.,!?])", r"\1", line) for line in by_word]
    copied = [row["en"] for row in test]
    return {
        "the source as it is (BLEU)": metrics.bleu(copied, references)[0],
        "word by word (BLEU)": metrics.bleu(by_word, references)[0],
    }


def table(data: Path) -> Iterator[tuple[str, dict[str, float]]]:
    topics, held_out = read(data / "klue_ynat/train.jsonl.gz"), read(data / "klue_ynat/validation.jsonl.gz")
    yield "korean_topics", classification(topics, held_out, "title")
    drawn = np.sort(np.random.default_rng(42).permutation(len(topics))[:10_000])
    yield "korean_topics_10k", classification([topics[i] for i in drawn], held_out, "title")
    for name, text in (("nsmc", "document"), ("sst2", "sentence")):
        train, dev = (read(data / name / f"{part}.jsonl.gz") for part in ("train", "dev"))
        yield name, classification(train, dev, text)
    yield "klue_ner", entities(read(data / "klue_ner/train.jsonl.gz"), read(data / "klue_ner/dev.jsonl.gz"))
    yield "xquad_en", questions(read(data / "xquad_en/dev.jsonl.gz"))
    folder = data / "multi30k_en_de"
    yield "multi30k_en_de", translation(read(folder / "train.jsonl.gz"), read(folder / "val.jsonl.gz"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with the datasets")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    arguments = parser.parse_args()
    if not (arguments.data / "klue_ynat").is_dir():
        parser.error(f"{arguments.data} has no folder klue_ynat, expected the folder with the datasets; give --data")
    for name, values in table(arguments.data):
        said = ", ".join(f"{what} {value:.3f}" for what, value in values.items())
        print(f"| `{name}` | {said} |" if arguments.markdown else f"{name}: {said}", flush=True)


if __name__ == "__main__":
    main()
