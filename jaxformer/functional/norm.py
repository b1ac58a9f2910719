"""Layer normalisation and root-mean-square normalisation, computed in float32 whatever the input's dtype."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def layer_norm(
    x: Float[Array, "*batch D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None = None,
    *,
    epsilon: float = 1e-5,
) -> Float[Array, "*batch D"]:
    r"""Layer norm: ``(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`` over the last axis.

    Ba, Kiros, Hinton 2016, "Layer Normalization", equations 3-4; the variance is the biased one.

    Returns:
        An array like ``x``, same dtype; the statistics are float32.

    >>> layer_norm(jnp.array([1.0, 3.0]), jnp.ones(2), epsilon=0.0)
    Array([-1.,  1.], dtype=float32)
    """
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * lax.rsqrt(variance + epsilon) * scale
    if bias is not None:
        y = y + bias
    return y.astype(x.dtype)


def rms_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, " D"], *, epsilon: float = 1e-6
) -> Float[Array, "*batch D"]:
    """RMS norm: ``x / sqrt(mean(x^2) + epsilon) * scale`` over the last axis.

    Zhang, Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.

    Returns:
        An array like ``x``, same dtype; the mean square is float32.

    >>> rms_norm(jnp.array([3.0, 4.0]), jnp.ones(2), epsilon=0.0) * (12.5 ** 0.5)
    Array([3., 4.], dtype=float32)
    """
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * lax.rsqrt(mean_square + epsilon) * scale).astype(x.dtype)
