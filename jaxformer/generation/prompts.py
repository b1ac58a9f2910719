"""Prompts as arrays: real tokens on the right, lengths rounded up so that few programs are compiled."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

_SHORTEST = 16


def bucket(length: int) -> int:
    """The next power of two, at least 16: prompts up to 1,024 tokens share seven shapes."""
    return max(_SHORTEST, 1 << (length - 1).bit_length()) if length > 0 else _SHORTEST


class Prompt(NamedTuple):
    """The prompts of one batch."""

    ids: Any  # ``[B, T]`` int32, padded on the left; of an encoder-decoder the source
    real: Any  # ``[B, T]`` bool
    start_ids: Any = None  # ``[B]``, start tokens of an encoder-decoder's target

    @property
    def before(self) -> tuple[Any, Any]:
        """The tokens ``[B, T]`` before the text, and which are real: the prompt, or the start token."""
        if self.start_ids is None:
            return self.ids, self.real
        return self.start_ids[:, None], jnp.ones((len(self.ids), 1), bool)


def align(input_ids: Any, attention_mask: Any, bos_id: int | None, most: int | None = None) -> Prompt:
    """Moves padding, wherever it is, to the left of each prompt, and rounds ``T`` up to a ``bucket``, or to ``most``.

    An encoder reads no row longer than ``most``; a decoder's cache has room for padding.

    Without a mask, ``input_ids`` may be lists of different lengths. ``bos_id`` replaces an empty prompt.
    """
    rows = _real_tokens(input_ids, attention_mask)
    lengths = np.array([len(row) for row in rows], np.int32)
    if (lengths == 0).any():
        if bos_id is None:
            raise UserError(
                f"prompt {int(np.argmin(lengths))} is empty and the model has no token that begins a text, expected at "
                "least one token; give one, or bos_token_id"
            )
        rows = [row if len(row) else np.array([bos_id]) for row in rows]
    longest = int(lengths.max(initial=1))
    width = bucket(longest) if most is None else max(longest, min(bucket(longest), most))
    aligned, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        aligned[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    return Prompt(aligned, mask)


def _real_tokens(input_ids: Any, attention_mask: Any) -> list[np.ndarray]:
    """The tokens of each prompt, without padding."""
    try:
        if attention_mask is None and isinstance(input_ids, list | tuple):
            rows = [np.asarray(row) for row in input_ids]
            if rows and all(row.ndim == 1 and _are_whole(row) for row in rows):
                return rows
        ids = np.asarray(input_ids)
    except ValueError:
        raise UserError(
            "input_ids has rows of different lengths, expected lists of whole numbers and no attention_mask with them, "
            "or rows of one length"
        ) from None
    if ids.ndim != 2 or not _are_whole(ids):
        raise UserError(
            f"input_ids has shape {list(ids.shape)} and type {ids.dtype}, expected whole numbers [batch, tokens]; put "
            "a single prompt into a list"
        )
    real = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
    if real.shape != ids.shape:
        raise UserError(f"attention_mask has shape {list(real.shape)}, expected that of input_ids, {list(ids.shape)}")
    return [row[keep] for row, keep in zip(ids, real, strict=True)]


def _are_whole(ids: np.ndarray) -> bool:
    return not ids.size or np.issubdtype(ids.dtype, np.integer)


def check_lengths(prompt: Prompt, new_tokens: int, config: TransformerConfig) -> None:
    """Checks that prompts and new tokens fit the model's ``max_length``."""
    lengths = prompt.real.sum(axis=1)
    limit, longest = config.max_length, int(lengths.max(initial=0))
    row = int(np.argmax(lengths)) if longest else 0
    if config.architecture == "encoder_decoder":
        if longest > limit:
            raise UserError(f"text {row} has {longest} tokens, expected at most {limit} (max_length); shorten it")
        room = config.decoder_side.max_length
        if new_tokens > room:
            raise UserError(f"max_new_tokens is {new_tokens}, expected at most {room} (max_length)")
        return
    if longest >= limit and new_tokens:
        raise UserError(
            f"prompt {row} has {longest} tokens, expected fewer than {limit} (max_length); shorten it, for instance to "
            "its end"
        )
    if longest + new_tokens > limit:
        raise UserError(
            f"prompt {row} has {longest} tokens and max_new_tokens is {new_tokens}, expected at most {limit} together "
            f"(max_length); set max_new_tokens to {limit - longest} or shorten the prompt"
        )
