"""Block-sparse attention (Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", section 2, appendix D).

The first and the last block of a row see everything and are seen by all; every other block sees itself, its two
neighbours and a few blocks that are chosen at random.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.functional.attention import attend, dot_product_attention, zero_padding
from jaxformer.functional.local_attention import Layout
from jaxformer.functional.mask import MASKED, Mask
from jaxformer.functional.random import dropout


def random_blocks(num_heads: int, count: int, number: int, seed: int) -> Int[np.ndarray, "N middle r"]:
    """``number`` blocks for each head and each of the ``count - 2`` middle blocks, none that it sees anyway.

    Raises:
        ValueError: if there are fewer than ``number`` others.
    """
    if count < 5 + number:
        raise ValueError(f"random_blocks: {count} blocks, expected at least {5 + number} to choose {number} from")
    random = np.random.default_rng(seed)
    every = np.arange(1, count - 1)
    chosen = [
        [random.choice(every[abs(every - i) > 1], number, replace=False) for i in range(1, count - 1)]
        for _ in range(num_heads)
    ]
    return np.array(chosen, np.int32).reshape(num_heads, count - 2, number)


def _always_seen(count: int) -> tuple[Any, Any]:
    """The blocks ``[count - 2, 5]`` that each middle block sees, and False where one of them is there already."""
    middle = np.arange(1, count - 1)
    ends = np.zeros_like(middle), np.full_like(middle, count - 1)
    new = np.stack([middle > 0, middle > 1, middle > 0, middle < count - 2, middle > 0], axis=1)
    return np.stack([ends[0], middle - 1, middle, middle + 1, ends[1]], axis=1), new


def sparse_bias(length: int, size: int, chosen: Int[Array, "N middle r"]) -> Float[Array, "1 N T T"]:
    """The logarithm of how often each query sees each key, ``MASKED`` for never: a bias that makes attention sparse.

    A block that is chosen more than once, or that is seen anyway, counts as often.
    """
    count, heads = chosen.shape[1] + 2, chosen.shape[0]
    seen, new = _always_seen(count)
    anyway = np.zeros((count, count), np.float32)
    anyway[[0, -1]] = 1.0
    np.add.at(anyway, (np.arange(1, count - 1)[:, None], seen), new)
    times = jnp.broadcast_to(jnp.asarray(anyway), (heads, count, count))
    head, block = jnp.arange(heads)[:, None, None], jnp.arange(1, count - 1)[None, :, None]
    times = times.at[head, block, chosen].add(1.0)
    bias = jnp.where(times > 0, jnp.log(jnp.maximum(times, 1.0)), MASKED)
    return bias.repeat(size, axis=1).repeat(size, axis=2)[None, :, :length, :length]


def block_sparse_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    *,
    mask: Mask,
    size: int,
    chosen: Int[Array, "N middle r"],
    dropout_rate: float = 0.0,
    dropout_keys: Array | None = None,
    **options: Any,
) -> Any:
    """Attention of each block of ``size`` tokens to the first and last block, its neighbours and ``chosen`` ones.

    ``dot_product_attention`` with ``sparse_bias`` gives the same numbers from the whole score matrix.

    Args:
        query: of ``T`` tokens, of which the real ones come first.
        key: of the same tokens; heads as in ``dot_product_attention``.
        value: like ``key``.
        mask: of padding alone.
        size: tokens of a block; the last one may be shorter.
        chosen: further blocks of every block but the first and last, for each head, as of ``random_blocks``.
        dropout_rate: probability of dropping an attention weight.
        dropout_keys: one key per example; None (evaluation) drops nothing.
        **options: ``scale`` and ``softcap``, as in ``dot_product_attention``; ``return_weights`` to have the weights
            ``[B, N, T, T]`` too, for which the whole score matrix is computed.

    Returns:
        An array like ``query``, same dtype, and with ``return_weights`` the weights.

    Raises:
        ValueError: if the mask is causal or has a window or documents, or the blocks are not those of ``T`` tokens.
    """
    (B, T, N, H), r = query.shape, chosen.shape[2]
    count = -(-T // size)
    if mask.causal or mask.window is not None or mask.query_segments is not None:
        raise ValueError(
            "block_sparse_attention: the mask is causal, has a window or documents, expected padding alone"
        )
    if chosen.shape[:2] != (N, count - 2):
        raise ValueError(f"block_sparse_attention: chosen is for {chosen.shape[:2]}, expected {(N, count - 2)}")
    if options.pop("return_weights", False):
        options |= {"dropout_rate": dropout_rate, "dropout_keys": dropout_keys, "return_weights": True}
        return dot_product_attention(query, key, value, mask=mask, bias=sparse_bias(T, size, chosen), **options)
    key, value = zero_padding(mask, key, value)
    layout = Layout(size, count, 0, 0)
    real = jnp.ones((B, T), bool) if mask.key_padding is None else mask.key_padding
    valid = layout.split(real)
    # [B, N, n, b, H]
    query, key, value = (
        layout.split(x).transpose(0, 3, 1, 2, 4).repeat(N // x.shape[2], axis=1) for x in (query, key, value)
    )
    drop = None if dropout_keys is None else lambda weights: dropout(weights, dropout_rate, dropout_keys)

    ends = attend(
        query[:, :, None, [0, -1]].reshape(B, N, 1, 2 * size, H),
        *(x.reshape(B, N, count * size, H) for x in (key, value)),
        mask=jnp.broadcast_to(valid.reshape(B, 1, -1), (B, 2 * size, count * size)),
        drop=drop,
        **options,
    ).output.reshape(B, N, 2, size, H)

    seen, new = _always_seen(count)
    blocks = jnp.concatenate([jnp.broadcast_to(seen, (N, *seen.shape)), chosen], axis=2)
    sees = valid[:, blocks] & jnp.pad(jnp.asarray(new), ((0, 0), (0, r)), constant_values=True)[None, None, :, :, None]
    rows = (B, N * (count - 2))
    of_head = jnp.arange(N)[:, None, None]
    middle = attend(
        query[:, :, 1:-1].reshape(*rows, 1, size, H),
        *(x[:, of_head, blocks].reshape(*rows, -1, H) for x in (key, value)),
        mask=None,
        bias=jnp.where(sees, 0.0, MASKED).reshape(*rows, 1, -1),
        drop=drop,
        **options,
    ).output.reshape(B, N, count - 2, size, H)
    output = jnp.concatenate([ends[:, :, :1], middle, ends[:, :, 1:]], axis=2)
    return output.reshape(B, N, count * size, H)[:, :, :T].swapaxes(1, 2)
