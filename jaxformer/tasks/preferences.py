"""Preference pairs: found in a row, turned into tokens, two texts a row of a batch."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F
from jaxformer.data.example_rows import Example
from jaxformer.tasks.bad_rows import BadRow, Tally
from jaxformer.tasks.base import Batch, Report
from jaxformer.tasks.dialogue import Message, split_dialogue
from jaxformer.tasks.records import Record, rounded, where
from jaxformer.tasks.responses import Answered, ColumnReader, Encoded, ResponseEncoder, fitted

ANSWER = "\n\nAssistant:"
SIDES = ("chosen", "rejected")
DIFFER = "the two dialogues differ before their last message"


class Pair(NamedTuple):
    """A prompt with the response preferred and the other one."""

    chosen: Any
    rejected: Any


class PairReader(ColumnReader):
    """Finds the two sides of a row.

    A row has ``prompt``, ``chosen`` and ``rejected``, texts or lists of messages; or ``chosen`` and ``rejected`` alone,
    each a whole dialogue: messages, or text as HH-RLHF writes it, which becomes messages where there is a template.

    Args:
        columns: the data's names of columns by ours, where they differ.
        as_messages: whether dialogues written as text become messages.
    """

    def read(self, record: Record) -> Pair:
        """The two sides.

        Raises:
            BadRow: if a side is missing or empty, both are equal, or their prompts differ.
        """
        prompt, *sides = (self._value(record, name) for name in ("prompt", *SIDES))
        for name, side in zip(SIDES, sides, strict=True):
            if side is None:
                raise BadRow(f"column {self._name(name)!r} is missing")
        parts = sides if prompt is None else [prompt, *sides]
        if not any(all(isinstance(part, kind) for part in parts) for kind in (str, list | tuple)):
            raise BadRow("prompt, chosen and rejected are not all text or all messages")
        chosen, rejected = sides
        if isinstance(chosen, str):
            pair = (
                self._dialogues(chosen, rejected)
                if prompt is None
                else Pair(Answered(prompt, chosen), Answered(prompt, rejected))
            )
        else:
            pair = self._messages(prompt, chosen, rejected)
        for name, answered in zip(SIDES, pair, strict=True):
            if isinstance(answered.response, str) and not answered.response.strip():
                raise BadRow(f"the {name} response is empty")
        if pair.chosen == pair.rejected:
            raise BadRow("chosen and rejected are equal")
        return pair

    def _messages(self, prompt: Any, chosen: Any, rejected: Any) -> Pair:
        if prompt is None:
            if len(chosen) < 2 or len(rejected) < 2:
                raise BadRow("a dialogue has fewer than two messages")
            if list(chosen[:-1]) != list(rejected[:-1]):
                raise BadRow(DIFFER)
            prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
        return Pair(Answered(list(prompt), list(chosen)), Answered(list(prompt), list(rejected)))

    def _dialogues(self, chosen: str, rejected: str) -> Pair:
        prompts, responses = zip(*map(split_answer, (chosen, rejected)), strict=True)
        if prompts[0] != prompts[1]:
            raise BadRow(DIFFER)
        prompt = written_prompt(prompts[0], self._as_messages)
        if isinstance(prompt, str):
            return Pair(*(Answered(prompt, response) for response in responses))
        answers = [[{"role": "assistant", "content": response.strip()}] for response in responses]
        return Pair(*(Answered(prompt, answer) for answer in answers))


def split_answer(dialogue: str) -> tuple[str, str]:
    """A dialogue as HH-RLHF writes it, before the mark of its last answer and behind it.

    >>> split_answer("\\n\\nHuman: Hi\\n\\nAssistant: Hello.")
    ('\\n\\nHuman: Hi', ' Hello.')

    Raises:
        BadRow: if there is no answer.
    """
    before, mark, after = dialogue.rpartition(ANSWER)
    if not mark:
        raise BadRow("a dialogue has no line that begins with Assistant:")
    return before, after


def written_prompt(before: str, as_messages: bool) -> str | list[Message]:
    """What an answer follows: the text before its mark with the mark, or the messages of that text.

    Raises:
        BadRow: if the text is no dialogue that can be cut into messages.
    """
    return split_dialogue(before) if as_messages else before + ANSWER


def encode_pairs(
    encoder: ResponseEncoder,
    records: Sequence[Record],
    read: Callable[[Record], Pair],
    tally: Tally,
    prompt_length: int,
    response_length: int | None,
) -> list[tuple[Record, Pair]]:
    """The rows that can be used, each with its two sides as tokens (``Encoded``); the tally has the others.

    Args:
        encoder: of texts.
        records: the rows.
        read: finds the sides.
        tally: of what cannot be used and what was cut.
        prompt_length: as in ``responses.fitted``.
        response_length: likewise.
    """
    found = []
    for record in records:
        try:
            found.append((record, read(record)))
        except BadRow as reason:
            tally.leave_out(record, str(reason))
    for side in (0, 1):
        encoded = encoder.encode(
            [record for record, _ in found], partial(_next_of, iter([p[side] for _, p in found])), tally
        )
        kept = []
        for (record, pair), one in zip(found, encoded, strict=True):
            fits = None if one is None else fitted(one, prompt_length, response_length, record, tally)
            if fits is not None:
                kept.append((record, pair._replace(**{SIDES[side]: fits})))
        found = kept
    # A pair of which both sides were cut is one pair.
    tally.cut[:] = dict.fromkeys(tally.cut)
    usable = []
    for record, pair in found:
        if pair.chosen == pair.rejected:
            tally.leave_out(record, "chosen and rejected are equal as far as they fit")
        else:
            usable.append((record, pair))
    return usable


def _next_of(answers: Iterator[Answered], record: Record) -> Answered:
    return next(answers)


def causal_example(texts: Sequence[Encoded]) -> Example:
    """Texts under one another: inputs, and labels one to the right of them, -100 where nothing is asked for."""
    ids = [np.array([*text.prompt, *text.response], np.int32) for text in texts]
    learned = [np.array([False] * len(text.prompt) + text.learned) for text in texts]
    labels = [np.where(which[1:], row[1:], F.IGNORE) for row, which in zip(ids, learned, strict=True)]
    return {**stacked("input_ids", [row[:-1] for row in ids]), "labels": under_one_another(labels, F.IGNORE)}


def two_sided_example(texts: Sequence[Encoded], start: int) -> Example:
    """The same for an encoder-decoder: prompts for its encoder, responses for its decoder."""
    targets = [np.array(text.response, np.int32) for text in texts]
    shifted = [np.array([start, *target[:-1]], np.int32) for target in targets]
    return {
        **stacked("input_ids", [np.array(text.prompt, np.int32) for text in texts]),
        "decoder_input_ids": under_one_another(shifted, 0),
        "labels": under_one_another(targets, F.IGNORE),
    }


def whole_example(texts: Sequence[Encoded], length: int) -> Example:
    """Prompts and responses as they are, for a model that scores texts."""
    return stacked("input_ids", [np.array([*text.prompt, *text.response][:length], np.int32) for text in texts])


def under_one_another(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Rows ``[n, longest]``, filled up."""
    found = np.full((len(rows), max(map(len, rows))), fill, np.int32)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return found


