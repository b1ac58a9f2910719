"""Attention by cuDNN's fused kernel on NVIDIA GPUs, through ``jax.nn.dot_product_attention``."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.functional.attention import zero_padding
from jaxformer.functional.mask import Mask

# cuDNN takes heads of up to 128 on every GPU of compute capability 8.0 and later (256 from 9.0 on).
HEAD_SIZE, HEAD_MULTIPLE = 128, 8
DTYPES = ("bfloat16", "float16")


def cudnn_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Mask,
    *,
    scale: float | None = None,
    backend: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T N H"]:
    """``dot_product_attention`` for calls that the kernel does not refuse.

    A mask that is causal, with or without a window, and nothing else is the kernel's own, which then leaves out the
    scores that nobody sees. Every other mask (padding on either side, packed documents, a prefix) is an array
    ``[B, 1, T, S]`` that is added to the scores, so that no document can see another; the kernel's lengths of rows
    serve only padding on the right, and nothing says so ahead.

    Args:
        query: of dtype bfloat16 or float16, as key and value.
        key: with ``K`` heads where ``K`` divides ``N``.
        value: like ``key``.
        mask: which keys each query may attend to.
        scale: factor of the scores, default ``1/sqrt(H)``.
        backend: ``xla`` computes the same call without the kernel, to test it where there is no GPU.

    Returns:
        An array like ``query``. A query that may see nothing gets zeros.
    """
    T, S = query.shape[1], key.shape[1]
    key, value = zero_padding(mask, key, value)
    if is_kernels_own(mask) and T == S:
        window = None if mask.window is None else (mask.window - 1, 0)
        return jax.nn.dot_product_attention(
            query, key, value, scale=scale, is_causal=mask.causal, local_window_size=window, implementation=backend
        )
    visible = mask.array(T, S)
    joined = None if visible is None else visible[:, None]
    output = jax.nn.dot_product_attention(query, key, value, mask=joined, scale=scale, implementation=backend)
    # The kernel gives a query that sees nothing the mean of all values.
    return output if visible is None else jnp.where(jnp.any(visible, axis=-1)[..., None, None], output, 0)


def is_kernels_own(mask: Mask) -> bool:
    """True if a mask has no arrays and is causal, or hides nothing."""
    return not jax.tree.leaves(mask) and (mask.causal or mask.window is None)
