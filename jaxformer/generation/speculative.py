"""Speculative decoding: a small draft model proposes tokens, the large one verifies several of them in one step.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding"; Chen et al. 2023, "Accelerating
Large Language Model Decoding with Speculative Sampling". The text is distributed exactly as if the large model had
drawn every token.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxformer import functional as F
from jaxformer.generation.decode import Numbers, Program, is_end, prefill, row_keys
from jaxformer.generation.options import parse_options
from jaxformer.generation.prepare import prepare
from jaxformer.generation.prompts import Prompt, check_lengths
from jaxformer.generation.request import GenerateOutput, Request
from jaxformer.models import Decoder, KVCache
from jaxformer.schema import UserError

_SHAPING = ("temperature", "top_p", "min_p", "typical_p")
_OPTIONS = sorted(
    (
        *_SHAPING,
        "top_k",
        "max_new_tokens",
        "do_sample",
        "eos_token_id",
        "stop_token_ids",
        "pad_token_id",
        "bos_token_id",
    )
)


@dataclass(frozen=True)
class SpeculativeOutput(GenerateOutput):
    """Result of ``generate``, with counts.

    Attributes:
        proposed: tokens that the draft model proposed, in rows that had not ended.
        accepted: tokens of these that were accepted.
        rounds: steps of the large model after the prompt.
    """

    proposed: int = 0
    accepted: int = 0
    rounds: int = 0


def accept(
    proposals: Int[Array, "B k"],
    draft: Float[Array, "B k V"],
    target: Float[Array, "B k1 V"],
    keys: Key[Array, " B"],
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Speculative sampling: the number of proposals accepted, and the token after them.

    Proposal ``x`` is accepted with probability ``min(1, p(x) / q(x))``; in place of the first that is rejected, a token
    is drawn from ``max(0, p - q)``, normalised; after all of them, from ``p``. Each token is then distributed as ``p``
    (Leviathan et al. 2023, algorithm 1 and appendix A.1).

    Args:
        proposals: drawn from ``draft``.
        draft: ``q``, probabilities of the small model at each place.
        target: ``p``, those of the large one, and one place further, ``k1 = k + 1``.
        keys: one a row.

    Returns:
        Numbers between 0 and k, and tokens.
    """
    k = proposals.shape[1]
    split = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (k,)))(split[:, 0])
    index = proposals[..., None]
    p = jnp.take_along_axis(target[:, :k], index, axis=2)[..., 0]
    q = jnp.take_along_axis(draft, index, axis=2)[..., 0]
    kept = jnp.sum(jnp.cumprod(uniform * q < p, axis=1), axis=1)
    here = jnp.take_along_axis(target, kept[:, None, None], axis=1)[:, 0]
    guessed = jnp.take_along_axis(jnp.pad(draft, ((0, 0), (0, 1), (0, 0))), kept[:, None, None], axis=1)[:, 0]
    rest = jnp.maximum(here - guessed, 0.0)
    rest = jnp.where(jnp.sum(rest, axis=1, keepdims=True) > 0, rest, here)  # p and q alike, but for rounding
    return kept, jax.vmap(jax.random.categorical)(split[:, 1], jnp.log(rest)).astype(jnp.int32)


class _State(NamedTuple):
    """State between two rounds; of the ``counts [B]`` tokens of each row the last is in no cache yet."""

    target_cache: KVCache
    draft_cache: KVCache
    token: Array
    position: Array
    counts: Array
    done: Array
    tokens: Array
    log_probs: Array
    round: Array
    accepted: Array
    proposed: Array


def _forget(cache: KVCache, start: Array, kept: Array, size: int) -> KVCache:
    """Invalidates, among the ``size`` places from ``start`` on, those after the first ``kept [B]``.

    The places stay taken in all rows, and hold nothing in some.
    """
    place = jnp.arange(cache.valid.shape[1])[None, :] - start
    return replace(cache, valid=cache.valid & ((place < kept[:, None]) | (place < 0) | (place >= size)))


class _Model(NamedTuple):
    """A model and its prepared parameters."""

    model: Decoder
    params: Any

    def read(self, tokens: Array, positions: Array, cache: KVCache) -> tuple[Array, KVCache]:
        """Logits ``[B, T, V]`` of tokens ``[B, T]`` after those in the cache, and the new cache."""
        # Proposals may reach beyond the last token that is wanted, and so beyond the model's positions.
        positions = jnp.minimum(positions, self.model.config.max_length - 1)
        output = self.model.apply({"params": self.params}, tokens, position_ids=positions, cache=cache)
        assert output.cache is not None
        return output.logits, output.cache


