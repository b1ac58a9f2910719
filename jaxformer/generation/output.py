"""What was written: cut at each row's end, decoded, and told why it ended."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxformer.generation.options import Rules
from jaxformer.generation.text_stream import added_text, find_stop


@dataclass(frozen=True)
class GenerateOutput:
    """What was written; rows of one prompt stand together, ``R = B num_return_sequences``.

    Attributes:
        tokens: ``[R, max_new_tokens]`` int32, the new tokens only, padded behind the end.
        lengths: ``[R]``, how many they are, the one that ends the text included.
        log_probs: ``[R, max_new_tokens]`` float32, each token's log-probability under the model itself, whatever the
            options made of it; nats, 0 behind the end.
        finish_reasons: ``"stop"`` where a token or string ended the row, ``"length"`` where it is as long as it may be.
        text: the decoded rows, without special tokens and from a stop string on; None without a tokenizer.
        scores: ``[R]``, what beam search ranks by: summed log-probabilities over length to the power of
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
    """What was written, cut at each row's end and decoded.

    Args:
        tokens: ``[R, max_new_tokens]``.
        log_probs: of the same shape.
        rules: know the end tokens.
        tokenizer: None for no text.
        scores: ``[R]`` of beams.
        before: what each row's text follows; nothing if not given.
        stops: strings that the text does not show.
        stopped: how many tokens the rows have that such a string ended, by number.
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
    behind = np.arange(limit) >= lengths[:, None]
    tokens[behind], log_probs[behind] = rules.pad_id, 0.0
    text = None
    if tokenizer is not None:
        rows = (row[:length].tolist() for row, length in zip(tokens, lengths, strict=True))
        text = [
            added_text(tokenizer, first, row) for first, row in zip(before or [()] * len(tokens), rows, strict=True)
        ]
        text = [said if (stop := find_stop(said, stops)) is None else said[:stop] for said in text]
    return GenerateOutput(tokens, lengths, log_probs, reasons, text, scores)
