"""The tasks of pipelines: their names, the kind of model that each needs, and where it is written."""

import re
from importlib import import_module
from typing import Any, NamedTuple

from jaxformer.schema import UserError, nearest


class Task(NamedTuple):
    """A task."""

    kind: str  # the kind of model it needs, as in ``jaxformer.hub.kinds``; ``body`` is a part of every model
    module: str  # of this package
    pipeline: str  # the class there


TASKS = {
    "text-classification": Task("sequence_classification", "text_classification", "TextClassification"),
    "token-classification": Task("token_classification", "token_classification", "TokenClassification"),
    "question-answering": Task("question_answering", "question_answering", "QuestionAnswering"),
    "fill-mask": Task("masked_lm", "fill_mask", "FillMask"),
    "feature-extraction": Task("body", "features", "FeatureExtraction"),
    "sentence-similarity": Task("body", "features", "SentenceSimilarity"),
    "zero-shot-classification": Task("sequence_classification", "zero_shot", "ZeroShotClassification"),
    "text-ranking": Task("sequence_classification", "text_ranking", "TextRanking"),
    "text-generation": Task("causal_lm", "text_generation", "TextGeneration"),
    "text2text-generation": Task("seq2seq_lm", "text2text", "Text2TextGeneration"),
    "summarization": Task("seq2seq_lm", "text2text", "Summarization"),
    "translation": Task("seq2seq_lm", "text2text", "Translation"),
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


def find_task(name: str) -> str:
    """The task's own name, from it or another name of it; of an unknown one the error names the nearest.

    >>> find_task("ner"), find_task("fill-mask")
    ('token-classification', 'fill-mask')
    """
    known = [*TASKS, *ALIASES]
    asked = str(name).strip().lower().replace("_", "-")
    if asked in known:
        return ALIASES.get(asked, asked)
    if languages(str(name)):
        return "translation"
    raise UserError(f"there is no task {name!r}, expected one of {', '.join(known)}{nearest(asked, known)}")


def languages(name: str) -> tuple[str, str] | None:
    """The languages that the name of a translation says, None if it says none.

    >>> languages("translation_en_to_de")
    ('en', 'de')
    """
    found = re.fullmatch(r"translation[_-](.+)[_-]to[_-](.+)", name.strip())
    return (found[1], found[2]) if found else None


def tasks_of(kind: str) -> list[str]:
    """The tasks that a model of this kind can do, the one it was made for first."""
    own = [name for name, task in TASKS.items() if task.kind == kind]
    return own + [name for name, task in TASKS.items() if task.kind == "body" and kind != "body"]


def pipeline_class(task: str) -> Any:
    """The class of a task's pipeline."""
    return getattr(import_module(f"jaxformer.pipelines.{TASKS[task].module}"), TASKS[task].pipeline)
