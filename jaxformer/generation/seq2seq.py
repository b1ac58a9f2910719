"""Greedy search for an encoder-decoder."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxformer.models import EncoderDecoder, init_cache


def greedy_search(
    model: EncoderDecoder,
    params: Any,
    input_ids: Int[Array, "B S"],
    attention_mask: Int[Array, "B S"],
    *,
    start_id: int,
    end_id: int,
    max_new_tokens: int,
) -> Int[Array, "B new"]:
    """The most probable next token, over and over, until every row has its end or is full.

    The encoder runs once; the decoder keeps its keys and values.

    Args:
        model: the encoder-decoder.
        params: its parameters.
        input_ids: sources, padded to one length.
        attention_mask: 1 at real tokens.
        start_id: what the decoder starts with.
        end_id: token that ends a target.
        max_new_tokens: length of the result.

    Returns:
        ``[B, max_new_tokens]`` without the start; behind a row's ``end_id`` there is only ``end_id``.
    """
    variables = {"params": params}
    B = input_ids.shape[0]
    context = model.apply(variables, input_ids, attention_mask, method="encode")

    def unfinished(carry: Any) -> Array:
        count, _, _, done, _ = carry
        return (count < max_new_tokens) & ~jnp.all(done)

    def advance(carry: Any) -> Any:
        count, cache, token, done, tokens = carry
        hidden, cache = model.apply(variables, context, token[:, None], cache=cache, method="decode")
        logits = model.apply(variables, hidden[:, -1], method="logits")
        token = jnp.where(done, end_id, jnp.argmax(logits, axis=-1))
        return count + 1, cache, token, done | (token == end_id), tokens.at[:, count].set(token)

    start = jnp.full(B, start_id, jnp.int32)
    tokens = jnp.full((B, max_new_tokens), end_id, jnp.int32)
    cache = init_cache(model.config, B, max_new_tokens)
    carry = (jnp.int32(0), cache, start, jnp.zeros(B, bool), tokens)
    return jax.lax.while_loop(unfinished, advance, carry)[-1]
