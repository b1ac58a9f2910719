"""Bars, points and lines: probabilities of the next token, embeddings in the plane, learning curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.external import need
from jaxformer.plot.figures import finished, new_figure
from jaxformer.plot.tokens import token_texts, vocabulary_texts
from jaxformer.schema import UserError

MOST_NAMED_POINTS = 150
# Where the name of a point may stand, in points of type, and how it is aligned there.
_OFFSETS = {
    (5, 3): "left",
    (-5, 3): "right",
    (5, -10): "left",
    (-5, -10): "right",
    (0, 7): "center",
    (0, -14): "center",
}


def next_token_probabilities(
    values: Any, tokens: Any, top: int = 10, title: str = "Probabilities of the next token"
) -> Any:
    """The most probable next tokens as bars.

    Args:
        values: ``[V]``, logits, or probabilities: numbers from 0 on whose sum is 1. Of a model's output
            ``output.logits[0, -1]``.
        tokens: the tokenizer, or the texts of all ids.
        top: how many.
        title: over the bars.

    Returns:
        A ``matplotlib.figure.Figure``, the most probable token at the top.

    Raises:
        UserError: if the values are not ``[V]`` and finite.
    """
    array = np.asarray(values).astype(np.float64)
    if array.ndim != 1 or array.size == 0 or np.isnan(array).any():
        raise UserError(f"the values have the shape {array.shape}, expected [V] without nan: choose a text and a place")
    if not (array.min() >= 0 and abs(array.sum() - 1) < 1e-2):
        array = np.exp(array - array.max())
        array /= array.sum()
    ids = np.argsort(-array, kind="stable")[: max(1, top)]
    texts, probabilities = vocabulary_texts(tokens, [int(i) for i in ids]), array[ids]
    figure = new_figure(6.0, 0.9 + 0.28 * len(ids))
    axis = figure.add_subplot()
    places = np.arange(len(ids))
    axis.barh(places, probabilities, color="#3b6ea5", height=0.75)
    axis.set_yticks(places, texts, fontsize=9)
    axis.invert_yaxis()
    room = float(probabilities[0])
    for place, probability in zip(places, probabilities, strict=True):
        axis.text(probability + 0.01 * room, place, f"{probability:.1%}", va="center", fontsize=8)
    axis.set_xlim(0, 1.12 * room)
    axis.xaxis.set_major_formatter(need("matplotlib.ticker").PercentFormatter(1.0, decimals=None))
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=11)
    return finished(figure)


def embeddings(vectors: Any, labels: Sequence[str], title: str = "Embeddings") -> Any:
    """Vectors as points in the plane of their two principal components, in which they differ most.

    Args:
        vectors: ``[K, D]``, rows of a token table, hidden states or embeddings of texts, two or more.
        labels: their ``K`` names, written beside the points. Names that occur more than once are classes, each with a
            colour.
        title: over the points.

    Returns:
        A ``matplotlib.figure.Figure``; its axes name the share of the variance that they show.

    Raises:
        UserError: if the vectors are not ``[K, D]`` or have not as many labels.
    """
    array, names = np.asarray(vectors).astype(np.float64), token_texts(labels)
    if array.ndim != 2 or min(array.shape) < 2 or len(names) != len(array):
        raise UserError(
            f"the vectors have the shape {array.shape} and there are {len(names)} labels, expected [K, D] and K labels "
            "of two or more vectors"
        )
    fitted = need("sklearn.decomposition").PCA(n_components=2, svd_solver="full")
    points, shares = fitted.fit_transform(array), fitted.explained_variance_ratio_
    figure = new_figure(6.5, 5.5)
    axis = figure.add_subplot()
    classes = list(dict.fromkeys(names))
    if len(classes) < len(names):
        for name in classes:
            chosen = points[[other == name for other in names]]
            axis.scatter(chosen[:, 0], chosen[:, 1], s=16, label=name)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    else:
        axis.scatter(points[:, 0], points[:, 1], s=16, color="#3b6ea5")
        style = {"xytext": (5, 3), "textcoords": "offset points", "fontsize": 8}
        for point, name in zip(points[:MOST_NAMED_POINTS], names, strict=False):
            axis.annotate(name, point, **style)
    for side, share in (("x", shares[0]), ("y", shares[1])):
        ordinal = {"x": "first", "y": "second"}[side]
        axis.set(**{f"{side}label": f"{ordinal} principal component ({share:.0%} of the variance)"})
    axis.margins(0.12)
    axis.tick_params(labelsize=8)
    axis.set_title(title, fontsize=11)
    _spread(finished(figure), axis.texts)
    return figure


def _spread(figure: Any, names: Sequence[Any]) -> None:
    """Moves each name to the first side of its point where it covers no point and no other name, if there is one."""
    figure.draw_without_rendering()
    box = need("matplotlib.transforms").Bbox.from_bounds
    placed = [box(x - 3, y - 3, 6, 6) for x, y in (name.axes.transData.transform(name.xy) for name in names)]
    for name in names:
        boxes = {}
        for offset, align in _OFFSETS.items():
            name.set(position=offset, ha=align)
            boxes[offset] = name.get_window_extent()
            if not boxes[offset].count_overlaps(placed):
                break
        else:
            offset = next(iter(_OFFSETS))
            name.set(position=offset, ha=_OFFSETS[offset])
        placed.append(boxes[offset])


def learning_curves(runs: Mapping[str, Any], key: str = "loss", title: str = "Learning curves") -> Any:
    """A value by step, a colour for each run; training as a line, evaluation dashed with points.

    Args:
        runs: for each name the records of a run (``training.metrics.read_records`` of its ``metrics.jsonl``), or a pair
            of steps and values.
        key: of the records.
        title: over the curves.

    Returns:
        A ``matplotlib.figure.Figure``. A value that is not finite is a gap.

    Raises:
        UserError: if a run has no such value.
    """
    figure = new_figure(7.0, 4.2)
    axis = figure.add_subplot()
    for number, (name, run) in enumerate(runs.items()):
        curves = _curves(name, run, key)
        for split, (steps, values) in curves.items():
            style = {"linestyle": "--", "marker": "o", "markersize": 4} if split not in ("", "train") else {}
            label = f"{name}, {split}" if split and len(curves) > 1 else name
            axis.plot(steps, values, color=f"C{number % 10}", linewidth=1.4, label=label, **style)
    if not runs:
        raise UserError("no runs are given, expected names and their records")
    axis.set_xlabel("step", fontsize=9)
    axis.set_ylabel(key, fontsize=9)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    axis.set_title(title, fontsize=11)
    return finished(figure)


def _curves(name: str, run: Any, key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each split; of a pair of arrays the split has no name."""
    if isinstance(run, tuple):
        steps, values = (np.asarray(array, np.float64) for array in run)
        if steps.shape != values.shape or steps.ndim != 1:
            raise UserError(f"run {name!r} has steps {steps.shape} and values {values.shape}, expected as many")
        return {"": (steps, values)}
    found: dict[str, list[tuple[float, float]]] = {}
    for record in run:
        if key in record:
            value = record[key]
            found.setdefault(record.get("split", ""), []).append((record["step"], np.nan if value is None else value))
    if not found:
        keys = sorted({field for record in run for field in record} - {"step", "split"})
        raise UserError(f"run {name!r} has no {key!r}, expected one of its keys: {', '.join(keys) or 'it has none'}")
    return {split: tuple(np.asarray(points, np.float64).T) for split, points in found.items()}
