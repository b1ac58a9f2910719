"""Rows of one cache that texts enter and leave at any step: the compiled programs of continuous batching.

Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative Models", section 3: the batch is
chosen anew at every step, so that a short text does not wait for a long one beside it. Prompts are read in chunks
between the steps (Agrawal et al. 2024, "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
section 4). Every number of a row is an argument, so that no request compiles anything.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxformer import functional as F
from jaxformer.generation.decode import is_end, most_probable, row_key
from jaxformer.generation.options import Rules
from jaxformer.models import Decoder, KVCache, init_cache
from jaxformer.models.config import TransformerConfig

ALTERNATIVES = 20  # most probable tokens that are reported beside the one that was written


class Settings(NamedTuple):
    """Numbers by which each row's tokens are drawn, ``[B]``; names as in ``GenerationConfig``."""

    temperature: Any  # 0: the most probable token
    top_k: Any  # 0: all
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    presence_penalty: Any
    frequency_penalty: Any
    min_new_tokens: Any
    max_new_tokens: Any
    ends: Any  # bool, False where no token ends the text
    alternatives: Any  # bool, True where the most probable tokens are reported


NEUTRAL = Settings(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, 0, True, False)
_DTYPES = Settings(*["float32", "int32"], *["float32"] * 5, *["int32"] * 2, *["bool"] * 2)


class Slots(NamedTuple):
    """The state of ``B`` rows."""

    cache: KVCache  # by row
    logits: Array  # ``[B, V]`` float32, of the next token
    active: Array  # ``[B]`` bool, True where a text is being written
    step: Array  # ``[B]``, tokens written
    seeds: Array  # ``[B, 2]``, seed and number that a row's draws depend on
    settings: Settings
    bias: Array  # ``[B, V]``, added to the logits
    seen: Array  # ``[B, V]`` bool, tokens of prompt and text
    counts: Array  # ``[B, V]``, number of times each was written


class Written(NamedTuple):
    """The tokens of some steps; -1 where a row has none."""

    tokens: Array  # ``[B, K]``
    log_probs: Array  # ``[B, K]``, under the model itself, before any option; nats
    top_ids: Array  # ``[B, K, ALTERNATIVES]``, where they are asked for
    top_log_probs: Array  # as these
    active: Array  # ``[B]`` bool, False where the text has ended


class Read(NamedTuple):
    """The log-probabilities of the tokens of a chunk ``[C]``, each given those before it."""

    log_probs: Array  # ``[C]``
    top_ids: Array  # ``[C, ALTERNATIVES]``
    top_log_probs: Array


def settings_of(rows: list[Settings]) -> Settings:
    """The settings of several rows as arrays."""
    return Settings(*(jnp.array(column, dtype) for column, dtype in zip(zip(*rows, strict=True), _DTYPES, strict=True)))


def scalars(row: Settings) -> Settings:
    """The settings of one row as scalars of the programs' dtypes."""
    return Settings(*(np.array(value, dtype) for value, dtype in zip(row, _DTYPES, strict=True)))


def empty_slots(config: TransformerConfig, count: int, places: int, dtype: str | None = None) -> Slots:
    """Rows without texts, whose cache has ``places`` for the tokens of each."""
    cache = init_cache(config, count, places, dtype=dtype, stacked=False)
    V = config.vocabulary
    return Slots(
        replace(cache, empty=False, by_row=True),
        jnp.zeros((count, V), jnp.float32),
        jnp.zeros(count, bool),
        jnp.zeros(count, jnp.int32),
        jnp.zeros((count, 2), jnp.int32),
        settings_of([NEUTRAL] * count),
        jnp.zeros((count, V), jnp.float32),
        jnp.zeros((count, V), bool),
        jnp.zeros((count, V), jnp.int32),
    )


@partial(jax.jit, static_argnames=("places", "attends"))
def resize(slots: Slots, *, places: int, attends: bool) -> Slots:
    """The same rows with room for another number of tokens each; those beyond are lost.

    ``attends`` is False for a model whose states have no places.
    """

    def fit(array: Array, axis: int) -> Array:
        kept = jax.lax.slice_in_dim(array, 0, min(places, array.shape[axis]), axis=axis)
        sizes = [(0, places - kept.shape[axis] if i == axis else 0) for i in range(array.ndim)]
        return jnp.pad(kept, sizes)

    c = slots.cache
    layers = jax.tree.map(lambda leaf: fit(leaf, 2), c.layers) if attends else c.layers
    return slots._replace(cache=replace(c, layers=layers, valid=fit(c.valid, 1), positions=fit(c.positions, 1)))


