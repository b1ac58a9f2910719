"""``generate``: from prompts to tokens, all at once or as a stream."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxformer.generation.beam import beam_search
from jaxformer.generation.job import Job, make_job
from jaxformer.generation.options import GenerationConfig
from jaxformer.generation.output import GenerateOutput
from jaxformer.generation.text import TextStream, find_stop, held_back, stopped_length
from jaxformer.models import Decoder, EncoderDecoder
from jaxformer.schema import UserError

# Steps between two looks at the text where strings may end it. Each look waits for the devices.
_STEPS_A_LOOK = 16


class Piece(NamedTuple):
    """A part of a streamed row: its number, the text that became complete, new tokens, and at its end the reason."""

    row: int
    text: str
    tokens: list[int]
    finish_reason: str | None


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
        input_ids: ``[B, T]``, padded on any side; or lists of different lengths, without a mask.
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
    job = make_job(model, params, input_ids, attention_mask, tokenizer, seed, cache_dtype, chosen, streaming)
    limit = job.options.max_new_tokens
    if limit == 0 or len(job.prompts.ids) == 0:
        return job.nothing()
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
        return job.output(*(np.asarray(part) for part in found))
    if streamer is not None or job.stops:
        return _follow(_pieces(job, 1 if streamer is not None else _STEPS_A_LOOK), streamer)
    state = job.go_on(job.begin(), limit)
    return job.output(np.asarray(state.tokens), np.asarray(state.log_probs))


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
    job = make_job(model, params, input_ids, attention_mask, tokenizer, seed, cache_dtype, chosen, True)
    return _pieces(job, steps)


def _pieces(job: Job, steps: int) -> Generator[Piece, None, GenerateOutput]:
    """The pieces of all rows, and at the end what ``generate`` returns."""
    limit, rows = job.options.max_new_tokens, len(job.seeds)
    if limit == 0 or rows == 0:
        yield from (Piece(row, "", [], "length") for row in range(rows))
        return job.nothing()
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
            return job.output(tokens, np.asarray(state.log_probs), stopped=stopped)
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
