"""Mixture of experts: a router, the feed-forward of the chosen experts without dropped tokens, and the router's losses.

Letters: ``M`` tokens, ``E`` experts, ``C`` experts chosen for a token.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxformer.functional.feed_forward import ACTIVATIONS
from jaxformer.functional.linear import LowRankKernel


class Routing(NamedTuple):
    """The experts of each token.

    Attributes:
        experts: ``[..., C]``, numbers of the chosen experts, the most probable first.
        weights: ``[..., C]`` float32, factors of their outputs.
        probabilities: ``[..., E]`` float32, of all experts.
    """

    experts: Int[Array, "*tokens C"]
    weights: Float[Array, "*tokens C"]
    probabilities: Float[Array, "*tokens E"]


def route(logits: Float[Array, "*tokens E"], chosen: int, *, normalize: bool = False) -> Routing:
    """Chooses for each token the experts with the largest ``p = softmax(logits)``, in float32.

    Shazeer et al. 2017, "Outrageously Large Neural Networks", equations 3-5, without noise. With ``normalize`` the
    weights of a token sum to 1, which is a softmax over the chosen logits alone (Jiang et al. 2024, "Mixtral of
    Experts", section 2.1); without, they are ``p`` itself (Fedus et al. 2021, "Switch Transformers", equation 2).

    Args:
        logits: any float dtype.
        chosen: ``C``, number of experts for each token.
        normalize: whether the weights are divided by their sum.

    Raises:
        ValueError: if ``chosen`` is not between 1 and ``E``.

    >>> route(jnp.log(jnp.array([0.5, 0.1, 0.4])), 2).weights
    Array([0.5, 0.4], dtype=float32)
    """
    if not 1 <= chosen <= logits.shape[-1]:
        raise ValueError(f"route: chosen is {chosen}, expected 1 to {logits.shape[-1]}, the number of experts")
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, experts = jax.lax.top_k(probabilities, chosen)
    if normalize:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return Routing(experts, weights, probabilities)


@partial(jax.tree_util.register_dataclass, data_fields=["sizes", "owners"], meta_fields=["block"])
@dataclasses.dataclass(frozen=True)
class Groups:
    """Rows sorted by expert: those of expert 0, then those of expert 1 ...

    Attributes:
        sizes: ``[E]``, rows of each expert; the rows after the last expert's belong to none.
        owners: ``[P / block]``, expert of each block of rows.
        block: the rows of an expert begin at a multiple of it, with empty rows before the next one's; None: without
            such gaps.
    """

    sizes: Int[Array, " E"]
    owners: Int[Array, " blocks"] | None
    block: int | None


def grouped_product(x: Float[Array, "P D"], kernel: Any, groups: Groups) -> Float[Array, "P F"]:
    """``x[i] @ kernel[e]`` with the expert ``e`` of row ``i``; in the dtype of ``x``.

    On a CPU, where ``jax.lax.ragged_dot`` multiplies every row with every expert's kernel, blocks of rows are
    multiplied with the kernels of their experts: 4,096 rows, 8 kernels of 256 x 256 take 16 ms so and 70 ms there
    (two cores).

    Args:
        x: rows sorted by expert.
        kernel: ``[E, D, F]``, an array, a ``Quantized`` or ``LowRankKernel``.
        groups: the rows of each expert. Rows of none have any value.
    """
    if isinstance(kernel, LowRankKernel):
        inner = grouped_product(x, kernel.a, groups)
        return grouped_product(x, kernel.kernel, groups) + grouped_product(inner, kernel.b, groups)
    kernel = kernel.astype(x.dtype)
    if groups.block is None:
        return jax.lax.ragged_dot(x, kernel, groups.sizes)
    blocks = x.reshape(-1, groups.block, x.shape[-1])
    return jnp.einsum("pbd,pdf->pbf", blocks, kernel[groups.owners]).reshape(len(x), -1)


def expert_count(kernel: Any) -> int:
    """``E`` of a kernel as in ``grouped_product``."""
    return int(jax.tree.leaves(kernel)[0].shape[0])


def _block_size(rows: int, experts: int) -> int:
    """Rows of a block: a quarter of an expert's share, so that few places are empty and few kernels are read twice."""
    return int(2 ** max(0, math.floor(math.log2(max(1.0, rows / (4 * experts))))))


class _Places(NamedTuple):
    """The place of each token's copies among the rows sorted by expert.

    Attributes:
        of_choice: ``[M, C]``, place of each choice.
        token: ``[P]``, token of each place; ``M`` where a place is empty.
        groups: of the places.
    """

    of_choice: Int[Array, "M C"]
    token: Int[Array, " P"]
    groups: Groups


def _places(experts: Int[Array, "M C"], count: int, in_blocks: bool) -> _Places:
    """Sorts choices by expert; those with the number ``count`` come last and belong to no expert."""
    M, C = experts.shape
    flat, rows = experts.reshape(-1), M * C
    block = _block_size(rows, count) if in_blocks else 1
    sizes = jnp.zeros(count + 1, jnp.int32).at[flat].add(1)
    room = -(-sizes // block) * block
    ends = jnp.cumsum(room)
    order = jnp.argsort(flat, stable=True)
    rank = jnp.arange(rows) - (jnp.cumsum(sizes) - sizes)[flat[order]]
    place = jnp.zeros(rows, jnp.int32).at[order].set((ends - room)[flat[order]] + rank)
    total = (rows + (count + 1) * (block - 1)) // block * block
    token = jnp.full(total, M, jnp.int32).at[place].set(jnp.arange(rows) // C)
    owners = None
    if in_blocks:
        first = jnp.arange(0, total, block)
        owners = jnp.minimum(jnp.sum(first[:, None] >= ends[None, :count], axis=1), count - 1)
    return _Places(place.reshape(M, C), token, Groups(sizes[:count], owners, block if in_blocks else None))


def expert_feed_forward(
    x: Float[Array, "M D"],
    weights: Mapping[str, Any],
    experts: Int[Array, "M C"],
    scales: Float[Array, "M C"],
    *,
    activation: str = "silu",
    in_blocks: bool = False,
) -> Float[Array, "M D"]:
    """``sum over c of scales[c] * feed_forward_e(x)`` with the expert ``e = experts[c]``; no token is dropped.

    ``feed_forward_e(x) = act(x W_up[e]) W_down[e]``, or gated ``(act(x W_gate[e]) * (x W_up[e])) W_down[e]``. Shazeer
    et al. 2017, "Outrageously Large Neural Networks", equation 1; the products are of rows sorted by expert, as in Gale
    et al. 2022, "MegaBlocks", section 4.

    Args:
        x: the tokens.
        weights: ``{"up": [E, D, F], "down": [E, F, D]}`` and, if gated, ``"gate"`` like ``"up"``; kernels as in
            ``grouped_product``.
        experts: numbers from 0 to ``E - 1``; ``E`` for a choice that counts nothing (another device has its expert).
        scales: factors of the experts' outputs.
        activation: one of ``ACTIVATIONS``.
        in_blocks: multiply blocks of rows, as is faster on a CPU, instead of ``jax.lax.ragged_dot``.

    Returns:
        An array like ``x``, same dtype.

    Raises:
        ValueError: if the activation is unknown.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"expert_feed_forward: activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    count = expert_count(weights["up"])
    places = _places(experts, count, in_blocks)
    rows = jnp.take(x, places.token, axis=0, mode="fill", fill_value=0)
    product = partial(grouped_product, groups=places.groups)
    inner = ACTIVATIONS[activation](product(rows, weights["gate" if "gate" in weights else "up"]))
    if "gate" in weights:
        inner = inner * product(rows, weights["up"])
    outputs = product(inner, weights["down"])[places.of_choice]
    outputs = jnp.where((experts < count)[..., None], outputs, 0)
    return jnp.einsum("mcd,mc->md", outputs, scales.astype(x.dtype))


class RouterSums(NamedTuple):
    """Sums over tokens (and layers), of which the router's losses are made; padding counts nothing.

    Attributes:
        choices: ``[E]`` float32, how often each expert was chosen; without a gradient.
        probabilities: ``[E]`` float32, sums of the experts' probabilities.
        squared_log_z: sum of ``(log sum_e exp(logit_e))^2``.
        tokens: number of tokens.
    """

    choices: Float[Array, " E"]
    probabilities: Float[Array, " E"]
    squared_log_z: Float[Array, ""]
    tokens: Float[Array, ""]


def router_sums(
    logits: Float[Array, "*tokens E"], routing: Routing, real: Bool[Array, "*tokens"] | None = None
) -> RouterSums:
    """The sums of one layer, for ``balance_loss`` and ``router_z_loss``.

    Args:
        logits: of the router.
        routing: made of them.
        real: False at padding; default: all tokens are real.
    """
    real = jnp.ones(logits.shape[:-1], bool) if real is None else real
    counted = real.astype(jnp.float32).reshape(-1)
    E, C = logits.shape[-1], routing.experts.shape[-1]
    choices = jnp.zeros(E, jnp.float32).at[routing.experts.reshape(-1)].add(jnp.repeat(counted, C))
    log_z = jax.nn.logsumexp(logits.astype(jnp.float32).reshape(-1, E), axis=-1)
    return RouterSums(
        jax.lax.stop_gradient(choices),
        jnp.sum(jnp.where(counted[:, None] > 0, routing.probabilities.reshape(-1, E), 0.0), axis=0),
        jnp.sum(jnp.where(counted > 0, jnp.square(log_z), 0.0)),
        jnp.sum(counted),
    )


def expert_prices(sums: RouterSums) -> Float[Array, " E"]:
    """``E f_e / T``: what a token's probability of expert ``e`` adds to ``balance_loss``; without a gradient.

    The loss is the product of these prices with the sums of probabilities. With the prices of a whole batch it is a sum
    over tokens, which may be added up over parts of the batch.
    """
    tokens = jnp.maximum(sums.tokens, 1.0)
    return jax.lax.stop_gradient(len(sums.choices) * sums.choices / tokens / tokens)


def balance_loss(sums: RouterSums) -> Float[Array, ""]:
    """``E sum_e f_e P_e``: the share of tokens that go to each expert times its mean probability.

    Fedus et al. 2021, "Switch Transformers", equations 4-6, with the sums of all layers together, as
    ``load_balancing_loss_func`` of transformers: a perfect balance gives ``C``, the experts of a token.

    >>> even = jnp.array([2.0, 2.0])
    >>> balance_loss(RouterSums(even, even, jnp.float32(0), jnp.float32(4)))
    Array(1., dtype=float32)
    """
    return jnp.sum(expert_prices(sums) * sums.probabilities)


def router_z_loss(sums: RouterSums) -> Float[Array, ""]:
    """Mean over tokens of ``(log sum_e exp(logit_e))^2``: Zoph et al. 2022, "ST-MoE", equation 5."""
    return sums.squared_log_z / jnp.maximum(sums.tokens, 1.0)
