"""Beam search as one program: the best running and finished hypotheses of each prompt, in arrays of fixed size."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxformer import functional as F
from jaxformer.generation import decode
from jaxformer.generation.decode import Numbers, Program, Written
from jaxformer.generation.options import GenerationConfig, Rules
from jaxformer.generation.prompts import Prompt
from jaxformer.models import Decoder, EncoderDecoder, KVCache
from jaxformer.models.kv_cache import repeat_rows, take_rows

# Below every score; small enough that adding a score to it is seen in float32.
_NEVER = -1e9


class Hypotheses(NamedTuple):
    """Texts of ``B`` prompts, ``K`` each, in ``G`` groups."""

    tokens: Array  # ``[B, G, K, M]``
    log_probs: Array  # ``[B, G, K, M]``, of each token under the model itself
    scores: Array  # ``[B, G, K]``; ``_NEVER`` where there is none yet
    finished: Array  # ``[B, G, K]`` bool


class Beams(NamedTuple):
    """State of the search."""

    cache: KVCache  # of the running hypotheses, ``B G K`` rows
    written: Written  # of the same rows, for the rules
    running: Hypotheses  # scores are summed log-probabilities, the best first
    best: Hypotheses  # finished ones; scores are those divided by length, the best first
    token: Array  # ``[B G K]``, last token of each row
    position: Array  # ``[B G K]``
    step: Array  # number of tokens written
    hopeful: Array  # ``[B, G]``, whether a running hypothesis may still become one of the best
    stuck: Array  # ``[B, G]``, whether every continuation has ended


def _take(tree: Any, index: Array) -> Any:
    """The entries ``index [B, R]`` of the second axis of arrays ``[B, K, ...]``."""

    def one(leaf: Array) -> Array:
        return jnp.take_along_axis(leaf, index.reshape(*index.shape, *(1,) * (leaf.ndim - 2)), axis=1)

    return jax.tree.map(one, tree)


def _best(hypotheses: Hypotheses, count: int) -> tuple[Hypotheses, Array]:
    """The ``count`` of highest score, ``[B, K, ...]`` to ``[B, count, ...]``, and their numbers."""
    index = jax.lax.top_k(hypotheses.scores, count)[1]
    return _take(hypotheses, index), index


class _Search(NamedTuple):
    """Constants of the search."""

    rules: Rules
    options: GenerationConfig
    numbers: Numbers
    limit: Array

    def candidates(
        self, scores: Array, log_probs: Array, running: Hypotheses, count: Array
    ) -> tuple[Hypotheses, Array, Array]:
        """The best continuations ``[B, C, ...]``, enough that ``K`` run on even if the best of each end.

        They are chosen by ``scores [B, K, V]``, the log-probabilities after the rules, with ``count`` tokens written
        before. Returns also their last tokens and the numbers of the beams that they continue, ``[B, C]`` each.
        """
        B, K, V = scores.shape
        total = (scores + running.scores[..., None]).reshape(B, K * V)
        kept = min(max(2, 1 + len(self.rules.end_ids)) * K, K * V)
        value, index = jax.lax.top_k(total, kept)
        beam, token = index // V, (index % V).astype(jnp.int32)
        from_beam = _take(running, beam)
        chosen = jnp.take_along_axis(log_probs.reshape(B, K * V), index, axis=1)
        new = Hypotheses(
            from_beam.tokens.at[:, :, count].set(token),
            from_beam.log_probs.at[:, :, count].set(chosen),
            value,
            decode.is_end(token, self.rules) | (count + 1 >= self.limit),
        )
        return new, token, beam

    def finish(self, best: Hypotheses, new: Hypotheses, hopeful: Array, count: Array) -> Hypotheses:
        """The best finished hypotheses ``[B, K, ...]``, with those among the first ``K`` candidates that just ended."""
        K = best.scores.shape[1]
        allowed = new.finished & (jnp.arange(new.scores.shape[1]) < K) & hopeful[:, None]
        if self.options.early_stopping is True:
            allowed = allowed & ~jnp.all(best.finished, axis=1, keepdims=True)
        length = (count + 1).astype(jnp.float32)
        scores = jnp.where(allowed, new.scores / length**self.options.length_penalty, _NEVER)
        ended = new._replace(scores=scores, finished=allowed)
        return _best(jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), best, ended), K)[0]

    def may_win(self, running: Hypotheses, best: Hypotheses, hopeful: Array, count: Array) -> Array:
        """``[B]``, whether the best running hypothesis may still beat the worst finished one.

        Its score is estimated with its present length, or with ``early_stopping="never"`` with the length that would
        score highest.
        """
        c = self.options
        longest = c.early_stopping == "never" and c.length_penalty > 0
        length = jnp.asarray(self.limit if longest else count).astype(jnp.float32)
        possible = running.scores[:, 0] / length**c.length_penalty
        worst = jnp.where(jnp.all(best.finished, axis=1), jnp.min(best.scores, axis=1), _NEVER)
        return hopeful & (possible > worst)

    def step(self, state: Beams, log_probs: Array) -> tuple[Beams, Array]:
        """Adds a token in all groups by log-probabilities ``[B G K, V]``; returns also the row each row continues."""
        B, G, K = state.running.scores.shape
        V = log_probs.shape[-1]
        ruled = decode.apply_rules(log_probs, state.written, state.step, self.limit, self.rules, self.numbers)
        ruled, raw = ruled.reshape(B, G, K, V), log_probs.reshape(B, G, K, V)
        taken, rows = jnp.zeros((B, V)), jnp.arange(B)[:, None]
        groups = []
        for g in range(G):
            running, best, hopeful = jax.tree.map(
                lambda leaf, g=g: leaf[:, g], (state.running, state.best, state.hopeful)
            )
            # A group is penalised for the tokens that the groups before it just took (Vijayakumar et al. 2018, eq. 5).
            scores = ruled[:, g] - self.options.diversity_penalty * taken[:, None] if g else ruled[:, g]
            new, last, beam = self.candidates(scores, raw[:, g], running, state.step)
            best = self.finish(best, new, hopeful, state.step)
            ended = jnp.where(decode.is_end(last, self.rules), _NEVER, 0.0)
            going, index = _best(new._replace(scores=new.scores + ended), K)
            token, parent = (jnp.take_along_axis(x, index, axis=1) for x in (last, beam))
            taken = taken.at[rows, token].add(1.0)
            hopeful = self.may_win(going, best, hopeful, state.step + 1)
            groups.append((going, best, token, parent, hopeful, jnp.all(new.finished, axis=1)))
        running, best, token, parent, hopeful, stuck = jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *groups)
        parents = (parent + (jnp.arange(B)[:, None, None] * G + jnp.arange(G)[:, None]) * K).reshape(-1)
        written = jax.tree.map(lambda leaf: leaf[parents] if leaf.ndim else leaf, state.written)
        token = token.reshape(-1)
        moved = Beams(
            state.cache,
            decode.write(written, token),
            running,
            best,
            token,
            state.position + 1,
            state.step + 1,
            hopeful,
            stuck,
        )
        return moved, parents


@partial(jax.jit, static_argnames=("model", "program", "options"))
def beam_search(
    model: Decoder | EncoderDecoder,
    params: Any,
    prompt: Prompt,
    limit: Array,
    numbers: Numbers,
    *,
    program: Program,
    options: GenerationConfig,
) -> tuple[Array, Array, Array]:
    """The best hypotheses of ``B`` prompts, as ``transformers`` finds them.

    A hypothesis is scored by the sum of its tokens' log-probabilities; when it ends, that is divided by its length to
    the power of ``length_penalty`` (Wu et al. 2016, "Google's Neural Machine Translation System", section 7, in the
    simpler form that is in use). Each group is a search of its own, penalised for the tokens that the groups before it
    took (Vijayakumar et al. 2018, "Diverse Beam Search").

    The parameters are prepared, and at most ``limit`` tokens are written. Returns the tokens
    ``[R, room]``, their log-probabilities, and the scores ``[R]``; ``R = B num_return_sequences``, the best of each
    prompt first.
    """
    rules, room = program.rules, program.room
    logits, cache, source, position = decode.prefill(model, params, prompt, program)
    B, G, K = len(prompt.ids), options.num_beam_groups, options.num_beams // options.num_beam_groups
    rows = G * K
    again = partial(jax.tree.map, partial(jnp.repeat, repeats=rows, axis=0))
    source = again(source)
    empty = Hypotheses(
        jnp.full((B, G, K, room), rules.pad_id, jnp.int32),
        jnp.zeros((B, G, K, room), jnp.float32),
        jnp.full((B, G, K), _NEVER),
        jnp.zeros((B, G, K), bool),
    )
    state = Beams(
        repeat_rows(cache, rows),
        decode.start_written(again(prompt.before), logits.shape[-1], program, numbers),
        # All beams begin alike: only the first counts, so that they do not take the same tokens.
        empty._replace(scores=empty.scores.at[:, :, 0].set(0.0)),
        empty,
        jnp.zeros(B * rows, jnp.int32),
        again(position),
        jnp.int32(0),
        jnp.ones((B, G), bool),
        jnp.zeros((B, G), bool),
    )
    log_softmax = F.exact_log_softmax if rules.exact else jax.nn.log_softmax
    search = _Search(rules, options, numbers, limit)
    state, _ = search.step(state, log_softmax(again(logits)))

    def unfinished(state: Beams) -> Array:
        going = state.hopeful
        if options.early_stopping is True:
            going = going & ~jnp.all(state.best.finished)
        return jnp.any(going) & ~jnp.all(state.stuck)

    def step(state: Beams) -> Beams:
        logits, cache = decode.forward(model, params, state.token, state.position, state.cache, source)
        moved, parents = search.step(state._replace(cache=cache), log_softmax(logits))
        # All beams of a prompt have the same context.
        return moved._replace(cache=take_rows(cache, parents, context=False))

    best = jax.lax.while_loop(unfinished, step, state).best
    together: Hypotheses = jax.tree.map(lambda leaf: leaf.reshape(B, rows, *leaf.shape[3:]), best)
    found, _ = _best(together, options.num_return_sequences)
    tokens, log_probs, scores, _ = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
    return tokens, log_probs, scores
