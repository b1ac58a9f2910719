"""Metrics of predictions, by the libraries that the field reports them with.

The libraries come with ``pip install "jaxformer[metrics]"`` and are imported where they are used.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from jaxformer.external import need
from jaxformer.tasks.tag_schemes import scheme_of

Tags = Sequence[Sequence[str]]


def check_installed() -> None:
    """Raises a ``UserError`` before training if a package is missing that the report after it needs."""
    for module in ("sklearn.metrics", "seqeval.metrics", "sacrebleu", "rouge_score.rouge_scorer", "matplotlib"):
        need(module)


def classification(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> dict[str, float]:
    """Accuracy, macro F1 and Matthews correlation of one class number per example, by scikit-learn.

    ``F1 = 2 TP / (2 TP + FP + FN)`` per class, averaged over the classes that occur or are predicted. Micro F1 would be
    the accuracy.
    """
    sk = need("sklearn.metrics")
    present = np.intersect1d(np.arange(num_labels), np.union1d(labels, predicted))
    return {
        "accuracy": float(np.mean(labels == predicted)),
        "f1_macro": float(sk.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)),
        "mcc": float(sk.matthews_corrcoef(labels, predicted)),
    }


def multi_label(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """F1 and accuracy of several labels per example, ``[examples, labels]`` of 0 and 1, by scikit-learn.

    ``f1_micro`` counts the labels of all examples together, ``f1_macro`` is the mean over labels (0 for a label that
    neither occurs nor is predicted), ``accuracy`` is the share of examples with all labels correct.
    """
    sk = need("sklearn.metrics")
    return {
        "accuracy": float(np.mean((labels == predicted).all(axis=1))),
        "f1_micro": float(sk.f1_score(labels, predicted, average="micro", zero_division=0)),
        "f1_macro": float(sk.f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def regression(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Pearson and Spearman correlation (by SciPy) and mean squared error; a correlation with a constant is 0."""
    stats = need("scipy.stats")
    constant = len(targets) < 2 or np.ptp(targets) == 0 or np.ptp(predicted) == 0
    return {
        "pearson": 0.0 if constant else float(stats.pearsonr(targets, predicted).statistic),
        "spearman": 0.0 if constant else float(stats.spearmanr(targets, predicted).statistic),
        "mse": float(np.mean(np.square(np.asarray(targets, np.float64) - predicted))),
    }


