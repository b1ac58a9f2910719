"""``generate``: from prompts to tokens, all at once or as a stream."""

import types
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxformer.generation.beam import beam_search
from jaxformer.generation.decode import State, advance, start
from jaxformer.generation.options import GenerationConfig, Rules, compile_options, parse_options
from jaxformer.generation.prepare import prepare
from jaxformer.generation.prompt import Prompts, align, bucket, check_lengths
from jaxformer.generation.text import TextStream, added_text, find_stop, held_back, stopped_length
from jaxformer.models import Decoder, EncoderDecoder
from jaxformer.schema import UserError

# Steps between two looks at the text where strings may end it. Each look waits for the devices.
_STEPS_A_LOOK = 16


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


class Piece(NamedTuple):
    """A part of a streamed row: its number, the text that became complete, new tokens, and at its end the reason."""

    row: int
    text: str
    tokens: list[int]
    finish_reason: str | None


@dataclass
class _Job:
    """One call, ready to run."""

    model: Any
    params: Any
    prompts: Prompts
    options: GenerationConfig
    rules: Rules
    numbers: dict[str, Any]
    start_ids: np.ndarray | None
    cache_dtype: str | None
    tokenizer: Any
    seeds: np.ndarray
    stops: Sequence[str] = field(default=())

    @property
    def room(self) -> int:
        """Places for new tokens; the limit itself is a number that compiles nothing."""
        return bucket(self.options.max_new_tokens)

    @property
    def before(self) -> list[list[int]]:
        """The tokens that each row's text follows: the prompt's, an encoder-decoder's none."""
        if self.start_ids is not None:
            written: list[list[int]] = [[] for _ in self.prompts.ids]
        else:
            written = [ids[real].tolist() for ids, real in zip(self.prompts.ids, self.prompts.real, strict=True)]
        return [row for row in written for _ in range(self.options.num_return_sequences)]

    @property
    def ring(self) -> bool:
        """Whether a cache of the model's window does."""
        c = self.model.config
        places = self.prompts.ids.shape[1] + self.room
        return c.window is not None and c.global_every is None and places > c.window

    def begin(self) -> State:
        """The state with each row's first token."""
        rows = len(self.seeds) // max(len(self.prompts.ids), 1)
        return start(
            self.model,
            self.params,
            jnp.asarray(self.prompts.ids),
            jnp.asarray(self.prompts.real),
            None if self.start_ids is None else jnp.asarray(self.start_ids),
            jnp.asarray(self.seeds),
            jnp.int32(self.options.max_new_tokens),
            self.numbers,
            rules=self.rules,
            room=self.room,
            copies=rows,
            cache_dtype=self.cache_dtype,
            ring=self.ring,
        )

    def go_on(self, state: State, until: int) -> State:
        """The state with so many tokens, or fewer if all rows end before."""
        limit = self.options.max_new_tokens
        return advance(
            self.model,
            self.params,
            state,
            jnp.int32(min(until, limit)),
            jnp.int32(limit),
            self.numbers,
            rules=self.rules,
        )


def _prepare_job(
    model: Any,
    params: Any,
    input_ids: Any,
    attention_mask: Any,
    tokenizer: Any,
    seed: int | Sequence[int],
    cache_dtype: str | None,
    options: GenerationConfig | dict[str, Any],
    streaming: bool,
) -> _Job:
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
    rows = len(prompts.ids) * (chosen.num_return_sequences if chosen.num_beams == 1 else 1)
    return _Job(
        model.clone(stacked=False),
        prepare(model, params),
        prompts,
        chosen,
        rules,
        numbers,
        start_ids,
        cache_dtype,
        tokenizer,
        _seeds(seed, len(prompts.ids), rows),
        chosen.stop_strings,
    )