class _Speculation(NamedTuple):
    """Constants of the loop."""

    target: _Model
    draft: _Model
    seeds: Array
    limit: Array
    numbers: Numbers
    program: Program
    k: int

    def probabilities(self, logits: Array) -> Array:
        """Probabilities ``[..., V]`` of the next token; without sampling 1 for the most probable one."""
        rules, V = self.program.rules, logits.shape[-1]
        if not rules.sample:
            return jax.nn.one_hot(jnp.argmax(logits, axis=-1), V)
        shaping = {name: self.numbers[name] for name in _SHAPING if name in self.numbers}
        shaped = F.shape_logits(logits.reshape(-1, V), top_k=rules.top_k, **shaping)
        return jax.nn.softmax(shaped, axis=-1).reshape(logits.shape)

    def draw(self, probabilities: Array, purpose: str, step: Array) -> Array:
        """Draws a token in each row."""
        keys = row_keys(self.seeds, purpose, step)
        return jax.vmap(jax.random.categorical)(keys, jnp.log(probabilities)).astype(jnp.int32)

    def put(self, state: _State, new: Array, log_probs: Array, size: Array) -> _State:
        """Appends the first ``size [B]`` of the new tokens to each row, up to the first end."""
        place = jnp.arange(new.shape[1])
        ends = is_end(new, self.program.rules)
        before_end = jnp.cumsum(ends, axis=1) - ends == 0
        wanted = (place < size[:, None]) & before_end & (state.counts[:, None] + place < self.limit)
        column = jnp.where(wanted, state.counts[:, None] + place, self.program.room)  # beyond the last column: dropped
        rows = jnp.arange(len(new))[:, None]
        counts = state.counts + jnp.sum(wanted, axis=1)
        return state._replace(
            tokens=state.tokens.at[rows, column].set(new, mode="drop"),
            log_probs=state.log_probs.at[rows, column].set(log_probs, mode="drop"),
            counts=counts,
            done=state.done | jnp.any(wanted & ends, axis=1) | (counts >= self.limit),
        )

    def begin(self, prompt: Prompt) -> _State:
        """Both models read the prompts; the large one writes the first token."""
        B, room = len(prompt.ids), self.program.room
        # In the worst case each round writes one token and takes k + 1 places.
        places = Program(self.program.rules, room * (self.k + 1))
        logits, target_cache, _, position = prefill(*self.target, prompt, places)
        _, draft_cache, _, _ = prefill(*self.draft, prompt, places)
        first = self.draw(self.probabilities(logits), "sample", jnp.int32(0))
        empty = _State(
            target_cache,
            draft_cache,
            first,
            position + 1,
            jnp.zeros(B, jnp.int32),
            jnp.zeros(B, bool),
            jnp.full((B, room), self.program.rules.pad_id, jnp.int32),
            jnp.zeros((B, room), jnp.float32),
            *(jnp.int32(0) for _ in range(3)),
        )
        log_prob = F.token_log_probs(logits, first)
        return self.put(empty, first[:, None], log_prob[:, None], jnp.ones(B, jnp.int32))

    def propose(self, state: _State) -> tuple[Array, Array, KVCache]:
        """Proposals ``[B, k]`` of the draft model, its probabilities ``[B, k, V]``, and its cache with all of them."""

        def step(carry: Any, i: Array) -> Any:
            cache, token = carry
            logits, cache = self.draft.read(token[:, None], (state.position + i)[:, None], cache)
            q = self.probabilities(logits[:, -1])
            new = self.draw(q, "propose", state.round * (self.k + 1) + i)
            return (cache, new), (new, q)

        # One more step than proposals: if all are accepted, the last one must be in the draft model's cache.
        (cache, _), (tokens, q) = jax.lax.scan(step, (state.draft_cache, state.token), jnp.arange(self.k + 1))
        return tokens[: self.k].T, q[: self.k].transpose(1, 0, 2), cache

    def round(self, state: _State) -> _State:
        """Proposals, their verification by the large model, and the tokens that are accepted."""
        k = self.k
        proposals, q, draft_cache = self.propose(state)
        tokens = jnp.concatenate([state.token[:, None], proposals], axis=1)
        logits, target_cache = self.target.read(tokens, state.position[:, None] + jnp.arange(k + 1), state.target_cache)
        p = self.probabilities(logits)
        kept, following = accept(proposals, q, p, row_keys(self.seeds, "sample", state.round + 1))
        new = jnp.where(jnp.arange(k + 1) < kept[:, None], jnp.pad(proposals, ((0, 0), (0, 1))), following[:, None])
        written = self.put(state, new, F.token_log_probs(logits, new), jnp.where(state.done, 0, kept + 1))
        return written._replace(
            target_cache=_forget(target_cache, state.target_cache.length, kept + 1, k + 1),
            draft_cache=_forget(draft_cache, state.draft_cache.length, kept + 1, k + 1),
            token=following,
            position=state.position + kept + 1,
            round=state.round + 1,
            accepted=state.accepted + jnp.sum(jnp.where(state.done, 0, kept)),
            proposed=state.proposed + k * jnp.sum(~state.done),
        )


