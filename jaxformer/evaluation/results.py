"""What the harness found, as rows, as a page of several models, and in a model's card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from jaxformer import report
from jaxformer.atomic import write_atomically
from jaxformer.report import Score
from jaxformer.schema import UserError

SUFFIX = ".results.json"
# Of several metrics of a task the first that it has stands in tables.
FIRST = ("acc_norm", "acc", "exact_match", "f1", "bits_per_byte", "word_perplexity")


def scores_of(model: str, found: Mapping[str, Any]) -> list[Score]:
    """The scores in the results of the harness, a task after the other.

    Args:
        model: its name.
        found: as ``lm_eval.simple_evaluate`` returns it.
    """
    scores = []
    for task, values in found["results"].items():
        count = (found.get("n-samples") or {}).get(task, {}).get("effective")
        shots = (found.get("n-shot") or {}).get(task)
        better = (found.get("higher_is_better") or {}).get(task) or {}
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or not filtered:
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            error = float(error) if isinstance(error, int | float) else None
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            scores.append(Score(model, task, name, float(value), error, count, shots, better.get(metric, True)))
    return scores


def write_results(folder: Path, model: str, found: Mapping[str, Any]) -> Path:
    """Writes the harness's results of a model, without its samples; earlier ones of other tasks stay.

    Returns:
        The file.
    """
    path = folder / f"{model.replace('/', '__')}{SUFFIX}"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for key in ("results", "n-samples", "n-shot", "versions", "higher_is_better", "configs"):
        kept[key] = {**kept.get(key, {}), **(found.get(key) or {})}
    kept["model"] = model
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(kept, indent=1, default=str, ensure_ascii=False) + "\n")
    return path


def read_results(folder: Path) -> list[Score]:
    """The scores of every model that has results in a folder."""
    scores = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            found = json.loads(path.read_text())
            scores += scores_of(found["model"], found)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} holds no results of the harness ({error}); remove it") from None
    return scores


def main_scores(scores: Sequence[Score]) -> list[Score]:
    """One score for each model and task."""
    best: dict[tuple[str, str], Score] = {}

    def rank(score: Score) -> int:
        metric = score.metric.partition(" ")[0]
        return FIRST.index(metric) if metric in FIRST else len(FIRST)

    for score in scores:
        place = (score.model, score.task)
        if place not in best or rank(score) < rank(best[place]):
            best[place] = score
    return list(best.values())


def write_leaderboard(folder: Path, path: Path) -> list[Score]:
    """Writes the page of all models that have results in a folder, and returns their main scores."""
    scores = main_scores(read_results(folder))
    write_atomically(path, report.leaderboard_page(scores))
    return scores


def write_card(folder: Path, scores: Sequence[Score]) -> None:
    """Puts scores into the head of a model's ``README.md``, as the Hub reads them; those of other tasks stay.

    Raises:
        UserError: the folder has no card.
    """
    path = folder / "README.md"
    if not path.exists():
        raise UserError(f"{folder} has no README.md, expected the folder of an exported model for --card")
    card = ModelCard.load(path)
    new = {(score.task, score.metric) for score in scores}
    kept = [one for one in card.data.eval_results or [] if (one.dataset_name, one.metric_type) not in new]
    made = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.task,
            dataset_name=score.task,
            metric_type=score.metric,
            metric_value=score.value,
            dataset_args={"num_few_shot": score.shots},
            metric_name=f"{score.metric}, standard error {score.error:.4f}" if score.error is not None else None,
        )
        for score in scores
    ]
    card.data.model_name = card.data.model_name or folder.resolve().name
    card.data.eval_results = [*kept, *made]
    write_atomically(path, str(card))
