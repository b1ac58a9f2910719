"""Log-probabilities of continuations of contexts, and of whole texts in windows."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxformer import functional as F
from jaxformer.functional.chunks import join_chunks, split_columns
from jaxformer.generation.prepare import prepare
from jaxformer.generation.prompts import bucket
from jaxformer.models import Decoder, init_cache
from jaxformer.models.kv_cache import take_rows
from jaxformer.schema import UserError

BUDGET = 2048  # tokens of a batch
COLUMNS = 16  # tokens of a row whose logits are in memory at once
SIZES = (1, 1 + 16, 1 + 64, 1 + 256, 1 + 1024)  # of continuations; longer ones are rounded up to the last but 1


class Scored(NamedTuple):
    """A continuation.

    Attributes:
        log_probs: of each of its tokens given all before it; nats.
        greedy: True where the token is the most probable one.
    """

    log_probs: np.ndarray
    greedy: np.ndarray

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation."""
        return float(self.log_probs.sum(dtype=np.float64))


def score(
    model: Decoder,
    params: Any,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Scored]:
    """The log-probabilities of continuations.

    A context that several continuations have is read once; batches are of similar lengths.

    Args:
        model: with a language-model head.
        params: preferably from ``prepare``.
        requests: contexts of at least one token and their continuations.
        progress: called with the number of requests that are done.

    Raises:
        UserError: the model is no decoder, a context is empty, or a pair is longer than the model reads.
    """
    if not isinstance(model, Decoder):
        raise UserError(f"{type(model).__name__} is no decoder, expected one: continuations are scored by it")
    longest = model.config.max_length + 1  # the last token is only predicted
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(requests):
        if not len(context) or len(context) + len(continuation) > longest:
            raise UserError(
                f"request {number} has a context of {len(context)} tokens and a continuation of {len(continuation)}, "
                f"expected at least one and at most {longest} together"
            )
        groups.setdefault(tuple(context), []).append(number)
    params, found, done = prepare(model, params), {}, 0
    for batch, size in _batches(groups, requests):
        for number, one in _run(model, params, batch, size, requests):
            found[number] = one
        done += sum(len(numbers) for _, numbers in batch)
        progress(done)
    return [found[number] for number in range(len(requests))]


Group = tuple[tuple[int, ...], list[int]]


def _batches(groups: dict[tuple[int, ...], list[int]], requests: Any) -> Any:
    """Groups whose contexts and continuations have one size, as many as the budget holds."""

    def size_of(group: Group) -> tuple[int, int]:
        longest = max(len(requests[number][1]) for number in group[1])
        rounded = next((size for size in SIZES if size >= longest), 1 + bucket(longest - 1))
        return bucket(len(group[0])), rounded

    by_size: dict[tuple[int, int], list[Group]] = {}
    for group in groups.items():
        by_size.setdefault(size_of(group), []).append(group)
    for size in sorted(by_size, reverse=True):
        most = _contexts_of(size)
        batch: list[Group] = []
        for context, numbers in by_size[size]:
            # A context with more continuations than a batch has rows is read several times.
            for start in range(0, len(numbers), 4 * most):
                part = numbers[start : start + 4 * most]
                if batch and (len(batch) == most or sum(len(n) for _, n in batch) + len(part) > 4 * most):
                    yield batch, size
                    batch = []
                batch.append((context, part))
        if batch:
            yield batch, size


def _contexts_of(size: tuple[int, int]) -> int:
    """Contexts of a batch, a power of two."""
    return 1 << max(0, (BUDGET // sum(size)).bit_length() - 1)


def _run(model: Decoder, params: Any, batch: list[Group], size: tuple[int, int], requests: Any) -> Any:
    """The requests of a batch with what was found."""
    (T, C), G = size, _contexts_of(size)
    numbers = [number for _, group in batch for number in group]
    R = G if len(numbers) <= G else 4 * G
    contexts, lengths = np.zeros((G, T), np.int32), np.ones(G, np.int32)
    ids, counts, group_of = np.zeros((R, C), np.int32), np.zeros(R, np.int32), np.zeros(R, np.int32)
    row = 0
    for place, (context, group) in enumerate(batch):
        contexts[place, : len(context)], lengths[place] = context, len(context)
        for number in group:
            continuation = requests[number][1]
            ids[row, : len(continuation)], counts[row], group_of[row] = continuation, len(continuation), place
            row += 1
    log_probs, greedy = map(np.asarray, _score(model, params, contexts, lengths, group_of, ids, counts))
    for row, number in enumerate(numbers):
        yield number, Scored(log_probs[row, : counts[row]], greedy[row, : counts[row]])


@partial(jax.jit, static_argnames="model")
def _score(
    model: Decoder, params: Any, contexts: Array, lengths: Array, group_of: Array, ids: Array, counts: Array
) -> tuple[Array, Array]:
    """Log-probabilities ``[R, C]`` of the tokens ``ids [R, C]`` after the contexts ``[G, T]``, and which are greedy."""
    variables, ((G, T), C) = {"params": params}, (contexts.shape, ids.shape[1])
    cache = replace(init_cache(model.config, G, T + C, stacked=False), by_row=True)
    real = jnp.arange(T) < lengths[:, None]
    first, cache = model.apply(variables, contexts, real, last=lengths - 1, cache=cache, method="last_logits")
    found = [_found(first[group_of][:, None], ids[:, :1])]
    if C > 1:
        # The last token is predicted, not read.
        rows, read = take_rows(cache, group_of), jnp.arange(C - 1) < counts[:, None] - 1
        hidden, head = model.apply(variables, ids[:, :-1], read, cache=rows, method="hidden_and_head")

        def of_columns(part: tuple[Array, Array]) -> tuple[Array, Array]:
            return _found(F.head_logits(part[0], head), part[1])

        # In columns, so that the logits of all tokens are never in memory at once.
        parts = tuple(split_columns(part, min(COLUMNS, C - 1)) for part in (hidden, ids[:, 1:]))
        log_probs, greedy = jax.lax.map(of_columns, parts)
        found.append((join_chunks(log_probs, C - 1), join_chunks(greedy, C - 1)))
    log_probs, greedy = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return log_probs, greedy


def _found(logits: Array, ids: Array) -> tuple[Array, Array]:
    """Log-probabilities of ``ids [R, C]`` by the logits ``[R, C, V]``, and which are the most probable."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), ids[..., None], axis=-1)[..., 0]
    return chosen, jnp.argmax(logits, axis=-1) == ids


def windows(ids: Sequence[int], prefix: int | None, length: int, stride: int) -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations that predict each token of a text once.

    Each window has ``length`` tokens before the last prediction; all but the first predict its last ``stride`` tokens,
    so that every prediction sees at least ``length - stride`` tokens, where there are as many.

    Args:
        ids: of the text.
        prefix: token that begins a text; None: the first token is not predicted.
        length: most tokens that the model reads.
        stride: from one window to the next, 1 to ``length``.

    >>> windows([1, 2, 3, 4, 5], 0, 3, 2)
    [([0], [1, 2, 3]), ([2, 3], [4, 5])]
    """
    if not 1 <= stride <= length:
        raise UserError(f"stride is {stride}, expected 1 to {length}, the tokens that the model reads")
    whole = [*([] if prefix is None else [prefix]), *ids]
    found, done = [], 1
    while done < len(whole):
        end = min(len(whole), length + 1 if done == 1 else done + stride)
        start = max(0, end - length - 1)
        found.append((whole[start:done], whole[done:end]))
        done = end
    return found
