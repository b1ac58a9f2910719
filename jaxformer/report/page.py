"""The HTML of a page: one file with its scripts in it."""

import datetime
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from jaxformer.report.contents import Answer, Contents, Score
from jaxformer.report.figures import Records, curves, leaderboard, pictures

# A loss of this many nats or more has the strongest colour.
HOT = 8.0
SHADES = 16
SMOOTHING = 0.6


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("jaxformer.report", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shade": shade, "value": _value}
    return environment


def shade(loss: float | None) -> int:
    """Number of the colour of a loss, 0 (none) to ``SHADES``; the scale is that of the square root.

    >>> shade(None), shade(0.0), shade(2.0), shade(9.0)
    (0, 0, 8, 16)
    """
    return 0 if loss is None or loss != loss else round(SHADES * (min(max(loss, 0.0), HOT) / HOT) ** 0.5)


def _value(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _render(template: str, figures: Mapping[str, Sequence[Any]], values: Mapping[str, Any]) -> str:
    every = {f"{place}{number}": fig for place, some in figures.items() for number, fig in enumerate(some)}
    script, divs = components(every) if every else ("", {})
    placed = {
        place: [Markup(divs[f"{place}{number}"]) for number in range(len(some))] for place, some in figures.items()
    }
    # Of Bokeh's scripts only the core: a third of all, and nothing is fetched.
    library = Resources(mode="inline", components=["bokeh"]).render()
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    page = _environment().get_template(template)
    scripts = Markup(library + script) if every else ""
    return page.render(
        figures=placed, scripts=scripts, written=now, shades=SHADES, hot=HOT, smoothing=SMOOTHING, **values
    )


def answers_by_example(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The answers of each example: ``given``, what is the same at every step, and ``steps``, the newest first."""
    found = []
    for example in sorted({answer.example for answer in answers}):
        own = [answer for answer in answers if answer.example == example]
        names = list(own[-1].values)
        same = [name for name in names if len({str(answer.values.get(name)) for answer in own}) == 1]
        # With one evaluation nothing has changed yet: the last value is the model's own.
        if len(same) == len(names):
            same = names[:-1]
        steps = [(a.step, {n: v for n, v in a.values.items() if n not in same}) for a in reversed(own)]
        found.append({"given": {name: own[-1].values[name] for name in same}, "steps": steps})
    return found


def run_page(name: str, state: str, records: Records, contents: Contents, config: str) -> str:
    """The page of a run.

    Args:
        name: of the run.
        state: of the run, in words.
        records: of ``metrics.jsonl``.
        contents: of ``report.json``.
        config: the resolved configuration, YAML.

    Returns:
        HTML, which makes no request.
    """
    figures = {"curves": curves({name: records}), "pictures": pictures(contents.pictures, records)}
    latest = {split: next((r for r in reversed(records) if r.get("split") == split), {}) for split in ("train", "eval")}
    losses = [r["loss"] for r in records if r.get("split") == "eval" and r.get("loss") is not None]
    values = {
        "name": name,
        "state": state,
        "contents": contents,
        "config": config,
        "latest": latest,
        "best": min(losses, default=None),
        "answers": answers_by_example(contents.answers),
    }
    return _render("run.html.j2", figures, values)


def comparison_page(
    runs: Mapping[str, Records], rows: Sequence[Mapping[str, str]], differences: Mapping[str, Mapping[str, Any]]
) -> str:
    """One page of several runs: their curves laid over each other, a table, and the keys in which they differ.

    Args:
        runs: records by the run's name.
        rows: a line of the table for each run.
        differences: for each key that differs, its value in each run.

    Returns:
        HTML, which makes no request.
    """
    values = {"names": list(runs), "rows": rows, "differences": differences}
    return _render("comparison.html.j2", {"curves": curves(runs)}, values)


def leaderboard_page(scores: Sequence[Score]) -> str:
    """One page of models and tasks: a table with the best of each task marked, and a figure of each task.

    Args:
        scores: one for each model and task.

    Returns:
        HTML, which makes no request.
    """
    models = list(dict.fromkeys(score.model for score in scores))
    tasks = list(dict.fromkeys(score.task for score in scores))
    placed = {(score.model, score.task): score for score in scores}
    best = set()
    for task in tasks:
        own = [score for score in scores if score.task == task]
        top = max(own, key=lambda score: score.value if score.higher_is_better else -score.value)
        best.add((top.model, task))
    values = {"models": models, "tasks": tasks, "placed": placed, "best": best}
    return _render("leaderboard.html.j2", {"tasks": leaderboard(scores)}, values)
