"""Draws what runs that learn from rewards have learned: score and KL over the steps, a line a run.

python benchmarks/learning_curves.py runs/ppo runs/grpo --out docs/pictures/sums.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3")
SMOOTH = 5  # records that a point is the mean of


def records(folder: Path) -> list[dict[str, Any]]:
    """The training records of a run that have a score."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["split"] == "train" and "score" in line]


def smoothed(values: list[float]) -> np.ndarray:
    """The mean of each value and those before it, at most ``SMOOTH``."""
    return np.array([np.mean(values[max(0, end - SMOOTH) : end]) for end in range(1, len(values) + 1)])


def draw(folders: list[Path], out: Path, title: str) -> None:
    """Two panels side by side, score and KL."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    names = (("score", "mean score of the responses"), ("kl", "KL to the start, nats a response"))
    for axes, (name, said) in zip(panels, names, strict=True):
        for colour, folder in zip(COLOURS, folders, strict=False):
            found = records(folder)
            steps, values = [record["step"] for record in found], [record[name] for record in found]
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axes.plot(steps, smoothed(values), color=colour, label=folder.name, linewidth=2)
        axes.set(xlabel="step", title=said)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Reads the arguments and draws."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, at most four")
    parser.add_argument("--out", type=Path, required=True, help="picture to write, .png")
    parser.add_argument("--title", default="", help="above both panels")
    options = parser.parse_args()
    draw(options.runs, options.out, options.title)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
