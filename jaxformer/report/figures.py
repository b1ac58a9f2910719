"""Figures of a page, drawn by Bokeh: curves over steps, and what an objective has to show.

Colours of text, axes and background are left to the page, which has a light and a dark theme.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, FactorRange, HoverTool, NumeralTickFormatter
from bokeh.palettes import Colorblind
from bokeh.plotting import figure

from jaxformer.report.contents import Pictures, Score

Record = Mapping[str, Any]
Records = Sequence[Record]

TRAIN, EVALUATION = "#3b82c4", "#e07b39"
COLORS = Colorblind[8]
# Keys of records that are no curve.
NO_CURVES = {
    "step",
    "split",
    "tokens",
    "examples",
    "responses",
    "pairs",
    "prompts",
    "questions",
    "model_flops_per_second",
}
# Curves without noise.
NOT_SMOOTHED = {"learning_rate", "peak_memory_bytes", "skipped_updates"}
# Curves that come last, in this order, with their titles.
LAST = {
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "tokens_per_second": "speed, tokens per second",
    "responses_per_second": "speed, responses per second",
    "mfu": "MFU, share of the peak",
    "data_wait": "waiting for data, share of the time",
    "peak_memory_bytes": "most memory in use so far",
    "skipped_updates": "updates skipped",
}
TITLES = {
    "loss": "loss",
    "kl": "KL to the reference, nats",
    "score": "reward",
    "length": "length of responses, tokens",
    **LAST,
}
ENTITY_COLORS = {
    "correct": "#2f9e6e",
    "wrong kind": "#b07cc6",
    "wrong ends": "#e0b339",
    "missed": "#d9534f",
    "invented": "#8a8f98",
}


def blank(title: str, **options: Any) -> Any:
    """An empty figure as wide as its place, whose tools take no touch or wheel from the page until they are chosen."""
    fig = figure(
        title=title,
        height=options.pop("height", 260),
        sizing_mode="stretch_width",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        active_drag=None,
        active_scroll=None,
        **options,
    )
    fig.toolbar.logo = None
    fig.toolbar.autohide = True
    fig.min_border = 8
    # The page shows through from the first stroke: what is drawn once leaves an edge.
    fig.background_fill_color = fig.border_fill_color = None
    return fig


def curve_keys(runs: Mapping[str, Records]) -> list[str]:
    """The keys of the records that are curves: loss, results, what else is measured in training, then ``LAST``."""
    found: dict[str, bool] = {}
    for split in ("eval", "train"):
        for records in runs.values():
            for record in records:
                if record.get("split") == split:
                    found |= {name: True for name, value in record.items() if isinstance(value, int | float)}
    names = [name for name in found if name not in NO_CURVES and not name.startswith("trained_") and name not in LAST]
    first = [name for name in ("loss", "score") if name in names]
    return [*first, *(name for name in names if name not in first), *(name for name in LAST if name in found)]


def points(records: Records, split: str, key: str) -> dict[str, list[Any]]:
    """``step`` and ``value`` of a key in the records of a split; what was inf or nan is a gap."""
    chosen = [record for record in records if record.get("split") == split and key in record]
    if split == "eval" and key == "loss":
        # The loss of a policy's evaluation is its negative reward, which has a curve of its own.
        chosen = [record for record in chosen if "score" not in record]
    # Six digits: a constant is then a straight line, whatever the rounding of its mean.
    values = [float("nan") if record[key] is None else float(f"{record[key]:.6g}") for record in chosen]
    return {"step": [record["step"] for record in chosen], "value": values, "smooth": list(values)}


def curve(key: str, runs: Mapping[str, Records]) -> Any:
    """One figure of a key over steps: a line for each run's training records, a line with points for evaluations."""
    fig = blank(TITLES.get(key, key.replace("_", " ")), x_axis_label="step")
    if key.endswith(("per_second", "bytes")):
        fig.yaxis.formatter = NumeralTickFormatter(format="0.[0] b" if key.endswith("bytes") else "0.[0]a")
    single = len(runs) == 1
    several = sum(any(points(r, split, key)["step"]) for r in runs.values() for split in ("train", "eval")) > 1
    for number, (name, records) in enumerate(runs.items()):
        for split, color in (("train", TRAIN), ("eval", EVALUATION)):
            data = points(records, split, key)
            if not data["step"]:
                continue
            color = color if single else COLORS[number % len(COLORS)]
            words = {"train": "training", "eval": "validation"}[split]
            label = words if single else name if split == "train" else f"{name}, validation"
            legend = {"legend_label": label} if several else {}
            smoothed = split == "train" and key not in NOT_SMOOTHED
            source = ColumnDataSource(data, name="smoothed" if smoothed else "")
            if smoothed:
                fig.line("step", "value", source=source, color=color, alpha=0.25, **legend)
            line = fig.line("step", "smooth", source=source, color=color, line_width=2, **legend)
            if split == "eval" or len(data["step"]) == 1:
                line.glyph.line_dash = "solid" if single else "dashed"
                line = fig.scatter("step", "value", source=source, color=color, size=7, **legend)
            tips = [("", label), ("step", "@step{0,0}"), (key, "@value{0.[00000]}")]
            fig.add_tools(HoverTool(renderers=[line], tooltips=tips, mode="vline" if single else "mouse"))
    if several:
        _legend_above(fig, ncols=2 if single else 1)
    return fig


