"""Pictures of matrices: attention, masks, positions and confusion matrices."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxformer.external import need
from jaxformer.functional import Mask, Rotary
from jaxformer.plot.figures import finished, fonts_for, new_figure, panels
from jaxformer.plot.tokens import token_texts
from jaxformer.schema import UserError

MOST_NUMBERED_CELLS = 25  # classes up to which a cell has room for its count
MOST_TICKS = 60
LABEL_INCHES = 0.15  # height of a label of 8 points and the room around it


def attention(
    weights: Any,
    tokens: Sequence[str],
    other_tokens: Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
    title: str = "Attention",
) -> Any:
    """A heat map for each head: a row is a query, a column a key, the shade the weight of the key for the query.

    Args:
        weights: ``[N, T, S]``, of one layer for one text, ``output.attentions[layer][0]``.
        tokens: the ``T`` queries, texts or the tokenizer's own tokens.
        other_tokens: the ``S`` keys, where they are of another text (cross-attention); default: ``tokens``.
        heads: numbers of the heads to draw; default: all.
        title: over all heads.

    Returns:
        A ``matplotlib.figure.Figure``. All heads have one scale, from 0 to the largest weight.

    Raises:
        UserError: if the shapes, the numbers of tokens or the heads do not fit.
    """
    array, rows, columns = _checked(weights, 3, "[N, T, S]", tokens, other_tokens)
    shown = list(range(len(array))) if heads is None else list(heads)
    if not shown or any(head not in range(len(array)) for head in shown):
        raise UserError(f"heads is {shown}, expected numbers from 0 to {len(array) - 1}")
    side = {1: 0.3, 2: 0.26}.get(len(shown), 0.22)
    width, height = (min(max(side * count, 2.0), 9.0) for count in (len(columns), len(rows)))
    figure, axes = panels(len(shown), width, height)
    largest = float(array[shown].max())
    for axis, head in zip(axes, shown, strict=True):
        image = axis.imshow(array[head], cmap="Blues", vmin=0.0, vmax=largest, aspect="auto")
        axis.set_title(f"head {head}", fontsize=9)
        _label(axis.yaxis, rows if _is_first(axis) else [], height)
        _label(axis.xaxis, columns if _is_last(axis, axes) else [], width)
    _color_bar(figure, image, axes, "attention weight")
    return _titled(figure, title, "query", "key")


def attention_lines(
    weights: Any, tokens: Sequence[str], other_tokens: Sequence[str] | None = None, title: str = "Attention"
) -> Any:
    """One head as lines from each query on the left to its keys on the right, as dark as the weights.

    Args:
        weights: ``[T, S]``, of one head for one text, ``output.attentions[layer][0, head]``.
        tokens: the ``T`` queries, texts or the tokenizer's own tokens.
        other_tokens: the ``S`` keys, where they are of another text; default: ``tokens``.
        title: over the lines.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        UserError: if the shapes and the numbers of tokens do not fit.
    """
    array, rows, columns = _checked(weights, 2, "[T, S]", tokens, other_tokens)
    most = max(len(rows), len(columns))
    figure = new_figure(4.5, max(1.5, 0.24 * most + 0.6))
    axis = figure.add_subplot()
    ends = [((0.0, t), (1.0, s)) for t in range(len(rows)) for s in range(len(columns))]
    shades = np.clip(array.reshape(-1), 0.0, 1.0)
    lines = need("matplotlib.collections").LineCollection(ends, colors="#1f4e8c", alpha=shades, linewidths=1.8)
    axis.add_collection(lines)
    for place, names, align in ((-0.04, rows, "right"), (1.04, columns, "left")):
        for y, name in enumerate(names):
            axis.text(place, y, name, ha=align, va="center", fontsize=9)
    axis.set(xlim=(-0.5, 1.5), ylim=(most - 0.5, -0.5))
    axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return finished(figure)


def mask(
    mask: Any,
    tokens: Sequence[str] | None = None,
    other_tokens: Sequence[str] | None = None,
    length: int | None = None,
    title: str = "Mask",
) -> Any:
    """Which key (column) each query (row) may attend to, one picture for each row of the batch.

    Args:
        mask: a ``functional.Mask``, or an array ``[T, S]`` or ``[B, T, S]``, True where the query may attend.
        tokens: the ``T`` queries; default: numbers.
        other_tokens: the ``S`` keys; default: ``tokens``.
        length: ``T``, for a ``Mask`` without tokens.
        title: over all pictures.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        UserError: if the length of a ``Mask`` is not known, or an array does not fit.
    """
    if isinstance(mask, Mask):
        size = length if tokens is None else len(tokens)
        if size is None:
            raise UserError("a Mask has no length of its own, expected length or tokens")
        keys = size if other_tokens is None else len(other_tokens)
        found = mask.array(size, keys)
        array = np.ones((1, size, keys), bool) if found is None else np.asarray(found)
    else:
        array = np.asarray(mask)
        array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.size == 0:
        raise UserError(f"the mask has the shape {array.shape}, expected [T, S] or [B, T, S]")
    array = array.astype(bool)
    given = [str(i) for i in range(array.shape[1])] if tokens is None else tokens
    others = [str(i) for i in range(array.shape[2])] if tokens is None and other_tokens is None else other_tokens
    _, rows, columns = _checked(array, 3, "[B, T, S]", given, others)
    width, height = (min(max(0.26 * count, 2.0), 9.0) for count in array.shape[:0:-1])
    figure, axes = panels(len(array), width, height)
    colors = need("matplotlib.colors").ListedColormap(["#eeeeee", "#3b6ea5"])
    for number, axis in enumerate(axes):
        axis.imshow(array[number], cmap=colors, vmin=0, vmax=1, aspect="auto")
        axis.set_title(f"row {number}" if len(array) > 1 else "", fontsize=9)
        _label(axis.yaxis, rows if _is_first(axis) else [], height)
        _label(axis.xaxis, columns if _is_last(axis, axes) else [], width)
        if max(array.shape[1:]) <= MOST_TICKS:
            axis.set_xticks(np.arange(array.shape[2] + 1) - 0.5, minor=True)
            axis.set_yticks(np.arange(array.shape[1] + 1) - 0.5, minor=True)
            axis.grid(which="minor", color="white", linewidth=0.8)
            axis.tick_params(which="minor", length=0)
    patch = need("matplotlib.patches").Patch
    patches = [patch(color=colors(n), label=text) for n, text in ((1, "may attend"), (0, "may not"))]
    figure.legend(handles=patches, loc="outside right center", fontsize=8, frameon=False)
    return _titled(figure, title, "query", "key")


def positions(encoding: Any, title: str | None = None) -> Any:
    """Draws positions as a model tells them apart.

    Args:
        encoding: a table of learned or sinusoidal positions ``[T, D]``; or the cosines and sines of
            ``functional.rotary_angles``; or a bias of the scores ``[N, T, S]`` or ``[1, N, T, S]``, of
            ``functional.alibi_bias`` or ``relative_bias``.
        title: over the picture; default: what it is.

    Returns:
        A ``matplotlib.figure.Figure``: of a table a row a position, of rotary positions the same for cosines and for
        sines, of a bias a picture a head.

    Raises:
        UserError: if it is none of these.
    """
    if isinstance(encoding, Rotary):
        named = {name: np.asarray(array, np.float32) for name, array in (("cos", encoding.cos), ("sin", encoding.sin))}
        pictures = {f"{name} of the angle": array.reshape(-1, *array.shape[-2:])[0] for name, array in named.items()}
        names, limits = ("Rotary positions", "position", "pair of dimensions"), (-1.0, 1.0)
    else:
        array = np.asarray(encoding, np.float32)
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        if array.ndim not in (2, 3) or array.size == 0:
            raise UserError(
                f"the positions have the shape {array.shape}, expected [T, D], or [N, T, S] of a bias, or a Rotary"
            )
        largest = float(np.abs(array).max()) or 1.0
        limits = (-largest, largest)
        if array.ndim == 2:
            pictures, names = {"": array}, ("Positions", "position", "dimension")
        else:
            pictures = {f"head {head}": bias for head, bias in enumerate(array)}
            names = ("Bias of the scores", "query", "key")
    figure, axes = panels(len(pictures), *((2.6, 2.4) if len(pictures) > 2 else (4.0, 3.4)))
    for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
        image = axis.imshow(picture, cmap="RdBu_r", vmin=limits[0], vmax=limits[1], aspect="auto")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=8)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(need("matplotlib.ticker").MaxNLocator(integer=True))
    _color_bar(figure, image, axes)
    return _titled(figure, names[0] if title is None else title, *names[1:])


def confusion_matrix(labels: Sequence[str], matrix: Any, title: str | None = None) -> Any:
    """Draws how often each class (row) was taken for each (column); the shade is the share of the true class.

    Args:
        labels: names of the classes. Without installed fonts for all of their characters classes are numbered from 0.
        matrix: counts ``[true class, predicted class]``.
        title: over the picture.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    counts, count = np.asarray(matrix), len(labels)
    if counts.shape != (count, count):
        raise UserError(f"the matrix has the shape {counts.shape}, expected {(count, count)} for {count} labels")
    numbered = bool(fonts_for("".join(labels))[1])
    names = [str(number) for number in range(count)] if numbered else list(labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(16.0, 3.5 + 0.55 * count)
    figure = new_figure(side + 1, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _color_bar(figure, image, axes, "share of the true class")
    shown = np.arange(0, count, -(-count // MOST_TICKS))
    longest = max(map(len, names), default=0)
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > 3 else {}
    axes.set_xticks(shown, [names[i] for i in shown], **turned)
    axes.set_yticks(shown, [names[i] for i in shown])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if title is not None or numbered:
        note = "classes are numbered in the order of the labels" if numbered else ""
        axes.set_title("\n".join(filter(None, (title, note))), fontsize=9)
    if count <= MOST_NUMBERED_CELLS:
        for row, column in np.ndindex(count, count):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=8)
    return finished(figure)


def _checked(
    weights: Any, ndim: int, shape: str, tokens: Sequence[str], other_tokens: Sequence[str] | None
) -> tuple[np.ndarray, list[str], list[str]]:
    """The array, and the texts of its rows and columns."""
    array = np.asarray(weights)
    array = array if array.dtype == bool else array.astype(np.float32)
    if array.ndim != ndim or array.size == 0:
        raise UserError(f"the weights have the shape {array.shape}, expected {shape}: choose a text, a layer or a head")
    rows = token_texts(tokens)
    columns = rows if other_tokens is None else token_texts(other_tokens)
    for name, axis, texts in (("queries", -2, rows), ("keys", -1, columns)):
        if len(texts) != array.shape[axis]:
            raise UserError(f"{array.shape[axis]} {name} and {len(texts)} tokens are given, expected as many")
    return array, rows, columns


def _color_bar(figure: Any, image: Any, axes: Any, label: str = "") -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _titled(figure: Any, title: str, row: str, column: str) -> Any:
    """The figure with its title and what a row and a column are."""
    figure.suptitle(title, fontsize=11)
    figure.supylabel(row, fontsize=9)
    figure.supxlabel(column, fontsize=9)
    return finished(figure)


def _label(axis: Any, texts: Sequence[str], inches: float) -> None:
    """Writes the texts along an axis, as many as have room."""
    step = max(1, -(-len(texts) * LABEL_INCHES // inches))
    shown = range(0, len(texts), int(step))
    turned = {"rotation": 90} if axis.axis_name == "x" and any(len(text) > 1 for text in texts) else {}
    axis.set_ticks(list(shown), [texts[i] for i in shown], fontsize=8, **turned)


def _is_first(axis: Any) -> bool:
    """True for the first panel of a row."""
    return bool(axis.get_subplotspec().is_first_col())


def _is_last(axis: Any, axes: Sequence[Any]) -> bool:
    """True for the lowest panel of a column, below which the last row may be empty."""
    place = axis.get_subplotspec()
    below = [other for other in axes if other.get_subplotspec().colspan.start == place.colspan.start]
    return bool(place.rowspan.start == max(other.get_subplotspec().rowspan.start for other in below))
