"""Plot of a confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.tasks.metrics import need

MOST_NUMBERED_CELLS = 25  # classes up to which a cell has room for its count
MOST_TICKS = 60


def confusion_matrix_plot(labels: Sequence[str], matrix: np.ndarray, path: str | Path) -> None:
    """Writes ``matrix [true class, predicted class]`` as a PNG; the shade is the share of the true class.

    Without an installed font for all characters of the labels, classes are numbered from 0 in the order of ``labels``.
    """
    figure_module = need("matplotlib.figure")
    agg = need("matplotlib.backends.backend_agg")  # draws without a screen
    count = len(labels)
    font = _font_for("".join(labels))
    names = list(labels) if font is not None else [str(number) for number in range(count)]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(16.0, 3.5 + 0.55 * count)
    figure = figure_module.Figure(figsize=(side + 1, side), layout="constrained")
    agg.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    shown = np.arange(0, count, -(-count // MOST_TICKS))
    text = {} if font is None else {"fontproperties": font}
    longest = max(map(len, names), default=0)
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > 3 else {}
    axes.set_xticks(shown, [names[i] for i in shown], **text, **turned)
    axes.set_yticks(shown, [names[i] for i in shown], **text)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if font is None:
        axes.set_title("classes are numbered in the order of the labels", fontsize=9)
    if count <= MOST_NUMBERED_CELLS:
        for row, column in np.ndindex(count, count):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=shade, fontsize=8)
    figure.savefig(path, dpi=150, format="png", bbox_inches="tight")


def _font_for(text: str) -> Any | None:
    """A font with every character of the text: matplotlib's own, else the first by name, else None."""
    manager = need("matplotlib.font_manager")
    wanted = {ord(character) for character in text if not character.isspace()}
    default = manager.findfont(manager.FontProperties())
    # "Last Resort" has a box for every character.
    fonts = [
        entry
        for entry in manager.fontManager.ttflist
        if entry.style == "normal" and not entry.name.startswith("Last Resort")
    ]
    others = sorted({entry.fname for entry in fonts})
    for file in (default, *others):
        try:
            characters = need("matplotlib.ft2font").FT2Font(file).get_charmap()
        except (OSError, RuntimeError):
            continue
        if wanted <= characters.keys():
            return manager.FontProperties(fname=file)
    return None
