"""Attention by fused kernels that are called as ``jax.nn.dot_product_attention`` is: cuDNN's, and those of tokamax."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

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
    call = partial(jax.nn.dot_product_attention, scale=scale, implementation=backend)
    return _with_mask(call, query, key, value, mask)


def tokamax_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Mask,
    *,
    bias: Float[Array, "#B #N T S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: str | None = None,
) -> Float[Array, "B T N H"]:
    """``dot_product_attention`` by the library ``tokamax``, which takes the first of its kernels that serves the call.

    Beside what ``cudnn_attention`` computes it adds a bias, which gets a gradient, or caps the scores; heads may have
    any size. ``backend`` is one of tokamax's implementations, default its choice. The other arguments are those of
    ``cudnn_attention``; any float dtype.

    Raises:
        ImportError: if tokamax is not installed.
    """
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():  # else it would look for its settings in the command line of this program
        flags.FLAGS.mark_as_parsed()
    call = partial(
        tokamax.dot_product_attention, bias=bias, scale=scale, logits_soft_cap=softcap, implementation=backend
    )
    return _with_mask(call, query, key, value, mask)


def _with_mask(
    call: Callable[..., Array],
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Mask,
) -> Float[Array, "B T N H"]:
    """Calls a kernel with a mask as its own or as an array."""
    T, S = query.shape[1], key.shape[1]
    key, value = zero_padding(mask, key, value)
    if is_kernels_own(mask) and T == S:
        window = None if mask.window is None else (mask.window - 1, 0)
        options: dict[str, Any] = {"is_causal": mask.causal, "local_window_size": window}
        return call(query, key, value, **options)
    visible = mask.array(T, S)
    output = call(query, key, value, mask=None if visible is None else visible[:, None])
    # The kernel gives a query that sees nothing the mean of all values.
    return output if visible is None else jnp.where(jnp.any(visible, axis=-1)[..., None, None], output, 0)


def is_kernels_own(mask: Mask) -> bool:
    """True if a mask has no arrays and is causal, or hides nothing."""
    return not jax.tree.leaves(mask) and (mask.causal or mask.window is None)