def _legend_above(fig: Any, ncols: int) -> None:
    """Moves the legend out of the picture, where it hides nothing."""
    legend = fig.legend[0]
    fig.center.remove(legend)
    legend.ncols, legend.click_policy, legend.border_line_color = ncols, "hide", None
    legend.padding = legend.margin = 2
    legend.label_text_font_size = "11px"
    fig.add_layout(legend, "above")
    fig.height += 20 * -(-len(legend.items) // ncols)


def curves(runs: Mapping[str, Records]) -> list[Any]:
    """A figure for each curve of the runs."""
    return [curve(key, runs) for key in curve_keys(runs)]


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Any:
    """The confusion matrix; the shade is the share of the true class."""
    matrix = np.array(counts)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = len(labels)
    fig = blank(
        "confusion matrix: rows are the true class",
        x_range=FactorRange(*labels),
        y_range=FactorRange(*reversed(labels)),
        height=int(np.clip(120 + 34 * side, 260, 760)),
        x_axis_label="predicted class",
        y_axis_label="true class",
    )
    true, predicted = (axis.ravel().tolist() for axis in np.indices(matrix.shape))
    data = {
        "true": [labels[i] for i in true],
        "predicted": [labels[i] for i in predicted],
        "share": shares.ravel().tolist(),
        "count": matrix.ravel().tolist(),
    }
    source = ColumnDataSource(data)
    cells = fig.rect("predicted", "true", 0.96, 0.96, source=source, fill_alpha="share", color=TRAIN, line_width=0)
    if side <= 25:
        style: dict[str, Any] = {"text_align": "center", "text_baseline": "middle", "text_font_size": "11px"}
        strong = shares.ravel() > 0.55
        for rows, color in ((np.flatnonzero(~strong), "#8a8f98"), (np.flatnonzero(strong), "#ffffff")):
            part = ColumnDataSource({name: [data[name][i] for i in rows] for name in ("true", "predicted", "count")})
            fig.text("predicted", "true", "count", source=part, text_color=color, **style)
    if max(map(len, labels), default=0) * side > 40:
        fig.xaxis.major_label_orientation = 0.8
    tips = [("true", "@true"), ("predicted", "@predicted"), ("examples", "@count{0,0}"), ("share", "@share{0.0%}")]
    fig.add_tools(HoverTool(renderers=[cells], tooltips=tips))
    fig.grid.visible = False
    return fig


def reliability(pictures: Pictures) -> Any:
    """Accuracy in bins of confidence, and the diagonal of perfect calibration."""
    found = pictures.reliability
    assert found is not None
    fig = blank(
        f"reliability: expected calibration error {found.error:.3f}",
        x_range=(0, 1),
        y_range=(0, 1),
        x_axis_label="confidence",
        y_axis_label="accuracy",
        height=320,
    )
    left = [min(int(10 * confidence), 9) / 10 for confidence in found.confidence]
    data = {"confidence": found.confidence, "accuracy": found.accuracy, "count": found.count}
    data |= {"left": [place + 0.005 for place in left], "right": [place + 0.095 for place in left]}
    source = ColumnDataSource(data)
    bars = fig.quad(top="accuracy", bottom=0, left="left", right="right", source=source, color=TRAIN, alpha=0.75)
    fig.line([0, 1], [0, 1], color=EVALUATION, line_dash="dashed", line_width=2)
    tips = [("confidence", "@confidence{0.000}"), ("accuracy", "@accuracy{0.000}"), ("examples", "@count{0,0}")]
    fig.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    return fig


def entities(errors: Mapping[str, Mapping[str, int]]) -> Any:
    """Entities of each kind: correct, of a wrong kind, with wrong ends, missed, invented."""
    kinds = sorted(errors, key=lambda kind: -sum(errors[kind].values()))
    data: dict[str, Any] = {"kind": kinds}
    data |= {error: [errors[kind].get(error, 0) for kind in kinds] for error in ENTITY_COLORS}
    fig = blank(
        "entities",
        y_range=FactorRange(*reversed(kinds)),
        height=int(np.clip(130 + 32 * len(kinds), 220, 700)),
        x_axis_label="entities",
    )
    colors = list(ENTITY_COLORS.values())
    names = list(ENTITY_COLORS)
    bars = fig.hbar_stack(names, y="kind", height=0.8, color=colors, source=ColumnDataSource(data), legend_label=names)
    for bar in bars:
        fig.add_tools(HoverTool(renderers=[bar], tooltips=[("", "@kind"), ("$name", "@$name{0,0}")]))
    _legend_above(fig, ncols=5)
    fig.ygrid.visible = False
    return fig


def histogram(title: str, values: Sequence[float], label: str) -> Any:
    """The distribution of values."""
    counts, edges = np.histogram(values, bins=min(30, max(5, len(set(values)))))
    fig = blank(title, x_axis_label=label, y_axis_label="responses")
    data = {"count": counts, "left": edges[:-1], "right": edges[1:]}
    bars = fig.quad(top="count", bottom=0, left="left", right="right", source=ColumnDataSource(data), color=TRAIN)
    bars.glyph.line_color = None
    fig.add_tools(HoverTool(renderers=[bars], tooltips=[(label, "@left to @right"), ("responses", "@count{0,0}")]))
    return fig


def reward_over_kl(records: Records) -> Any:
    """Reward against KL to the reference, evaluation by evaluation (Gao et al. 2022, "Scaling Laws for Reward Model
    Overoptimization", figure 1)."""
    chosen = [r for r in records if r.get("split") == "eval" and r.get("kl") is not None and r.get("score") is not None]
    data = {name: [record[name] for record in chosen] for name in ("step", "kl", "score")}
    fig = blank("reward over KL", x_axis_label="KL to the reference, nats", y_axis_label="reward")
    source = ColumnDataSource(data)
    fig.line("kl", "score", source=source, color=EVALUATION, line_width=2)
    dots = fig.scatter("kl", "score", source=source, color=EVALUATION, size=8)
    tips = [("step", "@step{0,0}"), ("KL", "@kl{0.000}"), ("reward", "@score{0.000}")]
    fig.add_tools(HoverTool(renderers=[dots], tooltips=tips))
    return fig


def pictures(found: Pictures | None, records: Records) -> list[Any]:
    """The figures of an objective's last evaluation."""
    if found is None:
        return []
    drawn = []
    if found.confusion is not None:
        drawn.append(confusion(found.labels, found.confusion))
    if found.reliability is not None:
        drawn.append(reliability(found))
    if found.entities:
        drawn.append(entities(found.entities))
    if found.scores:
        drawn += [reward_over_kl(records), histogram("rewards of the last evaluation", found.scores, "reward")]
    return drawn


def leaderboard(scores: Sequence[Score]) -> list[Any]:
    """A figure for each task: a point for each model with its 95 % interval, the best on top."""
    figures = []
    for task in dict.fromkeys(score.task for score in scores):
        own = [score for score in scores if score.task == task]
        own.sort(key=lambda score: score.value if score.higher_is_better else -score.value)
        names = [score.model for score in own]
        half = [1.96 * (score.error or 0.0) for score in own]
        data = {
            "model": names,
            "value": [score.value for score in own],
            "low": [score.value - width for score, width in zip(own, half, strict=True)],
            "high": [score.value + width for score, width in zip(own, half, strict=True)],
            "shown": [score.shown for score in own],
        }
        title = f"{task}: {own[0].metric}"
        fig = blank(title, height=90 + 26 * len(own), y_range=FactorRange(*names))
        source = ColumnDataSource(data)
        fig.segment(x0="low", x1="high", y0="model", y1="model", source=source, line_color=TRAIN, line_width=2)
        fig.scatter("value", "model", source=source, size=9, color=TRAIN)
        fig.add_tools(HoverTool(tooltips=[("", "@model"), ("", "@shown")]))
        figures.append(fig)
    return figures
