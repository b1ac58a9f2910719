"""A jitted sampling loop over an explicit KV cache."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxformer import functional as F
from jaxformer.models import Decoder, init_cache


@partial(jax.jit, static_argnames=("model", "max_new_tokens", "temperature", "top_k", "top_p", "eos_id"))
def sample(
    model: Decoder,
    params: Any,
    input_ids: Int[Array, "B T"],
    attention_mask: Int[Array, "B T"] | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | None = None,
    seed: int | Array = 0,
) -> Int[Array, "B new"]:
    """Continues each prompt; stops early when every row has drawn ``eos_id``. A draw depends on (seed, number, row).

    Args:
        model: the decoder.
        params: its parameters.
        input_ids: prompts, padded on any side to one length; at least one real token each.
        attention_mask: 1 at real tokens; None if there is no padding.
        max_new_tokens: length of the result.
        temperature: 0 is greedy; with ``top_k`` and ``top_p`` see ``functional.sample_token``.
        top_k: draw among the k most probable tokens.
        top_p: draw among the most probable tokens that reach p.
        eos_id: token that ends a row.
        seed: of the draws.

    Returns:
        The new tokens only, ``[B, max_new_tokens]``; after a row's ``eos_id`` its further entries are ``eos_id``.

    Raises:
        ValueError: if prompt and new tokens do not fit the model's ``max_length``.
    """
    B, T = input_ids.shape
    if T + max_new_tokens > model.config.max_length:
        raise ValueError(
            f"sample: {T} prompt and {max_new_tokens} new tokens, expected at most max_length "
            f"{model.config.max_length} together; shorten the prompt or ask for fewer"
        )
    if max_new_tokens == 0:
        return jnp.zeros((B, 0), jnp.int32)
    mask = jnp.ones((B, T), bool) if attention_mask is None else attention_mask.astype(bool)

    def draw(logits: Array, count: Array) -> Array:
        keys = F.example_keys(F.purpose_key(seed, "sample", count), jnp.arange(B))
        return F.sample_token(logits, keys, temperature=temperature, top_k=top_k, top_p=top_p)

    cache = init_cache(model.config, B, T + max_new_tokens)
    output = model.apply({"params": params}, input_ids, mask, cache=cache)
    # The last real token's logits; with padding on the right it is not the last column.
    last = T - 1 - jnp.argmax(mask[:, ::-1], axis=-1)
    token = draw(jnp.take_along_axis(output.logits, last[:, None, None], axis=1)[:, 0], jnp.int32(0))
    tokens = jnp.full((B, max_new_tokens), 0 if eos_id is None else eos_id, jnp.int32).at[:, 0].set(token)
    done = jnp.zeros(B, bool) if eos_id is None else token == eos_id

    def unfinished(carry: Any) -> Array:
        count, _, _, done, _ = carry
        return (count < max_new_tokens) & ~jnp.all(done)

    def advance(carry: Any) -> Any:
        count, cache, token, done, tokens = carry
        output = model.apply({"params": params}, token[:, None], cache=cache)
        token = draw(output.logits[:, -1], count)
        if eos_id is not None:
            token = jnp.where(done, eos_id, token)
            done = done | (token == eos_id)
        return count + 1, output.cache, token, done, tokens.at[:, count].set(token)

    return jax.lax.while_loop(unfinished, advance, (jnp.int32(1), output.cache, token, done, tokens))[-1]
