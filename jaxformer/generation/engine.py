"""``generate``: from prompts to tokens, at once or as a stream."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxformer.generation.beam import beam_search
from jaxformer.generation.options import GenerationConfig, options_of
from jaxformer.generation.request import GenerateOutput, Request
from jaxformer.generation.text_stream import TextStream, find_stop, held_back, stopped_length
from jaxformer.models import Decoder, EncoderDecoder

# Steps between two checks of the text for stop strings; each check waits for the devices.
_STEPS_PER_CHECK = 16


class Piece(NamedTuple):
    """A part of a streamed row: its number, new complete text, new tokens, and at its end the reason."""

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
    """Continues prompts, or with an encoder-decoder writes the targets of sources.

    The prompts are read at once; then one compiled loop writes a token at a time over a cache of static size, until
    every row has ended. Lengths are rounded up to powers of two, so that a prompt of another length rarely compiles
    anything. With ``do_sample``, a row's tokens depend on its prompt, its seed and its number alone.

    Args:
        model: with a language-model head.
        params: its parameters, preferably from ``prepare``.
        input_ids: ``[B, T]``, padded on any side; or lists of different lengths, without a mask.
        attention_mask: ``[B, T]``, 1 at real tokens; default: all real.
        tokenizer: for ``text`` and ``stop_strings``.
        seed: of the draws; or one for each prompt, so that its texts do not depend on its place in the batch.
        cache_dtype: of keys and values, ``float32``, ``bfloat16`` or ``int8``; default the model's.
        streamer: called with each ``Piece`` as ``stream`` yields them; needs the tokenizer.
        config: all options as one value, instead of ``options``.
        **options: fields of ``GenerationConfig``: ``max_new_tokens``, ``do_sample``, ``num_beams`` ...

    Returns:
        Tokens, log-probabilities and the reason why each row ended.

    Raises:
        UserError: an option makes no sense, or a prompt is empty or longer than the model's context.
    """
    streaming = streamer is not None
    chosen = options_of(config, options)
    r = Request(model, params, input_ids, attention_mask, tokenizer, seed, cache_dtype, chosen, streaming=streaming)
    if r.is_empty:
        return r.nothing()
    if r.options.num_beams > 1:
        found = beam_search(r.model, r.params, r.prompt, r.limit, r.numbers, program=r.program, options=r.options)
        return r.output(*found)
    if streamer is None and not r.options.stop_strings:
        state = r.resume(r.begin(), r.options.max_new_tokens)
        return r.output(state.tokens, state.log_probs)
    for piece in _pieces(r, _STEPS_PER_CHECK if streamer is None else 1):
        if streamer is not None:
            streamer(piece)
    return r.result


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

    The tokens are those of ``generate``. The iteration may be stopped at any time.

    Arguments are those of ``generate``, but the tokenizer is required and beams are not possible, and ``steps``, the
    number of tokens between two pieces; more are faster where a step is short.

    Yields:
        Every ``steps`` tokens a ``Piece`` for each row that has not ended.

    Raises:
        UserError: as ``generate``, and with ``num_beams`` above 1, whose text is not known before its end.
    """
    chosen = options_of(config, options)
    request = Request(model, params, input_ids, attention_mask, tokenizer, seed, cache_dtype, chosen, streaming=True)
    return _pieces(request, steps)


def _pieces(request: Request, steps: int) -> Iterator[Piece]:
    """The pieces of all rows; at the end ``request.result`` is that of ``generate``."""
    limit, rows, stops = request.options.max_new_tokens, len(request.seeds), request.options.stop_strings
    if request.is_empty:
        yield from (Piece(row, "", [], "length") for row in range(rows))
        return
    texts = [TextStream(request.tokenizer, before) for before in request.before]
    shown, ended, seen = [0] * rows, np.zeros(rows, bool), 0
    stopped: dict[int, int] = {}
    state = request.begin()
    while True:
        count, done, tokens = int(state.step), np.asarray(state.done), np.asarray(state.tokens)
        for row in map(int, np.flatnonzero(~ended)):
            text, new = texts[row], tokens[row, seen:count].tolist()
            if done[row]:
                new = new[: next(i for i, token in enumerate(new) if token in request.program.rules.end_ids) + 1]
            reason = "stop" if done[row] else "length" if count >= limit else None
            text.put(new, end=reason is not None)
            end = len(text.text)
            if (stop := find_stop(text.text, stops)) is not None:
                end, reason = stop, "stop"
                written = tokens[row, :count].tolist()
                stopped[row] = stopped_length(request.tokenizer, written, stops, request.before[row]) or count
            elif reason is None:
                end -= held_back(text.text, stops)
            piece, shown[row] = text.text[shown[row] : end], max(shown[row], end)
            ended[row] = reason is not None
            yield Piece(row, piece, new, reason)
        if ended.all():
            request.result = request.output(tokens, state.log_probs, stopped=stopped)
            return
        seen = count
        state = request.resume(state._replace(done=jnp.asarray(ended)), count + steps)