@partial(jax.jit, donate_argnames="slots")
def begin(
    slots: Slots, row: Array, source: Array, kept: Array, seeds: Array, settings: Settings, bias: Array, seen: Array
) -> Slots:
    """Gives a row to a new text.

    Args:
        slots: the rows.
        row: number of the row.
        source: number of the row from which ``kept`` first tokens are taken over; may be ``row``.
        kept: places that stay; the others are emptied.
        seeds: ``[2]``.
        settings: of this row, scalars.
        bias: ``[V]``.
        seen: ``[V]`` bool.
    """
    c = slots.cache

    def copied(leaf: Array) -> Array:
        return leaf.at[row].set(leaf[source])

    # Where nothing is kept, a state without places starts from nothing.
    layers = jax.tree.map(lambda leaf: leaf.at[row].set(jnp.where(kept > 0, leaf[source], 0)), c.layers)
    valid = c.valid.at[row].set(c.valid[source] & (jnp.arange(c.valid.shape[1]) < kept))
    return Slots(
        replace(c, layers=layers, valid=valid, positions=copied(c.positions)),
        slots.logits,
        slots.active.at[row].set(False),
        slots.step.at[row].set(0),
        slots.seeds.at[row].set(seeds),
        jax.tree.map(lambda all_rows, one: all_rows.at[row].set(one), slots.settings, settings),
        slots.bias.at[row].set(bias),
        slots.seen.at[row].set(seen),
        slots.counts.at[row].set(0),
    )


