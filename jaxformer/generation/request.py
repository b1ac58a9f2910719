"""A call of ``generate``, checked and ready to run, and its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.generation.decode import Program, State, advance, start
from jaxformer.generation.options import GenerationConfig, compile_options
from jaxformer.generation.prepare import prepare
from jaxformer.generation.prompts import Prompt, align, bucket, check_lengths
from jaxformer.generation.text_stream import added_text, find_stop
from jaxformer.models import Decoder, EncoderDecoder
from jaxformer.models.exact import check_exact
from jaxformer.schema import UserError


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


class Request:
    """One call: its arguments are checked, prompts are arrays, parameters are prepared."""

    result: GenerateOutput

    def __init__(
        self,
        model: Any,
        params: Any,
        input_ids: Any,
        attention_mask: Any,
        tokenizer: Any,
        seed: int | Sequence[int],
        cache_dtype: str | None,
        options: GenerationConfig,
        streaming: bool = False,
    ) -> None:
        if not isinstance(model, Decoder | EncoderDecoder):
            raise UserError(
                f"{type(model).__name__} writes no text, expected a decoder or an encoder-decoder with a "
                "language-model head; open it with AutoModelForCausalLM or AutoModelForSeq2SeqLM"
            )
        if (options.stop_strings or streaming) and tokenizer is None:
            what = "a stream of text" if streaming else "stop_strings"
            raise UserError(f"{what} needs the tokenizer, expected tokenizer=...")
        if streaming and options.num_beams > 1:
            raise UserError(f"num_beams is {options.num_beams}, expected 1 for a stream; leave the stream out")
        if cache_dtype not in (None, "float32", "bfloat16", "int8"):
            raise UserError(f"cache_dtype is {cache_dtype!r}, expected float32, bfloat16 or int8")
        c = model.config
        check_exact(c)
        bos = c.special_id("bos_token_id") if options.bos_token_id is None else options.bos_token_id
        prompt = align(input_ids, attention_mask, bos, c.max_length if isinstance(model, EncoderDecoder) else None)
        longest = int(prompt.real.sum(axis=1).max(initial=0))
        options = options.after(1 if isinstance(model, EncoderDecoder) else longest)
        room = bucket(options.max_new_tokens)
        rules, self.numbers = compile_options(options, c)
        largest = int(prompt.ids.max(initial=0))
        if largest >= c.vocabulary:
            raise UserError(
                f"input_ids holds token {largest}, expected ids below {c.vocabulary}; is it this model's tokenizer?"
            )
        check_lengths(prompt, options.max_new_tokens, c)
        if isinstance(model, EncoderDecoder):
            prompt = prompt._replace(start_ids=start_ids(c, options, prompt))
        copies = options.num_return_sequences if options.num_beams == 1 else 1
        ring = (
            c.window is not None and not c.has_mixed_windows and not c.exact and prompt.ids.shape[1] + room > c.window
        )
        self.program = Program(rules, room, copies, cache_dtype, ring)
        self.seeds = _seeds(seed, len(prompt.ids), copies)
        self.model, self.params = model, prepare(model, params)
        self.prompt, self.options, self.tokenizer = prompt, options, tokenizer

    @property
    def is_empty(self) -> bool:
        """True if nothing is to be written."""
        return self.options.max_new_tokens == 0 or len(self.prompt.ids) == 0

    @property
    def limit(self) -> jax.Array:
        """Number of tokens to write; an argument of the program, which is compiled for ``room``."""
        return jnp.int32(self.options.max_new_tokens)

    @property
    def before(self) -> list[list[int]]:
        """The tokens before each row's text: those of the prompt, none for an encoder-decoder."""
        ids, real, start_ids = self.prompt
        shown = real if start_ids is None else np.zeros_like(real)
        written = [row[keep].tolist() for row, keep in zip(ids, shown, strict=True)]
        return [row for row in written for _ in range(self.options.num_return_sequences)]

    def begin(self) -> State:
        """The state with each row's first token."""
        return start(self.model, self.params, self.prompt, self.seeds, self.limit, self.numbers, program=self.program)

    def resume(self, state: State, until: int) -> State:
        """The state with ``until`` tokens, or fewer if all rows end before."""
        end = jnp.int32(min(until, self.options.max_new_tokens))
        return advance(self.model, self.params, state, end, self.limit, self.numbers, rules=self.program.rules)

    def output(
        self, tokens: Any, log_probs: Any, scores: Any = None, *, stopped: Mapping[int, int] = MappingProxyType({})
    ) -> GenerateOutput:
        """Truncates rows ``[R, room]`` at their ends and decodes them.

        ``stopped`` holds the number of tokens of each row that a stop string ended.
        """
        limit, rules = self.options.max_new_tokens, self.program.rules
        tokens, log_probs = np.array(tokens)[:, :limit], np.array(log_probs)[:, :limit]
        ends: np.ndarray = np.isin(tokens, np.array(rules.end_ids, np.int32))
        lengths = np.asarray(np.sum(np.cumsum(ends, axis=1) - ends == 0, axis=1, dtype=np.int32))
        reasons = ["stop" if any(row) else "length" for row in ends]
        for row, length in stopped.items():
            if length <= lengths[row]:
                lengths[row], reasons[row] = length, "stop"
        after_end = np.arange(limit) >= lengths[:, None]
        tokens[after_end], log_probs[after_end] = rules.pad_id, 0.0
        text = None
        if self.tokenizer is not None:
            rows = (row[:length].tolist() for row, length in zip(tokens, lengths, strict=True))
            added = [added_text(self.tokenizer, *pair) for pair in zip(self.before, rows, strict=True)]
            text = [said[: find_stop(said, self.options.stop_strings)] for said in added]
        return GenerateOutput(tokens, lengths, log_probs, reasons, text, None if scores is None else np.asarray(scores))

    def nothing(self) -> GenerateOutput:
        """The result where nothing is to be written."""
        rows = len(self.prompt.ids) * self.options.num_return_sequences
        empty = np.zeros((rows, self.options.max_new_tokens), np.int32)
        scores = np.zeros(rows, np.float32) if self.options.num_beams > 1 else None
        return self.output(empty, empty.astype(np.float32), scores)


def start_ids(config: Any, options: GenerationConfig, prompt: Prompt) -> Any:
    """``[B]``, start tokens of the decoder."""
    start_id = options.decoder_start_token_id
    start_id = config.special_id("decoder_start_token_id") if start_id is None else start_id
    if start_id is None and config.decoder_start == "last":
        return prompt.ids[:, -1]
    if start_id is None:
        raise UserError("the model has no decoder_start_token_id, expected one; give decoder_start_token_id=...")
    return np.full(len(prompt.ids), start_id, np.int32)


def _seeds(seed: int | Sequence[int], prompts: int, copies: int) -> np.ndarray:
    """``[R, 2]``: the common seed and the number of the row, or the prompt's seed and the number of its text."""
    given, rows = np.asarray(seed), prompts * copies
    if given.ndim == 0:
        return np.stack([np.full(rows, given), np.arange(rows)], axis=1).astype(np.int32)
    if given.shape != (prompts,):
        raise UserError(f"seed has shape {list(given.shape)}, expected one number or one for each of {prompts} prompts")
    return np.stack([np.repeat(given, copies), np.tile(np.arange(copies), prompts)], axis=1).astype(np.int32)
