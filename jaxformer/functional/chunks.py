"""Sums over tokens in chunks, so that the logits of all tokens are never in memory at once."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


class Tokens(NamedTuple):
    """Inputs of a loss for every token, beside the hidden states; they have no gradient.

    Attributes:
        labels: ``[B, T]``.
        states: further arrays ``[B, T, ...]``.
    """

    labels: Any
    states: tuple[Any, ...] = ()


# Of hidden states, weights, tokens and constants; returns a NamedTuple of sums, of which ``total`` is minimised.
Function = Callable[[Array, Any, Tokens, Any], Any]


def columns_of(shape: tuple[int, ...], chunk_tokens: int, name: str) -> int:
    """Number of columns ``[B, columns]`` of a chunk of about ``chunk_tokens`` tokens of ``[B, T, ...]``.

    A chunk consists of columns, so that a batch that is sharded over devices stays so.

    Raises:
        ValueError: if ``chunk_tokens`` is below 1; ``name`` is that of the function.
    """
    if chunk_tokens < 1:
        raise ValueError(f"{name}: chunk_tokens is {chunk_tokens}, expected at least 1")
    B, T = shape[:2]
    columns = min(T, -(-chunk_tokens // B))
    # As even as possible, so that little of the last chunk is padding.
    chunks = -(-T // columns)
    return -(-T // chunks)


def split_columns(array: Array, columns: int, fill: int = 0) -> Array:
    """``[B, T, ...]`` to ``[chunks, B, columns, ...]``, padded with ``fill``.

    With n chunks, a chunk takes every n-th column: where the tokens of a row are split over devices, each device has
    its share of every chunk.
    """
    B, T, *rest = array.shape
    chunks = -(-T // columns)
    padding = ((0, 0), (0, chunks * columns - T), *[(0, 0)] * len(rest))
    parted = jnp.pad(array, padding, constant_values=fill).reshape(B, columns, chunks, *rest)
    return parted.transpose(2, 0, 1, *range(3, 3 + len(rest)))


def join_chunks(chunks: Array, length: int) -> Array:
    """Undoes ``split_columns``."""
    n, B, columns, *rest = chunks.shape
    return chunks.transpose(1, 2, 0, *range(3, 3 + len(rest))).reshape(B, n * columns, *rest)[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def sum_over_chunks(
    function: Function, columns: int, ignore: int, hidden: Array, weights: Any, tokens: Tokens, constants: Any
) -> Any:
    """``function(hidden, weights, tokens, constants)``, a sum over tokens, taken ``columns`` columns at a time.

    When differentiated, the gradient of each chunk is taken in the forward pass, while its logits are in memory, and
    only scaled in the backward pass: no logits are kept and none are computed twice. The gradient of the weights is
    summed over chunks in float32. Only ``total`` can be differentiated, with respect to ``hidden`` and ``weights``, and
    only once.

    Args:
        function: gives 0 for tokens whose label is ``ignore``; hashable, so that equal functions share a program.
        columns: of a chunk, from ``columns_of``.
        ignore: label of tokens that do not count.
        hidden: ``[B, T, D]``.
        weights: tree of arrays, used whole by every chunk.
        tokens: the other inputs for every token.
        constants: tree of arrays, used whole by every chunk.
    """

    def step(sums: Any, chunk: tuple[Array, Tokens]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, function(chunk[0], weights, chunk[1], constants)), None

    if columns == hidden.shape[1]:
        return function(hidden, weights, tokens, constants)
    shapes = jax.eval_shape(function, hidden, weights, tokens, constants)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return lax.scan(step, zeros, _split(hidden, tokens, columns, ignore))[0]


def _forward(
    function: Function, columns: int, ignore: int, hidden: Array, weights: Any, tokens: Tokens, constants: Any
) -> tuple[Any, Any]:
    def value_and_gradient(hidden: Array, tokens: Tokens) -> tuple[Any, Any]:
        def total(hidden: Array, weights: Any) -> tuple[Array, Any]:
            sums = function(hidden, weights, tokens, constants)
            return sums.total, sums

        (_, sums), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, weights)
        return sums, gradients

    T = hidden.shape[1]
    if columns == T:
        return value_and_gradient(hidden, tokens)

    def step(totals: Any, chunk: tuple[Array, Tokens]) -> tuple[Any, Array]:
        sums, (d_hidden, d_weights) = value_and_gradient(*chunk)
        return jax.tree.map(jnp.add, totals, (sums, d_weights)), d_hidden

    shapes = jax.eval_shape(function, hidden, weights, tokens, constants)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), (shapes, weights))
    (sums, d_weights), d_hidden = lax.scan(step, zeros, _split(hidden, tokens, columns, ignore))
    d_weights = jax.tree.map(lambda total, weight: total.astype(weight.dtype), d_weights, weights)
    return sums, (join_chunks(d_hidden, T), d_weights)


def _backward(function: Function, columns: int, ignore: int, gradients: Any, cotangents: Any) -> tuple[Any, ...]:
    d_hidden, d_weights = jax.tree.map(lambda g: (g * cotangents.total).astype(g.dtype), gradients)
    return d_hidden, d_weights, None, None


sum_over_chunks.defvjp(_forward, _backward)


def _split(hidden: Array, tokens: Tokens, columns: int, ignore: int) -> tuple[Array, Tokens]:
    states = tuple(split_columns(state, columns) for state in tokens.states)
    return split_columns(hidden, columns), Tokens(split_columns(tokens.labels, columns, ignore), states)
