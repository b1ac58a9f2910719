"""The result of generation: rows truncated at their ends, decoded, with the reasons why they ended."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxformer.generation.options import Rules
from jaxformer.generation.text_stream import added_text, find_stop


@dataclass(frozen=True)
class GenerateOutput:
    """Result of ``generate``; rows of one prompt are adjacent, ``R = B num_return_sequences``.

    Attributes:
        tokens: ``[R, max_new_tokens]`` int32, only the new tokens, padded after the end.
        lengths: ``[R]``, number of new tokens, with the one that ends the text.
        log_probs: ``[R, max_new_tokens]`` float32, log-probability of each token under the model itself, before any
            option; nats, 0 after the end.
        finish_reasons: ``"stop"`` if a token or string ended the row, ``"length"`` if it reached ``max_new_tokens``.
        text: the decoded rows, without special tokens and up to a stop string; None without a tokenizer.
        scores: ``[R]``, scores of beam search: summed log-probabilities divided by length to the power of
            ``length_penalty``; None without beams.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_probs: np.ndarray
    finish_reasons: list[str]
    text: list[str] | None = None
    scores: np.ndarray | None = None


def finished(
    tokens: np.ndarray,
    log_probs: np.ndarray,
    rules: Rules,
    tokenizer: Any,
    scores: np.ndarray | None = None,
    *,
    before: Sequence[Sequence[int]] = (),
    stops: Sequence[str] = (),
    stopped: Mapping[int, int] = types.MappingProxyType({}),
) -> GenerateOutput:
    """Truncates the rows at their ends and decodes them.

    Args:
        tokens: ``[R, max_new_tokens]``.
        log_probs: of the same shape.
        rules: with the end tokens.
        tokenizer: None for no text.
        scores: ``[R]`` of beams.
        before: tokens before each row's text; default: none.
        stops: stop strings, which the text does not contain.
        stopped: number of tokens of the rows that a stop string ended, by row.
    """
    limit = tokens.shape[1]
    tokens, log_probs = tokens.copy(), log_probs.copy()
    ends: np.ndarray = np.isin(tokens, np.array(rules.end_ids, np.int32))
    ended: np.ndarray = np.any(ends, axis=1)
    lengths = np.where(ended, np.argmax(ends, axis=1) + 1, limit).astype(np.int32) if limit else ended.astype(np.int32)
    reasons = ["stop" if has_end else "length" for has_end in ended]
    for row, length in stopped.items():
        if length <= lengths[row]:
            lengths[row], reasons[row] = length, "stop"
    after_end = np.arange(limit) >= lengths[:, None]
    tokens[after_end], log_probs[after_end] = rules.pad_id, 0.0
    text = None
    if tokenizer is not None:
        rows = (row[:length].tolist() for row, length in zip(tokens, lengths, strict=True))
        text = [
            added_text(tokenizer, first, row) for first, row in zip(before or [()] * len(tokens), rows, strict=True)
        ]
        text = [said if (stop := find_stop(said, stops)) is None else said[:stop] for said in text]
    return GenerateOutput(tokens, lengths, log_probs, reasons, text, scores)
