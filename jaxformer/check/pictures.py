"""Pictures of a model's parameters: histograms by kind, and differences of two models by layer and kind."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxformer.check.contents import Comparison, Contents, parts
from jaxformer.plot.figures import new_figure, panels

MOST_KINDS, SAMPLE = 24, 100_000  # kinds with a histogram, values of an array in it


def draw_histograms(contents: Contents, path: str | Path) -> None:
    """Writes a PNG with the values of each kind of parameter, all layers together; the counts are logarithmic."""
    kinds: dict[str, list[np.ndarray]] = {}
    for name in contents.parameters:
        values = contents.arrays.read(name)
        kind = next((part.kind for part in parts(name, values)), name)
        flat = values.reshape(-1)
        kinds.setdefault(kind, []).append(flat[:: -(-max(len(flat), 1) // SAMPLE)].astype(np.float32))
    shown = dict(sorted(kinds.items(), key=lambda kind: -sum(map(len, kind[1])))[:MOST_KINDS])
    figure, axes = panels(len(shown), 4.2, 2.3)
    for axis, (kind, arrays) in zip(axes, sorted(shown.items()), strict=True):
        values = np.concatenate(arrays)
        axis.hist(values[np.isfinite(values)], bins=80, log=True, color="#3b6ea5")
        axis.set_title(_shortened(kind), fontsize=8)
        axis.tick_params(which="both", labelsize=7)
    more = f" (the {len(shown)} largest of {len(kinds)} kinds)" if len(kinds) > len(shown) else ""
    figure.suptitle(f"{contents.source}: {contents.kind}, values by kind of parameter{more}", fontsize=10)
    figure.savefig(path, dpi=130, format="png")


def draw_differences(first: Contents, second: Contents, found: Comparison, path: str | Path) -> None:
    """Writes a PNG: for each kind of parameter and layer ``log10(norm(a - b) / norm(b))``, blank where equal."""
    changed = {change.name for change in found.changes}
    cells: dict[str, dict[int | None, float]] = {}
    for name in [n for n in first.parameters if n in {*second.parameters} and n in changed]:
        for mine, other in zip(*(parts(name, c.arrays.read(name)) for c in (first, second)), strict=True):
            cells.setdefault(mine.kind, {})[mine.layer] = _relative(mine.values, other.values)
    layers = sorted({layer for row in cells.values() for layer in row if layer is not None})
    columns: list[int | None] = [*layers, None]
    if not cells:
        figure = new_figure(6, 1.5)
        axis = figure.add_subplot()
        axis.text(0.5, 0.5, "no parameter differs", ha="center")
        axis.set_axis_off()
        figure.savefig(path, dpi=130, format="png")
        return
    grid = np.array([[_logarithm(row, layer) for layer in columns] for row in cells.values()])
    figure = new_figure(4.5 + 0.42 * len(columns), 1.6 + 0.24 * len(cells))
    axis = figure.add_subplot()
    image = axis.imshow(grid, cmap="viridis", aspect="auto")
    axis.set_yticks(range(len(cells)), [_shortened(kind) for kind in cells], fontsize=7)
    axis.set_xticks(range(len(columns)), [*map(str, layers), "none"], fontsize=7, rotation=90 if layers[24:] else 0)
    axis.set_xlabel("layer (none: outside of the layers)", fontsize=8)
    figure.colorbar(image, ax=axis, label="log10 of the relative difference")
    figure.suptitle(f"{first.source} and {second.source}", fontsize=9)
    figure.savefig(path, dpi=130, format="png")


def _shortened(kind: str) -> str:
    return kind if len(kind) <= 42 else f"...{kind[-39:]}"


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    one, other = (np.asarray(x, np.float32) for x in (a, b))
    norm = float(np.linalg.norm(other))
    return float(np.linalg.norm(one - other)) / norm if norm else float(np.any(one != other))


def _logarithm(row: Mapping[int | None, float], layer: int | None) -> float:
    value = row.get(layer, 0.0)
    return float(np.log10(value)) if value > 0 and np.isfinite(value) else np.nan
