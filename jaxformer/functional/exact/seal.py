"""Sealed programs: parts of a program that XLA compiles by themselves, so that their results depend on nothing around.

XLA joins elementwise operations with their neighbours; which multiplications and additions then become one rounding
(FMA) depends on the neighbours. A sealed function is a call that XLA neither inlines nor joins with anything. On a CPU
``jax.lax.optimization_barrier`` is no such wall: it is gone before operations are joined.

The idea that a row's result should not depend on its batch, by fixed shapes and fixed orders of summation, is that of
He et al. 2025, "Defeating Nondeterminism in LLM Inference".
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

# Rows of a tile. From this many rows on, the rows of a matrix product do not depend on their number (AVX2 and AVX-512
# CPUs; ``probe`` tries it); below, XLA may split a sum over threads.
TILE = 64

Function = Callable[..., Any]


def call(function: Function, *args: Any) -> Any:
    """``function(*args)`` as a program of its own, without a gradient rule of its own."""

    def inner(*args: Any) -> Any:
        # The attribute is for this call alone, not for those inside.
        with set_xla_metadata(inlineable=None):
            return function(*args)

    with set_xla_metadata(inlineable="false"):
        return jax.jit(inner)(*args)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _apart(forward: Function, function: Function, args: Any, facts: Any) -> Any:
    return forward(function, args, facts)


def _forward(forward: Function, function: Function, args: Any, facts: Any) -> tuple[Any, Any]:
    return forward(function, args, facts), (args, facts)


def _backward(forward: Function, function: Function, kept: Any, cotangents: Any) -> tuple[Any, None]:
    def pull(args: Any, facts: Any, cotangents: Any) -> Any:
        return jax.vjp(lambda args: function(args, facts), args)[1](cotangents)[0]

    return call(pull, *kept, cotangents), None


_apart.defvjp(_forward, _backward)


def sealed(function: Function, args: Any, facts: Any = ()) -> Any:
    """``function(args, facts)`` as a program of its own, the same with and without a gradient.

    The backward pass computes from ``args`` again: kept intermediate results would be further outputs of the forward
    program, and could change it.

    Args:
        function: of two trees of arrays.
        args: what has gradients.
        facts: what has none: integers, masks, keys.
    """
    # As a list, since custom_vjp makes trees of placeholders, and a ``Mask`` checks what it holds.
    leaves, tree = jax.tree.flatten(facts)
    return _apart(call, lambda args, leaves: function(args, jax.tree.unflatten(tree, leaves)), args, leaves)


def _by_tiles(function: Function, args: Any, facts: Any) -> Any:
    (rows, weights), (row_facts, others) = args, facts

    def tile(pair: Any) -> Any:
        return call(function, (pair[0], weights), (pair[1], others))

    pair = (rows, row_facts)
    count = jax.tree.leaves(pair)[0].shape[0] // TILE
    if count == 1:
        return tile(pair)
    parted = jax.tree.map(lambda x: x.reshape(count, TILE, *x.shape[1:]), pair)
    return jax.tree.map(lambda x: x.reshape(count * TILE, *x.shape[2:]), jax.lax.map(tile, parted))


def by_rows(
    function: Function, lead: tuple[int, ...], rows: Any, weights: Any = (), facts: Any = (), *, tiles: bool = True
) -> Any:
    """``function((rows, weights), (facts, ()))`` for rows ``[*lead, ...]`` that do not know of each other, sealed.

    The leading axes are joined and filled up with zeros to a multiple of ``TILE``, the results are cut back.

    Args:
        function: of rows ``[M, ...]``; its results have the same first axis.
        lead: the leading axes.
        rows: tree of arrays ``[*lead, ...]``.
        weights: tree of arrays that all rows share.
        facts: as ``rows``, without gradients.
        tiles: take ``TILE`` rows at a time, all by the same program. Needed for sums along a row, whose order XLA
            chooses by the number of rows; not for matrix products and elementwise functions.
    """
    count = 1
    for size in lead:
        count *= size
    missing = -count % TILE

    def flat(x: jax.Array) -> jax.Array:
        x = x.reshape(count, *x.shape[len(lead) :])
        return jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1))) if missing else x

    args = (jax.tree.map(flat, rows), weights), (jax.tree.map(flat, facts), ())
    found = _apart(_by_tiles if tiles else call, function, *args)
    return jax.tree.map(lambda x: x[:count].reshape(*lead, *x.shape[1:]), found)