@partial(jax.jit, static_argnames=("model", "score"), donate_argnames="slots")
def read(
    model: Decoder, params: Any, slots: Slots, row: Array, ids: Array, count: Array, last: Array, *, score: bool
) -> tuple[Slots, Read | None]:
    """Reads a chunk of a prompt into its row.

    Args:
        model: with a language-model head.
        params: prepared.
        slots: the rows.
        row: number of the row.
        ids: ``[C]``; where ``score``, ``[C + 1]``, with the token after them.
        count: how many of the ``C`` are real.
        last: True if the prompt ends here, so that the row begins to write.
        score: also return the log-probabilities of ``ids[1:]``.
    """
    c, C = slots.cache, len(ids) - score

    def one(leaf: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(leaf, row, 1)

    def back(leaf: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(leaf, part, row, axis=0)

    own = replace(c, layers=jax.tree.map(one, c.layers), valid=one(c.valid), positions=one(c.positions))
    real = (jnp.arange(C) < count)[None]
    inputs = {"attention_mask": real, "cache": own}
    scores = None
    if score:
        out = model.apply({"params": params}, ids[None, :C], **inputs)
        own, logits = out.cache, out.logits[0].astype(jnp.float32)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        top, top_ids = jax.lax.top_k(log_probs, min(ALTERNATIVES, log_probs.shape[-1]))
        scores = Read(jnp.take_along_axis(log_probs, ids[1:, None], axis=-1)[:, 0], top_ids, top)
        logits = logits[count - 1]
    else:
        found, own = model.apply({"params": params}, ids[None], last=count[None] - 1, method="last_logits", **inputs)
        logits = found[0].astype(jnp.float32)
    cache = replace(
        c,
        layers=jax.tree.map(back, c.layers, own.layers),
        valid=back(c.valid, own.valid),
        positions=back(c.positions, own.positions),
    )
    slots = slots._replace(cache=cache, logits=slots.logits.at[row].set(logits), active=slots.active.at[row].set(last))
    return slots, scores


def _shaped(slots: Slots, allowed: Array, rules: Rules) -> Array:
    """The logits ``[B, V]`` after the options of each row."""
    s, V = slots.settings, slots.logits.shape[1]
    scores = slots.logits + slots.bias
    scores = F.repetition_penalty(scores, slots.seen, s.repetition_penalty[:, None])
    scores = F.count_penalties(scores, slots.counts, s.presence_penalty[:, None], s.frequency_penalty[:, None])
    if rules.end_ids:
        ends = jnp.array(rules.end_ids)
        early = (slots.step < s.min_new_tokens)[:, None]
        scores = scores.at[:, ends].set(jnp.where(early, F.MASKED, scores[:, ends]))
    bits = (allowed[:, :, None] >> jnp.arange(32)) & 1
    return jnp.where(bits.reshape(len(bits), -1)[:, :V] == 1, scores, F.MASKED)


def _drawn(slots: Slots, allowed: Array, rules: Rules) -> Array:
    """The next token ``[B]`` of each row."""
    s = slots.settings
    scores = _shaped(slots, allowed, rules)
    samples = slots.active & (s.temperature > 0)

    def filtered(shaped: Array) -> Array:
        shaped = F.top_k_by_row(shaped, s.top_k[:, None])
        # Of no probability the most probable token is left.
        shaped = F.top_p_logits(shaped, jnp.maximum(s.top_p, jnp.finfo(jnp.float32).tiny)[:, None])
        return F.min_p_logits(shaped, s.min_p[:, None])

    def sample() -> Array:
        shaped = scores / jnp.where(s.temperature > 0, s.temperature, 1.0)[:, None]
        limited = samples & ((s.top_k > 0) | (s.top_p < 1) | (s.min_p > 0))
        shaped = jax.lax.cond(jnp.any(limited), filtered, lambda same: same, shaped)
        keys = jax.vmap(lambda pair, step: row_key(pair, "sample", step))(slots.seeds, slots.step)
        return jax.vmap(jax.random.categorical)(keys, shaped).astype(jnp.int32)

    greedy = most_probable(scores).astype(jnp.int32)
    return jax.lax.cond(jnp.any(samples), lambda: jnp.where(samples, sample(), greedy), lambda: greedy)


@partial(jax.jit, static_argnames=("model", "rules", "most"), donate_argnames="slots")
def advance(
    model: Decoder,
    params: Any,
    slots: Slots,
    numbers: Array,
    allowed: Array,
    steps: Array,
    *,
    rules: Rules,
    most: int,
) -> tuple[Slots, Written]:
    """Writes up to ``steps`` tokens in some rows, those that are active, and stops early when one of them ends.

    Args:
        model: with a language-model head.
        params: prepared.
        slots: the rows.
        numbers: ``[R]``, of the rows, each once; as many as there are: all of them, in order. Fewer are computed apart,
            which costs a copy of theirs.
        allowed: ``[R, ceil(V / 32)]`` int32, a bit for each token that may be written.
        steps: at most ``most``.
        rules: ``end_ids`` are read.
        most: K, places of the result.
    """
    if len(numbers) < len(slots.logits):
        # All but the cache's length, which rows of their own do not use, have a row for each.
        some = jax.tree.map(lambda leaf: leaf[numbers] if leaf.ndim else leaf, slots)
        some, written = _advance(model, params, some, allowed, steps, rules, most)
        return jax.tree.map(lambda leaf, part: leaf.at[numbers].set(part) if leaf.ndim else leaf, slots, some), written
    return _advance(model, params, slots, allowed, steps, rules, most)


def _advance(
    model: Decoder, params: Any, slots: Slots, allowed: Array, steps: Array, rules: Rules, most: int
) -> tuple[Slots, Written]:
    B, count = len(slots.logits), min(ALTERNATIVES, slots.logits.shape[1])

    def unfinished(carried: tuple[Array, Slots, Written]) -> Array:
        step, now, _ = carried
        return (step < steps) & jnp.any(now.active) & ~jnp.any(slots.active & ~now.active)

    def step(carried: tuple[Array, Slots, Written]) -> tuple[Array, Slots, Written]:
        i, now, out = carried
        token = _drawn(now, allowed, rules)
        log_probs = jax.nn.log_softmax(now.logits, axis=-1)
        chosen = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]

        def best() -> tuple[Array, Array]:
            top, ids = jax.lax.top_k(log_probs, count)
            return out.top_ids.at[:, i].set(ids), out.top_log_probs.at[:, i].set(top)

        asked = jnp.any(now.active & now.settings.alternatives)
        top_ids, top = jax.lax.cond(asked, best, lambda: (out.top_ids, out.top_log_probs))
        written = now.active
        total = now.step + written
        ended = (is_end(token, rules) & now.settings.ends) | (total >= now.settings.max_new_tokens)
        active = written & ~ended
        rows = jnp.arange(B)

        ids, real = token[:, None], active[:, None]
        logits, cache = model.apply({"params": params}, ids, real, cache=now.cache, method="last_logits")
        now = now._replace(
            cache=cache,
            logits=jnp.where(real, logits.astype(jnp.float32), now.logits),
            active=active,
            step=total,
            seen=now.seen.at[rows, token].max(written),
            counts=now.counts.at[rows, token].add(written),
        )
        tokens = out.tokens.at[:, i].set(jnp.where(written, token, -1))
        return i + 1, now, Written(tokens, out.log_probs.at[:, i].set(chosen), top_ids, top, active)

    nothing = Written(
        jnp.full((B, most), -1, jnp.int32),
        jnp.zeros((B, most), jnp.float32),
        jnp.zeros((B, most, count), jnp.int32),
        jnp.zeros((B, most, count), jnp.float32),
        slots.active,
    )
    _, slots, written = jax.lax.while_loop(unfinished, step, (jnp.int32(0), slots, nothing))
    return slots, written


@partial(jax.jit, donate_argnames="slots")
def release(slots: Slots, row: Array) -> Slots:
    """Ends the text of a row before its end."""
    return slots._replace(active=slots.active.at[row].set(False))
