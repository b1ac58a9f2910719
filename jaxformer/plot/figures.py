"""Figures of matplotlib without pyplot, and fonts that have the characters of their texts."""

import io
import warnings
from functools import cache
from typing import Any

from jaxformer.external import need

# Printed beside text of 9 points, 100 dots an inch are enough for a screen and 150 for paper.
SCREEN_DPI = 100


@cache
def _figure_class() -> Any:
    figure: Any = need("matplotlib.figure").Figure

    class NotebookFigure(figure):
        """A figure that a notebook shows, though pyplot does not know it."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=SCREEN_DPI)
            return buffer.getvalue()

    return NotebookFigure


def new_figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches."""
    figure = _figure_class()(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    need("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)  # draws without a screen
    return figure


def panels(count: int, width: float, height: float, most_columns: int = 4) -> tuple[Any, list[Any]]:
    """A figure with ``count`` axes in a grid, each ``width x height`` inches and a margin for texts.

    Up to ``most_columns`` axes stand in one row; of more, rows are full where they can be.
    """
    full = (columns for columns in range(most_columns, most_columns // 2, -1) if count % columns == 0)
    columns = min(count, next(full, most_columns))
    rows = -(-count // columns)
    figure = new_figure(columns * width + 1.6, rows * height + 1.0)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def finished(figure: Any) -> Any:
    """The figure with its texts as they are (a ``$`` is no mathematics), in fonts that have their characters.

    Warns of characters that no installed font has.
    """
    texts = [text for text in figure.findobj(need("matplotlib.text").Text) if text.get_text()]
    families, missing = fonts_for("".join(text.get_text() for text in texts))
    for text in texts:
        text.set_parse_math(False)
        text.set_fontfamily(families)
    if missing:
        warnings.warn(
            f"no installed font has {' '.join(missing[:20])}; install one, such as the package fonts-noto-cjk",
            stacklevel=3,
        )
    return figure


def fonts_for(text: str) -> tuple[list[str], list[str]]:
    """Names of fonts that together have every character of a text, and the characters that none has.

    The default font of matplotlib comes first, then the font that has most of the rest, and so on; of equals the one
    without serifs. A font that was installed after matplotlib made its list is found too.
    """
    manager = need("matplotlib.font_manager")
    default = manager.FontProperties()
    families = list(default.get_family())
    missing = {ord(character) for character in text if character.isprintable() and not character.isspace()}
    missing -= _characters(manager.findfont(default))
    if not missing:
        return families, []
    known = {entry.fname for entry in manager.fontManager.ttflist}
    for file in sorted({*manager.findSystemFonts()} - known):
        try:
            manager.fontManager.addfont(file)
        except Exception:  # of the file; the library raises several kinds
            continue
    # "Last Resort" has a box for every character.
    fonts = {
        entry.name: _characters(entry.fname)
        for entry in manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight == 400 and not entry.name.startswith("Last Resort")
    }
    while missing and fonts:
        best = max(fonts, key=lambda name: (len(missing & fonts[name]), "Gothic" in name or "Sans" in name, -len(name)))
        if not missing & fonts[best]:
            break
        families.append(best)
        missing -= fonts.pop(best)
    return families, [chr(code) for code in sorted(missing)]


@cache
def _characters(file: str) -> frozenset[int]:
    """The code points that a font file has."""
    try:
        return frozenset(need("matplotlib.ft2font").FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