@partial(jax.jit, static_argnames=("models", "program", "k"))
def _run(
    models: tuple[Decoder, Decoder],
    params: tuple[Any, Any],
    prompt: Prompt,
    seeds: Array,
    limit: Array,
    numbers: Numbers,
    *,
    program: Program,
    k: int,
) -> _State:
    target, draft = (_Model(*pair) for pair in zip(models, params, strict=True))
    speculation = _Speculation(target, draft, seeds, limit, numbers, program, k)
    return jax.lax.while_loop(lambda state: ~jnp.all(state.done), speculation.round, speculation.begin(prompt))


def speculative_generate(
    model: Decoder,
    params: Any,
    draft_model: Decoder,
    draft_params: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    num_draft_tokens: int = 4,
    tokenizer: Any = None,
    seed: int = 0,
    **options: Any,
) -> SpeculativeOutput:
    """``generate`` with a small draft model that proposes ``num_draft_tokens`` tokens for each step of the large one.

    Greedy search writes the same tokens as without it; samples differ, with exactly the same distribution. It pays
    where a step of the large model takes about as long for a few tokens as for one, with few rows.

    Args:
        model: the large model, a decoder.
        params: its parameters, preferably prepared.
        draft_model: a decoder with the same vocabulary.
        draft_params: its parameters, preferably prepared.
        input_ids: ``[B, T]``, padded on any side.
        attention_mask: ``[B, T]``, 1 at real tokens.
        num_draft_tokens: proposals in each step.
        tokenizer: for ``text``.
        seed: of the draws.
        **options: ``max_new_tokens``, ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``typical_p``,
            ``eos_token_id``, ``stop_token_ids``, ``pad_token_id``, ``bos_token_id``.

    Returns:
        As ``generate``, with the numbers of proposed and accepted tokens.

    Raises:
        UserError: an option is none of these, or the models do not go together.
    """
    for name in options:
        if name not in _OPTIONS:
            raise UserError(f"{name} is no option of speculative decoding, expected one of {', '.join(_OPTIONS)}")
    for one in (model, draft_model):
        if not isinstance(one, Decoder):
            raise UserError(f"{type(one).__name__} was given, expected a decoder with a language-model head")
        if one.config.mixer != "attention":
            raise UserError(
                f"a model with mixer {one.config.mixer} was given, expected attention for speculative decoding: a "
                "state cannot take a rejected proposal back; use generate"
            )
    if model.config.exact:
        raise UserError(
            "numerics is exact, expected fast for speculative decoding: proposals that are rejected leave gaps in the "
            "cache; use generate, or set numerics to fast"
        )
    if num_draft_tokens < 1:
        raise UserError(f"num_draft_tokens is {num_draft_tokens}, expected at least 1")
    vocabulary, of_draft = model.config.vocabulary, draft_model.config.vocabulary
    if of_draft != vocabulary:
        raise UserError(
            f"the draft model has {of_draft} tokens and the model {vocabulary}, expected the same vocabulary"
        )
    request = Request(model, params, input_ids, attention_mask, tokenizer, seed, None, parse_options(options))
    check_lengths(request.prompt, request.options.max_new_tokens, draft_model.config)
    if request.is_empty:
        return SpeculativeOutput(**vars(request.nothing()))
    state = _run(
        (request.model, draft_model),
        (request.params, prepare(draft_model, draft_params)),
        request.prompt,
        request.seeds,
        request.limit,
        request.numbers,
        program=request.program,
        k=num_draft_tokens,
    )
    output = request.output(state.tokens, state.log_probs)
    return SpeculativeOutput(
        **vars(output), proposed=int(state.proposed), accepted=int(state.accepted), rounds=int(state.round)
    )