def ranks(queries: np.ndarray, documents: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The place, from 1, of each query's own document among all documents by their cosines; ``[N]``.

    ``numbers [N, 2]`` tell which queries and documents are the same text: one that also belongs to the query, or is the
    query or its document itself, does not count, and documents that are equally near count half.
    """
    q, d = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (queries, documents))
    found = np.empty(len(q))
    for start in range(0, len(q), 1024):  # rows of cosines in memory at once
        rows = slice(start, start + 1024)
        scores, mine = q[rows] @ d.T, numbers[rows]
        own = np.take_along_axis(scores, np.arange(start, start + len(mine))[:, None], axis=1)
        counts = (numbers[:, 1] != mine[:, :1]) & (numbers[:, 1] != mine[:, 1:]) & (numbers[:, 0] != mine[:, :1])
        found[rows] = 1 + ((scores > own) & counts).sum(axis=1) + ((scores == own) & counts).sum(axis=1) / 2
    return found


def retrieval(ranks: np.ndarray) -> dict[str, float]:
    """Share of queries whose document is the nearest, among the nearest 10, and the mean reciprocal rank."""
    return {
        "accuracy": float(np.mean(ranks == 1)),
        "recall_10": float(np.mean(ranks <= 10)),
        "mrr": float(np.mean(1 / ranks)),
    }


def ranking(groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Mean reciprocal rank, NDCG and average precision of the right texts of each query, by scikit-learn.

    ``groups`` has for each query which of its texts are right, and their scores; queries without a right one or without
    a wrong one say nothing and are left out. MRR and NDCG count the first 10 texts. Texts with equal scores stand in
    the worst order for MRR, in the mean of all orders for the others.
    """
    sk = need("sklearn.metrics")
    asked = [(right, scores) for right, scores in groups if right.any() and not right.all()]
    if not asked:
        return {"mrr": 0.0, "ndcg": 0.0, "average_precision": 0.0}
    first = [1 + int(np.sum((scores >= scores[right].max()) & ~right)) for right, scores in asked]
    return {
        "mrr": float(np.mean([1 / place if place <= 10 else 0.0 for place in first])),
        "ndcg": float(np.mean([sk.ndcg_score([right], [scores], k=10) for right, scores in asked])),
        "average_precision": float(np.mean([sk.average_precision_score(right, scores) for right, scores in asked])),
    }


def confusion(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """Example counts ``[true class, predicted class]``."""
    counts = np.zeros((num_labels, num_labels), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def tagging(tags: Tags, predicted: Tags, labels: Sequence[str] = ()) -> tuple[dict[str, float], dict[str, str]]:
    """Accuracy over tags and, where there are entities, their precision, recall and F1 by seqeval; and notes on them.

    An entity is correct if its type and both its ends are; micro average over all entities. In a scheme with marked
    ends (IOBES, BILOU, BMES) entities are those of seqeval's strict mode: whole, from their beginning to their end.
    Others are delimited as by conlleval (an ``I-X`` without a preceding ``X`` begins an entity). The scheme is that of
    ``labels`` and the tags.
    """
    flat = [(a, b) for one, other in zip(tags, predicted, strict=True) for a, b in zip(one, other, strict=True)]
    found = {"accuracy": sum(a == b for a, b in flat) / max(len(flat), 1)}
    scheme = scheme_of({*labels, *(tag for pair in flat for tag in pair)})
    notes = [scheme.refusal] if scheme.refusal else []
    if scheme.name:
        seqeval = need("seqeval.metrics")
        mode = {"mode": "strict", "scheme": need("seqeval.scheme").IOBES} if scheme.strict else {}
        both = [[[scheme.canonical(tag) for tag in sentence] for sentence in part] for part in (tags, predicted)]
        for name in ("precision", "recall", "f1"):
            found[f"entity_{name}"] = float(getattr(seqeval, f"{name}_score")(*both, zero_division=0, **mode))
        notes += [f"entities of {scheme.name}, strictly"] if scheme.strict else []
        notes += [f"of no entity: {', '.join(scheme.others)}"] if scheme.others else []
    return found, {"entities": "; ".join(notes)} if notes else {}


def entity_errors(tags: Tags, predicted: Tags, labels: Sequence[str] = ()) -> dict[str, dict[str, int]] | None:
    """Counts of entities by kind and by what became of them; None where the tags delimit no entities.

    Entities are those of ``tagging``. A true one is ``correct``, else of a ``wrong kind`` (both ends right), with
    ``wrong ends`` (one of the same kind overlaps it), or ``missed``. One that overlaps no true entity is ``invented``.
    """
    scheme = scheme_of({*labels, *chain.from_iterable(tags), *chain.from_iterable(predicted)})
    if not scheme.name:
        return None
    lenient = need("seqeval.metrics.sequence_labeling").get_entities
    strict = need("seqeval.scheme")
    found: dict[str, dict[str, int]] = {}

    def delimited(sentence: Sequence[str]) -> list[tuple[str, int, int]]:
        """Kind, first and last word of each entity, by the mode of ``tagging``."""
        canonical = [scheme.canonical(tag) for tag in sentence]
        if not scheme.strict:
            return list(lenient(canonical))
        entities = strict.Entities([canonical], strict.IOBES).entities[0]
        return [(entity.tag, entity.start, entity.end - 1) for entity in entities]

    def count(kind: str, error: str) -> None:
        of_kind = found.setdefault(kind, {})
        of_kind[error] = of_kind.get(error, 0) + 1

    for pair in zip(tags, predicted, strict=True):
        right, ours = map(delimited, pair)
        for kind, first, last in right:
            over = [(k, a, b) for k, a, b in ours if a <= last and b >= first]
            if (kind, first, last) in over:
                count(kind, "correct")
            elif any((a, b) == (first, last) for _, a, b in over):
                count(kind, "wrong kind")
            else:
                count(kind, "wrong ends" if any(k == kind for k, _, _ in over) else "missed")
        for kind, first, last in ours:
            if not any(a <= last and b >= first for _, a, b in right):
                count(kind, "invented")
    return found


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> dict[str, list[Any]]:
    """Mean confidence, accuracy and number of the examples of each bin of confidence that has some.

    Bins have equal widths: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.

    >>> reliability(np.array([0.62, 0.68, 0.95]), np.array([True, False, True]))["accuracy"]
    [0.5, 1.0]
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    used = [place == number for number in range(bins) if (place == number).any()]
    return {
        "confidence": [float(confidence[rows].mean()) for rows in used],
        "accuracy": [float(correct[rows].mean()) for rows in used],
        "count": [int(rows.sum()) for rows in used],
    }


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, English articles and superfluous spaces.

    Source: the evaluation script of SQuAD v1.1 and v2.0 (Rajpurkar et al. 2016, 2018), ``normalize_answer``.

    >>> normalize_answer("The  24-yard line!")
    '24yard line'
    """
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def answer_scores(predicted: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of an answer, the maxima over the correct ones; without any, "" is correct.

    F1 is that of the bags of words after ``normalize_answer``; that of an empty answer is 0 or 1. Source: the
    evaluation script of SQuAD v2.0, ``compute_exact`` and ``compute_f1``.

    >>> answer_scores("the Denver Broncos", ["Broncos", "Denver Broncos team"])
    (0.0, 0.8)
    """
    rights = [answer for answer in answers if normalize_answer(answer)] or [""]
    exact = max(float(normalize_answer(predicted) == normalize_answer(right)) for right in rights)
    return exact, max(_bag_f1(normalize_answer(predicted).split(), normalize_answer(right).split()) for right in rights)


def _bag_f1(predicted: list[str], right: list[str]) -> float:
    if not predicted or not right:
        return float(predicted == right)
    common = sum((Counter(predicted) & Counter(right)).values())
    return 2 * common / (len(predicted) + len(right))


def answers(scores: Sequence[tuple[float, float, bool]]) -> dict[str, float]:
    """Means over all questions and, if some have no answer, over those with and those without.

    ``scores`` has exact match, F1 and whether there is an answer for each question.
    """
    table = np.array(scores, float)
    means = {"exact_match": float(table[:, 0].mean()), "f1": float(table[:, 1].mean())}
    has = table[:, 2] == 1
    if has.all():
        return means
    if has.any():
        means |= {"has_answer_exact_match": float(table[has, 0].mean()), "has_answer_f1": float(table[has, 1].mean())}
    return means | {"no_answer_accuracy": float(table[~has, 0].mean())}


def bleu(predicted: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> tuple[float, str]:
    """Corpus BLEU in ``[0, 100]`` by sacrebleu (Post 2018), and the signature of the computation."""
    metric = need("sacrebleu.metrics").BLEU(tokenize=tokenize)
    score = metric.corpus_score(list(predicted), [list(references)]).score
    return float(score), str(metric.get_signature())


def chrf(predicted: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Corpus chrF2 in ``[0, 100]`` by sacrebleu (Popović 2015), and its signature."""
    metric = need("sacrebleu.metrics").CHRF()
    score = metric.corpus_score(list(predicted), [list(references)]).score
    return float(score), str(metric.get_signature())


class _Words:
    """Words of any script; rouge_score's own tokenizer keeps only a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def rouge(predicted: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measure of ROUGE-1, -2 and -L in ``[0, 1]`` by rouge_score (Lin 2004), without stemming.

    Words are lower-case runs of letters and digits; for ASCII text they are those of rouge_score itself.
    """
    names = ("rouge1", "rouge2", "rougeL")
    scorer = need("rouge_score.rouge_scorer").RougeScorer(list(names), tokenizer=_Words())
    scores = [scorer.score(right, ours) for right, ours in zip(references, predicted, strict=True)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}
