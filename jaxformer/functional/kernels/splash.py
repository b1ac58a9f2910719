"""Attention by JAX's TPU kernel "splash": flash attention that skips the blocks of scores that nobody may see.

Dao et al. 2022, "FlashAttention": softmax over blocks of keys, so that the scores are never in main memory. The kernel
is ``jax.experimental.pallas.ops.tpu.splash_attention``.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxformer.functional.attention import zero_padding
from jaxformer.functional.mask import MASKED, Mask

# Queries and keys per block: the largest that divides the length. The kernel needs multiples of 128.
BLOCKS = (512, 256, 128)
# Head sizes that are no multiple of this compile too, but are not tested.
HEAD_SIZE = 64


class Split(NamedTuple):
    """Split of queries, keys and values over devices, for kernels that the compiler cannot split.

    Attributes:
        mesh: the devices.
        batch: mesh axes that split the rows; None: not split.
        length: mesh axes that split the queries; every device has all keys and values.
        heads: mesh axes that split the query heads and the key/value heads.
    """

    mesh: Mesh
    batch: Any = None
    length: Any = None
    heads: Any = None

    def place(self, x: Array, *axes: Any) -> Array:
        """``x`` with its dimensions split over these mesh axes (None: not split)."""
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))

    def parts(self, axes: Any) -> int:
        """Number of parts into which these mesh axes split a dimension."""
        names = () if axes is None else (axes,) if isinstance(axes, str) else axes
        return math.prod(self.mesh.shape[name] for name in names)


def _block(length: int) -> int:
    return next(block for block in BLOCKS if length % block == 0)


def _kernel(
    mask: Mask, shape: tuple[int, int, int], split: Split | None, softcap: float | None, interpret: bool
) -> Any:
    """The kernel for ``(N, T, S)``; it holds as arrays which blocks of scores are skipped."""
    # Imported here: importing Pallas takes half a second.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    N, T, S = shape
    head_shards = 1 if split is None else split.parts(split.heads)
    query_shards = 1 if split is None else split.parts(split.length)
    if mask.window is not None:
        sides = (mask.window - 1, 0 if mask.causal else mask.window - 1)
        static: Any = splash.LocalMask((T, S), sides, 0, shard_count=query_shards)
    elif mask.causal:
        static = splash.CausalMask((T, S), shard_count=query_shards)
    else:
        static = splash.FullMask((T, S))
    q, kv = _block(T // query_shards), _block(S)
    return splash.make_splash_mha(
        splash.MultiHeadMask([static] * N),
        block_sizes=splash.BlockSizes(
            block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
        ),
        head_shards=head_shards,
        # Where nothing is skipped, the kernel holds no array that could be split.
        q_seq_shards=query_shards if mask.causal or mask.window is not None else 1,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )


def _segments(mask: Mask, B: int, T: int) -> tuple[Array, Array] | None:
    """Document numbers of queries and keys, which see each other where these are equal; padding equals nothing."""
    padding = mask.key_padding
    if mask.query_segments is not None and mask.key_segments is not None and padding is not None:
        query = jnp.where(mask.query_segments > 0, mask.query_segments, -1)
        return query.astype(jnp.int32), jnp.where(padding, mask.key_segments, 0).astype(jnp.int32)
    if padding is not None:
        return jnp.ones((B, T), jnp.int32), padding.astype(jnp.int32)
    return None


def splash_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Mask,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    split: Split | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """``dot_product_attention`` for calls that the kernel does not refuse; ``split`` over devices, None: not at all.

    With ``interpret`` the kernel runs in Python, on any platform, to test it.
    """
    (B, T, N, H), S = query.shape, key.shape[1]
    scale = 1.0 / math.sqrt(H) if scale is None else scale
    key, value = zero_padding(mask, key, value)
    segments = _segments(mask, B, T)
    kernel = _kernel(mask, (N, T, S), split, softcap, interpret)
    # The kernel scales nothing.
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    if split is None:
        output = _rows(kernel, query, key, value, segments)
    else:
        heads, length = split.heads, split.length
        queries, keys = PartitionSpec(split.batch, heads, length), PartitionSpec(split.batch, heads)
        tokens = (PartitionSpec(split.batch, length), PartitionSpec(split.batch))
        blocks = kernel.manual_sharding_spec(NamedSharding(split.mesh, PartitionSpec(heads, length)))
        # The kernel's outputs do not say over which axes they vary, so JAX cannot check it.
        output = jax.shard_map(
            _rows,
            mesh=split.mesh,
            in_specs=(blocks, queries, keys, keys, None if segments is None else tokens),
            out_specs=queries,
            check_vma=False,
        )(kernel, query, key, value, segments)
    return output.transpose(0, 2, 1, 3)


def _rows(kernel: Any, query: Array, key: Array, value: Array, segments: tuple[Array, Array] | None) -> Array:
    """The kernel on each row of ``[B, N, T, H]``."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    if segments is None:
        return jax.vmap(kernel)(query, key, value)
    # An additional key that every query sees, of weight exp(MASKED - maximum) = 0 and without a value: a query that
    # sees nothing else gets zeros instead of 0 / 0.
    nothing = jnp.full((query.shape[1],), MASKED, jnp.float32)
    each = jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(*s), nothing))
    return each(query, key, value, segments)


# Matrix products of size T x S x H in each kernel: scores and output; scores again, those of the gradient, and of the
# queries; scores again, those of the gradient, and of keys and values.
_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


def visible_share(length: int, causal: bool, window: int | None) -> float:
    """Share of the scores of ``length`` queries and keys that the mask does not exclude.

    >>> visible_share(4, causal=True, window=None), visible_share(4, causal=True, window=2)
    (0.625, 0.4375)
    """
    reach = length if window is None else min(window, length)
    before = reach * length - reach * (reach - 1) // 2  # the token itself and those before it
    return (before if causal else 2 * before - length) / length**2


def kernel_name(instruction: str) -> str:
    """Name of the kernel that an instruction of a compiled program runs, without options and number.

    >>> kernel_name("splash_mha_fwd_segmented_residuals.1"), kernel_name("another.2")
    ('splash_mha_fwd', 'another')
    """
    found = re.match(r"splash_mha_[a-z]+", instruction)
    return found.group() if found else instruction.split(".")[0]


def kernel_flops(name: str, shapes: Sequence[tuple[int, ...]], share: float) -> float:
    """Floating-point operations of one kernel of a compiled program; 0 for other kernels than these.

    Args:
        name: of the kernel in the program, ``splash_mha_fwd...``.
        shapes: of its operands: queries ``[B, N, T, H]`` and keys ``[B, K, S, H]`` come first, without ``B`` where that
            is 1.
        share: share of the scores that are not skipped.
    """
    products = _PRODUCTS.get(kernel_name(name))
    if products is None:
        return 0.0
    query, key = shapes[:2]
    return 2.0 * products * math.prod(query) * key[-2] * share
