"""A call of ``generate``, checked and ready to run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.generation.decode import Program, Prompt, State, advance, start
from jaxformer.generation.options import GenerationConfig, compile_options, parse_options
from jaxformer.generation.output import GenerateOutput, finished
from jaxformer.generation.prepare import prepare
from jaxformer.generation.prompts import Prompts, align, bucket, check_lengths
from jaxformer.models import Decoder, EncoderDecoder
from jaxformer.schema import UserError


@dataclass
class Request:
    """One call, ready to run."""

    model: Any
    params: Any
    prompts: Prompts
    options: GenerationConfig
    program: Program
    numbers: dict[str, Any]
    start_ids: np.ndarray | None
    tokenizer: Any
    seeds: np.ndarray
    stops: Sequence[str] = field(default=())

    @property
    def limit(self) -> jax.Array:
        """Number of tokens to write; an argument of the program, which is compiled for ``room``."""
        return jnp.int32(self.options.max_new_tokens)

    @property
    def prompt(self) -> Prompt:
        """The prompts as the programs take them."""
        start_ids = None if self.start_ids is None else jnp.asarray(self.start_ids)
        return Prompt(jnp.asarray(self.prompts.ids), jnp.asarray(self.prompts.real), start_ids)

    @property
    def before(self) -> list[list[int]]:
        """The tokens before each row's text: those of the prompt, none for an encoder-decoder."""
        if self.start_ids is not None:
            written: list[list[int]] = [[] for _ in self.prompts.ids]
        else:
            written = [ids[real].tolist() for ids, real in zip(self.prompts.ids, self.prompts.real, strict=True)]
        return [row for row in written for _ in range(self.options.num_return_sequences)]

    def begin(self) -> State:
        """The state with each row's first token."""
        seeds = jnp.asarray(self.seeds)
        return start(self.model, self.params, self.prompt, seeds, self.limit, self.numbers, program=self.program)

    def resume(self, state: State, until: int) -> State:
        """The state with ``until`` tokens, or fewer if all rows end before."""
        end = jnp.int32(min(until, self.options.max_new_tokens))
        return advance(self.model, self.params, state, end, self.limit, self.numbers, rules=self.program.rules)

    def output(
        self,
        tokens: np.ndarray,
        log_probs: np.ndarray,
        scores: np.ndarray | None = None,
        *,
        stopped: Mapping[int, int] | None = None,
    ) -> GenerateOutput:
        """The result of ``generate`` from arrays with ``room`` columns."""
        limit = self.options.max_new_tokens
        return finished(
            tokens[:, :limit],
            log_probs[:, :limit],
            self.program.rules,
            self.tokenizer,
            scores,
            before=self.before,
            stops=self.stops,
            stopped=stopped or {},
        )

    def nothing(self) -> GenerateOutput:
        """The result where nothing is to be written."""
        rows = len(self.prompts.ids) * self.options.num_return_sequences
        empty = np.zeros((rows, self.options.max_new_tokens), np.int32)
        scores = np.zeros(rows, np.float32) if self.options.num_beams > 1 else None
        return self.output(empty, empty.astype(np.float32), scores)


def make_request(
    model: Any,
    params: Any,
    input_ids: Any,
    attention_mask: Any,
    tokenizer: Any,
    seed: int | Sequence[int],
    cache_dtype: str | None,
    options: GenerationConfig | dict[str, Any],
    streaming: bool,
) -> Request:
    """Checks the arguments of ``generate`` or ``stream``."""
    if not isinstance(model, Decoder | EncoderDecoder):
        raise UserError(
            f"{type(model).__name__} writes no text, expected a decoder or an encoder-decoder with a language-model "
            "head; open it with AutoModelForCausalLM or AutoModelForSeq2SeqLM"
        )
    chosen = options if isinstance(options, GenerationConfig) else parse_options(options)
    if (chosen.stop_strings or streaming) and tokenizer is None:
        what = "a stream of text" if streaming else "stop_strings"
        raise UserError(f"{what} needs the tokenizer, expected tokenizer=...")
    if streaming and chosen.num_beams > 1:
        raise UserError(f"num_beams is {chosen.num_beams}, expected 1 for a stream; leave the stream out")
    if cache_dtype not in (None, "float32", "bfloat16", "int8"):
        raise UserError(f"cache_dtype is {cache_dtype!r}, expected float32, bfloat16 or int8")
    c = model.config
    rules, numbers = compile_options(chosen, c)
    bos = c.bos_token_id if chosen.bos_token_id is None else chosen.bos_token_id
    prompts = align(input_ids, attention_mask, bos)
    largest = int(prompts.ids.max(initial=0))
    if largest >= c.vocabulary:
        raise UserError(
            f"input_ids holds token {largest}, expected ids below {c.vocabulary}; is it this model's tokenizer?"
        )
    check_lengths(prompts, chosen.max_new_tokens, c)
    start_ids = None
    if isinstance(model, EncoderDecoder):
        start_ids = _start_ids(c, chosen, prompts)
    copies = chosen.num_return_sequences if chosen.num_beams == 1 else 1
    room = bucket(chosen.max_new_tokens)
    ring = c.window is not None and not c.has_mixed_windows and prompts.ids.shape[1] + room > c.window
    return Request(
        model.clone(stacked=False),
        prepare(model, params),
        prompts,
        chosen,
        Program(rules, room, copies, cache_dtype, ring),
        numbers,
        start_ids,
        tokenizer,
        _seeds(seed, len(prompts.ids), len(prompts.ids) * copies),
        chosen.stop_strings,
    )


def _start_ids(config: Any, options: GenerationConfig, prompts: Prompts) -> np.ndarray:
    """``[B]``, start tokens of the decoder."""
    start_id = options.decoder_start_token_id
    start_id = config.decoder_start_token_id if start_id is None else start_id
    if start_id is None and config.decoder_start == "last":
        return prompts.ids[:, -1]
    if start_id is None:
        raise UserError("the model has no decoder_start_token_id, expected one; give decoder_start_token_id=...")
    return np.full(len(prompts.ids), start_id, np.int32)


def _seeds(seed: int | Sequence[int], prompts: int, rows: int) -> np.ndarray:
    """``[R, 2]``: the common seed and the number of the row, or the prompt's seed and the number of its text."""
    if np.ndim(seed) == 0:
        return np.stack([np.full(rows, seed), np.arange(rows)], axis=1).astype(np.int32)
    given = np.asarray(seed)
    if given.shape != (prompts,):
        raise UserError(f"seed has shape {list(given.shape)}, expected one number or one for each of {prompts} prompts")
    copies = rows // max(prompts, 1)
    return np.stack([np.repeat(given, copies), np.tile(np.arange(copies), prompts)], axis=1).astype(np.int32)
