"""``generate`` inside of a compiled program, under ``jit`` or ``pmap``, where what a prompt holds is not known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.generation.beam import beam_search
from jaxformer.generation.decode import Program, search
from jaxformer.generation.options import GenerationConfig, compile_options
from jaxformer.generation.prepare import prepare
from jaxformer.generation.prompts import Prompt, check_lengths
from jaxformer.generation.request import start_ids
from jaxformer.models import Decoder, EncoderDecoder
from jaxformer.schema import UserError


def is_inside(*arrays: Any) -> bool:
    """True if one of the arrays is that of a program that is being traced."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays))


def generate_inside(
    model: Decoder | EncoderDecoder,
    params: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    seed: Any = 0,
    options: GenerationConfig,
) -> jax.Array:
    """Continues prompts as ``generate`` does, as a part of the program around it.

    Nothing is decided by what the arrays hold: a row counts with all its places, padding included, and an empty prompt
    is not refused.

    Args:
        model: with a language-model head.
        params: its parameters, of any layout.
        input_ids: ``[B, T]``, padded on any side.
        attention_mask: ``[B, T]``, 1 at real tokens; default: all real.
        seed: of the draws, a number or a scalar array.
        options: of ``generate``, without ``stop_strings``.

    Returns:
        The new tokens ``[B num_return_sequences, max_new_tokens]``, padded after the end.

    Raises:
        UserError: if an option makes no sense, or prompts and text do not fit into the model's ``max_length``.
    """
    if options.stop_strings:
        raise UserError(
            "stop_strings are given inside of a compiled program, which has no text; expected stop_token_ids"
        )
    ids, writes = jnp.asarray(input_ids, jnp.int32), isinstance(model, EncoderDecoder)
    (B, T), c = ids.shape, model.config
    real = jnp.ones((B, T), bool) if attention_mask is None else jnp.asarray(attention_mask, bool)
    options = options.after(1 if writes else T)
    check_lengths(Prompt(ids, np.ones((B, T), bool)), options.max_new_tokens, c)
    # A stable sort of the mask moves padding to the left and keeps the order of the tokens.
    order = jnp.argsort(real, axis=1, stable=True)
    prompt = Prompt(jnp.take_along_axis(ids, order, axis=1), jnp.take_along_axis(real, order, axis=1))
    if writes:
        prompt = prompt._replace(start_ids=start_ids(c, options, prompt))
    rules, numbers = compile_options(options, c)
    limit, copies = options.max_new_tokens, options.num_return_sequences
    if limit == 0 or B == 0:
        return jnp.zeros((B * copies, limit), jnp.int32)
    if options.num_beams > 1:
        laid, program = prepare(model, params), Program(rules, limit)
        return beam_search(model, laid, prompt, jnp.int32(limit), numbers, program=program, options=options)[0]
    prompt = jax.tree.map(lambda leaf: jnp.repeat(leaf, copies, axis=0), prompt)
    rows = jnp.arange(len(prompt.ids))
    seeds = jnp.stack([jnp.full_like(rows, seed), rows], axis=1)
    own = {"rules": rules, "numbers": numbers, "max_new_tokens": limit, "seeds": seeds, "start_ids": prompt.start_ids}
    return search(model, params, prompt.ids, prompt.real, **own).tokens