def _start_ids(config: Any, options: GenerationConfig, prompts: Prompts) -> np.ndarray:
    """``[B]``, what the decoder starts with."""
    start_id = options.decoder_start_token_id
    start_id = config.decoder_start_token_id if start_id is None else start_id
    if start_id is None and config.decoder_start == "last":
        return prompts.ids[:, -1]
    if start_id is None:
        raise UserError("the model has no decoder_start_token_id, expected one; give decoder_start_token_id=...")
    return np.full(len(prompts.ids), start_id, np.int32)


def _seeds(seed: int | Sequence[int], prompts: int, rows: int) -> np.ndarray:
    """``[R, 2]``: one seed for all and the row's number, or each prompt's own and the number of the text for it."""
    if np.ndim(seed) == 0:
        return np.stack([np.full(rows, seed), np.arange(rows)], axis=1).astype(np.int32)
    given = np.asarray(seed)
    if given.shape != (prompts,):
        raise UserError(f"seed has shape {list(given.shape)}, expected one number or one for each of {prompts} prompts")
    copies = rows // max(prompts, 1)
    return np.stack([np.repeat(given, copies), np.tile(np.arange(copies), prompts)], axis=1).astype(np.int32)


def generate(
    model: Decoder | EncoderDecoder,
    params: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    tokenizer: Any = None,
    seed: int | Sequence[int] = 0,
    cache_dtype: str | None = None,
    streamer: Callable[[Piece], None] | None = None,
    config: GenerationConfig | None = None,
    **options: Any,
) -> GenerateOutput:
    """Writes on from prompts, or, with an encoder-decoder, from what its encoder reads.

    The prompts are read at once; then one compiled loop takes a token after the other over a cache of static size,
    until every row has ended. Lengths are rounded up to powers of two, so that a prompt of another length rarely
    compiles anything. With ``do_sample``, a row's tokens depend on its prompt, its seed and its number alone.

    Args:
        model: with a language-model head.
        params: its parameters, best those that ``prepare`` laid out.
        input_ids: ``[B, T]``, padded on any side.
        attention_mask: ``[B, T]``, 1 at real tokens; default: all real.
        tokenizer: for ``text`` and ``stop_strings``.
        seed: of the draws; or one for each prompt, whose texts then do not depend on where it stands in the batch.
        cache_dtype: of keys and values, ``float32``, ``bfloat16`` or ``int8``; default the model's.
        streamer: called with each ``Piece`` as ``stream`` yields them; needs the tokenizer.
        config: all options as one value, instead of:
        **options: fields of ``GenerationConfig``: ``max_new_tokens``, ``do_sample``, ``num_beams`` ...

    Returns:
        Tokens, log-probabilities and why each row ended.

    Raises:
        UserError: an option makes no sense, or a prompt is empty or longer than the model's context.
    """
    chosen, streaming = _one_of(config, options), streamer is not None
    job = _prepare_job(model, params, input_ids, attention_mask, tokenizer, seed, cache_dtype, chosen, streaming)
    limit = job.options.max_new_tokens
    if limit == 0 or len(job.prompts.ids) == 0:
        return _nothing(job)
    if job.options.num_beams > 1:
        found = beam_search(
            job.model,
            job.params,
            jnp.asarray(job.prompts.ids),
            jnp.asarray(job.prompts.real),
            None if job.start_ids is None else jnp.asarray(job.start_ids),
            jnp.int32(limit),
            job.numbers,
            rules=job.rules,
            options=job.options,
            room=job.room,
            cache_dtype=job.cache_dtype,
            ring=job.ring,
        )
        return _output(job, *(np.asarray(part) for part in found))
    if streamer is not None or job.stops:
        return _follow(_pieces(job, 1 if streamer is not None else _STEPS_A_LOOK), streamer)
    state = job.go_on(job.begin(), limit)
    return _output(job, np.asarray(state.tokens), np.asarray(state.log_probs))


