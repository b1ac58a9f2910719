"""Rows as training reads them: decoded, with the trained tokens marked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from rich.text import Text

from jaxformer.tokenizers import PreTrainedTokenizer, decode
from jaxformer.training.run import Run

STYLE = "bold green"
OPEN, CLOSE = "[[", "]]"


@dataclass(frozen=True)
class Passage:
    """Consecutive tokens, and which of them are in the loss.

    The title is the kind of text (a document of a packed row, a source, a target), the note a target beside tokens.
    """

    title: str
    ids: Sequence[int]
    trained: Sequence[bool]
    note: str = ""

    def text(self, tokenizer: PreTrainedTokenizer, coloured: bool) -> Text:
        """The decoded tokens, special ones too; those trained in colour, or in brackets."""
        text = Text()
        for trained, group in groupby(zip(self.ids, self.trained, strict=True), key=lambda pair: bool(pair[1])):
            piece = decode(tokenizer, [i for i, _ in group], skip_special_tokens=False)
            text.append(f"{OPEN}{piece}{CLOSE}" if trained and not coloured else piece, STYLE if trained else "")
        return text


def rows_of(run: Run, count: int) -> Iterator[dict[str, np.ndarray]]:
    """The features of the first rows of training, in the order it reads them."""
    batches, size = run.train_batches, run.train_batches.batch_size
    for first in range(0, count, size):
        batch = batches[first // size]
        for row in range(min(size, count - first)):
            yield {name: np.asarray(array[row]) for name, array in batch.items()}


def passages(run: Run, row: dict[str, np.ndarray]) -> list[Passage]:
    """The passages of a row."""
    labels, ids = row.get("labels"), row["input_ids"]
    if ids.ndim == 2:
        return _choices(row) if labels is not None and labels.ndim == 0 else _pair(row)
    if "decoder_input_ids" in row:
        return [*_plain("input", row), *_segments("target", row["labels"], row.get("decoder_segment_ids"))]
    if "masked_positions" in row:
        return _hidden(row)
    if "start_positions" in row:
        inside = np.arange(len(ids))
        answer = (inside >= row["start_positions"]) & (inside <= row["end_positions"])
        return [_real("text", row, answer)]
    if labels is None or labels.shape != ids.shape:
        return [_real("text", row, np.zeros(len(ids), bool), _label(run, labels))]
    if run.config.task.labels_tokens:
        names = run.task.labels
        return [_real("text", row, labels >= 0, " ".join(names[i] for i in labels if i >= 0))]
    return _next_tokens(row, labels)


def _mask(row: dict[str, np.ndarray]) -> np.ndarray:
    """True at real tokens, False at padding."""
    if "segment_ids" in row:
        return row["segment_ids"] > 0
    return np.asarray(row.get("attention_mask", np.ones(row["input_ids"].shape))) > 0


def _real(title: str, row: dict[str, np.ndarray], trained: np.ndarray, note: str = "") -> Passage:
    real = _mask(row)
    return Passage(title, row["input_ids"][real].tolist(), trained[real].tolist(), note)


def _label(run: Run, labels: Any) -> str:
    names = run.task.labels
    if labels is None:
        return ""
    if labels.ndim:
        return "labels: " + (", ".join(name for name, yes in zip(names, labels, strict=True) if yes) or "none")
    return f"label: {names[int(labels)] if names else labels}"


def _plain(title: str, row: dict[str, np.ndarray]) -> list[Passage]:
    return [_real(title, row, np.zeros(row["input_ids"].shape, bool))]


def _segments(title: str, labels: np.ndarray, segments: np.ndarray | None) -> list[Passage]:
    """Targets: every token is trained."""
    numbers = np.where(labels >= 0, 1, 0) if segments is None else segments
    found = []
    for number in range(1, int(numbers.max(initial=0)) + 1):
        ids = labels[(numbers == number) & (labels >= 0)].tolist()
        found.append(Passage(title, ids, [True] * len(ids)))
    return found


def _hidden(row: dict[str, np.ndarray]) -> list[Passage]:
    """Each hidden token in its place, as the loss asks for it."""
    ids, trained = row["input_ids"].copy(), np.zeros(len(row["input_ids"]), bool)
    asked = row["labels"] >= 0
    ids[row["masked_positions"][asked]] = row["labels"][asked]
    trained[row["masked_positions"][asked]] = True
    return [_real("text", {**row, "input_ids": ids}, trained, f"{asked.sum()} tokens are hidden from the model")]


def _choices(row: dict[str, np.ndarray]) -> list[Passage]:
    choices = zip(row["input_ids"], row["attention_mask"], strict=True)
    return [
        _real(f"choice {n}", {"input_ids": ids, "attention_mask": mask}, np.full(len(ids), n == row["labels"]))
        for n, (ids, mask) in enumerate(choices)
        if mask.any()
    ]


def _next_tokens(row: dict[str, np.ndarray], labels: np.ndarray) -> list[Passage]:
    """Documents, in which a token is trained where the one before it is asked for it."""
    ids, real = row["input_ids"], _mask(row)
    segments = row.get("segment_ids", real.astype(int))
    found = []
    for number in range(1, int(segments.max(initial=0)) + 1):
        places = np.flatnonzero((segments == number) & real)
        asked = labels[places]
        tokens, trained = ids[places].tolist(), [False, *(asked[:-1] >= 0).tolist()]
        if asked[-1] >= 0:  # the last is asked for and not read
            tokens, trained = [*tokens, int(asked[-1])], [*trained, True]
        found.append(Passage("text", tokens, trained))
    return found


def _pair(row: dict[str, np.ndarray]) -> list[Passage]:
    """The texts of a preference pair; where they are scored as a whole it is at their last token."""
    found = []
    for number, title in zip(range(len(row["input_ids"])), ("chosen", "rejected", "mismatched"), strict=False):
        one = {name: array[number] for name, array in row.items() if array.ndim == 2}
        if "labels" not in one:
            real = int(one["attention_mask"].sum())
            found.append(_real(title, one, np.arange(len(one["input_ids"])) == real - 1))
        elif "decoder_input_ids" in one:
            found += [*_plain(f"{title}: input", one), *_segments(title, one["labels"], None)]
        else:
            found += [replace(text, title=title) for text in _next_tokens(one, one["labels"])]
    return found


def show_rows(run: Run, count: int, console: Any) -> None:
    """Prints the first training rows; on a terminal trained tokens are coloured, elsewhere they stand in brackets."""
    coloured = console.is_terminal
    for number, row in enumerate(rows_of(run, count), 1):
        found = passages(run, row)
        trained, tokens = (sum(map(sum, c)) for c in zip(*((p.trained, [1] * len(p.ids)) for p in found), strict=True))
        console.print(f"row {number}: {tokens:,} tokens, {trained:,} trained", style="bold", markup=False)
        for passage in found:
            console.print(f"-- {passage.title}", style="dim", markup=False)
            console.print(passage.text(run.tokenizer, coloured))
            if passage.note:
                console.print(passage.note, markup=False)
        console.print()
