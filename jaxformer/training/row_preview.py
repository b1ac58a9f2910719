"""Rows as training reads them: decoded, with the trained tokens marked."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from rich.text import Text

from jaxformer.generation.text_stream import TextStream
from jaxformer.tasks.text_pairs import PairConfig
from jaxformer.tokenizers import PreTrainedTokenizer, decode
from jaxformer.training.run import Run

STYLE = "bold green"
OPEN, CLOSE = "[[", "]]"


@dataclass(frozen=True)
class Passage:
    """Consecutive tokens, and which of them are in the loss.

    The title is the kind of text (a document of a packed row, a source, a target), the note a target beside tokens. The
    losses are there if the row has ``label_losses``.
    """

    title: str
    ids: Sequence[int]
    trained: Sequence[bool]
    note: str = ""
    losses: Sequence[float] = ()  # nats, beside the ids; nan where nothing is predicted

    def text(self, tokenizer: PreTrainedTokenizer, coloured: bool) -> Text:
        """The decoded tokens, special ones too; those trained in colour, or in brackets."""
        text = Text()
        for trained, group in groupby(zip(self.ids, self.trained, strict=True), key=lambda pair: bool(pair[1])):
            piece = decode(tokenizer, [i for i, _ in group], skip_special_tokens=False)
            text.append(f"{OPEN}{piece}{CLOSE}" if trained and not coloured else piece, STYLE if trained else "")
        return text


def pieces(passage: Passage, tokenizer: PreTrainedTokenizer) -> Iterator[tuple[str, bool, float | None]]:
    """Text, whether it is trained, and loss, for the shortest runs of tokens that are whole characters."""
    stream, pending = TextStream(tokenizer, skip_special_tokens=False), []
    losses = passage.losses or [math.nan] * len(passage.ids)
    last = len(passage.ids) - 1
    for number, (token, trained, loss) in enumerate(zip(passage.ids, passage.trained, losses, strict=True)):
        pending.append((bool(trained), float(loss)))
        text = stream.put([token], end=number == last)
        if text or number == last:
            known = [loss for _, loss in pending if not math.isnan(loss)]
            yield text, any(trained for trained, _ in pending), sum(known) if known else None
            pending = []


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
    if isinstance(run.config.task, PairConfig):
        return _texts(row, run.config.task.label_column is not None)
    if ids.ndim == 2:
        return _choices(row) if labels is not None and labels.ndim == 0 else _pair(row)
    if "decoder_input_ids" in row:
        segments = row.get("decoder_segment_ids")
        return [*_plain("input", row), *_segments("target", row["labels"], segments, row.get("label_losses"))]
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
        note = " ".join(names[i] for i in labels if i >= 0)
        return [_real("text", row, labels >= 0, note, _where(labels >= 0, row.get("label_losses")))]
    return _next_tokens(row, labels)


def _mask(row: dict[str, np.ndarray]) -> np.ndarray:
    """True at real tokens, False at padding."""
    if "segment_ids" in row:
        return row["segment_ids"] > 0
    return np.asarray(row.get("attention_mask", np.ones(row["input_ids"].shape))) > 0


def _where(asked: np.ndarray, losses: np.ndarray | None) -> np.ndarray | None:
    """The losses of labels that are asked for, nan elsewhere."""
    return None if losses is None else np.where(asked, losses, np.nan)


def _real(
    title: str, row: dict[str, np.ndarray], trained: np.ndarray, note: str = "", losses: np.ndarray | None = None
) -> Passage:
    real = _mask(row)
    shown = () if losses is None else losses[real].tolist()
    return Passage(title, row["input_ids"][real].tolist(), trained[real].tolist(), note, shown)


def _label(run: Run, labels: Any) -> str:
    names = run.task.labels
    if labels is None:
        return ""
    if labels.ndim:
        return "labels: " + (", ".join(name for name, yes in zip(names, labels, strict=True) if yes) or "none")
    return f"label: {names[int(labels)] if names else labels}"


def _plain(title: str, row: dict[str, np.ndarray]) -> list[Passage]:
    return [_real(title, row, np.zeros(row["input_ids"].shape, bool))]


def _segments(
    title: str, labels: np.ndarray, segments: np.ndarray | None, losses: np.ndarray | None = None
) -> list[Passage]:
    """Targets: every token is trained."""
    numbers = np.where(labels >= 0, 1, 0) if segments is None else segments
    found = []
    for number in range(1, int(numbers.max(initial=0)) + 1):
        chosen = (numbers == number) & (labels >= 0)
        ids = labels[chosen].tolist()
        found.append(Passage(title, ids, [True] * len(ids), losses=() if losses is None else losses[chosen].tolist()))
    return found


def _hidden(row: dict[str, np.ndarray]) -> list[Passage]:
    """Each hidden token in its place, as the loss asks for it."""
    ids, trained = row["input_ids"].copy(), np.zeros(len(row["input_ids"]), bool)
    asked = row["labels"] >= 0
    ids[row["masked_positions"][asked]] = row["labels"][asked]
    trained[row["masked_positions"][asked]] = True
    losses = None
    if "label_losses" in row:
        losses = np.full(len(ids), np.nan)
        losses[row["masked_positions"][asked]] = row["label_losses"][asked]
    note = f"{asked.sum()} tokens are hidden from the model"
    return [_real("text", {**row, "input_ids": ids}, trained, note, losses)]


def _choices(row: dict[str, np.ndarray]) -> list[Passage]:
    choices = zip(row["input_ids"], row["attention_mask"], strict=True)
    return [
        _real(f"choice {n}", {"input_ids": ids, "attention_mask": mask}, np.full(len(ids), n == row["labels"]))
        for n, (ids, mask) in enumerate(choices)
        if mask.any()
    ]


def _texts(row: dict[str, np.ndarray], labelled: bool) -> list[Passage]:
    """Texts, or pairs of texts, that are scored as a whole."""
    note = f"label: {float(row['labels']):g}" if labelled else ""
    return [
        _real(f"text {n}", {"input_ids": ids, "attention_mask": mask}, np.zeros(len(ids), bool), note)
        for n, (ids, mask) in enumerate(zip(row["input_ids"], row["attention_mask"], strict=True), 1)
        if mask.any()
    ]


def _next_tokens(row: dict[str, np.ndarray], labels: np.ndarray) -> list[Passage]:
    """Documents, in which a token is trained where the one before it is asked for it."""
    ids, real = row["input_ids"], _mask(row)
    segments = row.get("segment_ids", real.astype(int))
    losses = _where(labels >= 0, row.get("label_losses"))
    found = []
    for number in range(1, int(segments.max(initial=0)) + 1):
        places = np.flatnonzero((segments == number) & real)
        asked = labels[places]
        tokens, trained = ids[places].tolist(), [False, *(asked[:-1] >= 0).tolist()]
        if asked[-1] >= 0:  # the last is asked for and not read
            tokens, trained = [*tokens, int(asked[-1])], [*trained, True]
        of_tokens = () if losses is None else [math.nan, *losses[places].tolist()][: len(tokens)]
        found.append(Passage("text", tokens, trained, losses=of_tokens))
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