def stream(
    model: Decoder | EncoderDecoder,
    params: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    tokenizer: Any,
    seed: int | Sequence[int] = 0,
    cache_dtype: str | None = None,
    steps: int = 1,
    config: GenerationConfig | None = None,
    **options: Any,
) -> Iterator[Piece]:
    """``generate`` as an iterator over pieces of text, which never end inside a character or a stop string.

    The tokens are those of ``generate``. The iterator may be left at any time.

    Args:
        model: as in ``generate``, as are the following.
        params: likewise.
        input_ids: likewise.
        attention_mask: likewise.
        tokenizer: decodes the tokens.
        seed: likewise.
        cache_dtype: likewise.
        steps: tokens between two looks; more are faster where a step is short.
        config: likewise.
        **options: likewise, but without beams.

    Yields:
        A ``Piece`` for each row and look in which it got text or ended.

    Raises:
        UserError: as ``generate``, and with ``num_beams`` above 1, whose text is not known before its end.
    """
    chosen = _one_of(config, options)
    job = _prepare_job(model, params, input_ids, attention_mask, tokenizer, seed, cache_dtype, chosen, True)
    return _pieces(job, steps)


def _pieces(job: _Job, steps: int) -> Generator[Piece, None, GenerateOutput]:
    """The pieces of all rows, and at the end what ``generate`` returns."""
    limit, rows = job.options.max_new_tokens, len(job.seeds)
    if limit == 0 or rows == 0:
        yield from (Piece(row, "", [], "length") for row in range(rows))
        return _nothing(job)
    texts = [TextStream(job.tokenizer, before) for before in job.before]
    shown, ended, seen = [0] * rows, np.zeros(rows, bool), 0
    stopped: dict[int, int] = {}
    state = job.begin()
    while True:
        count, done, tokens = int(state.step), np.asarray(state.done), np.asarray(state.tokens)
        for row in map(int, np.flatnonzero(~ended)):
            text, new = texts[row], tokens[row, seen:count].tolist()
            if done[row]:
                new = new[: next(i for i, token in enumerate(new) if token in job.rules.end_ids) + 1]
            reason = "stop" if done[row] else "length" if count >= limit else None
            text.put(new)
            if reason is not None:
                text.end()
            end = len(text.text)
            if (stop := find_stop(text.text, job.stops)) is not None:
                end, reason = stop, "stop"
                written = tokens[row, :count].tolist()
                stopped[row] = stopped_length(job.tokenizer, written, job.stops, job.before[row]) or count
            elif reason is None:
                end -= held_back(text.text, job.stops)
            piece, shown[row] = text.text[shown[row] : end], max(shown[row], end)
            ended[row] = reason is not None
            yield Piece(row, piece, new, reason)
        if ended.all():
            return _output(job, tokens, np.asarray(state.log_probs), stopped=stopped)
        seen = count
        state = job.go_on(state._replace(done=jnp.asarray(ended)), count + steps)


def _follow(pieces: Generator[Piece, None, GenerateOutput], streamer: Callable[[Piece], None] | None) -> GenerateOutput:
    """Shows the pieces, and returns what comes behind them."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            output: GenerateOutput = end.value
            return output
        if streamer is not None:
            streamer(piece)


def _one_of(config: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig | dict[str, Any]:
    if config is not None and options:
        raise UserError(f"config and {', '.join(options)} are given, expected one of them")
    return options if config is None else config


def _nothing(job: _Job) -> GenerateOutput:
    beams = job.options.num_beams > 1
    rows = len(job.prompts.ids) * job.options.num_return_sequences
    empty = np.zeros((rows, job.options.max_new_tokens), np.int32)
    return _output(job, empty, empty.astype(np.float32), np.zeros(rows, np.float32) if beams else None)


def _output(
    job: _Job,
    tokens: np.ndarray,
    log_probs: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    stopped: dict[int, int] | None = None,
) -> GenerateOutput:
    limit = job.options.max_new_tokens
    return finished(
        tokens[:, :limit],
        log_probs[:, :limit],
        job.rules,
        job.tokenizer,
        scores,
        before=job.before,
        stops=job.stops,
        stopped=stopped or {},
    )


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