def stacked(name: str, rows: Sequence[np.ndarray]) -> Example:
    """Rows under one another with the mask of what is there."""
    sizes = np.array([len(row) for row in rows])
    mask = (np.arange(sizes.max()) < sizes[:, None]).astype(np.int32)
    return {name: under_one_another(rows, 0), "attention_mask": mask}


def pair_report(name: str, records: Sequence[Record], values: np.ndarray) -> Report:
    """What can be said of values ``[pairs, 2]`` of the preferred responses and the others.

    Args:
        name: of a value.
        records: the pairs.
        values: one row a pair.
    """
    predictions = [
        {"where": where(record), f"chosen_{name}": chosen, f"rejected_{name}": rejected}
        for record, (chosen, rejected) in zip(records, map(rounded, values), strict=True)
    ]
    chosen, rejected = values[:, 0], values[:, 1]
    metrics = {"pair_accuracy": float(np.mean(chosen > rejected)), f"{name}_margin": float(np.mean(chosen - rejected))}
    return Report(metrics, predictions)


def flat_inputs(batch: Batch, names: Sequence[str]) -> Batch:
    """``[B, n, T]`` to ``[B n, T]``, every text with a number of its own."""
    B, n = batch["input_ids"].shape[:2]
    examples = jnp.asarray(batch.get("example_ids", jnp.arange(B)))
    flat = {name: batch[name].reshape(B * n, -1) for name in names if name in batch}
    return {**flat, "example_ids": jnp.ravel(examples[:, None] * n + jnp.arange(n))}
