"""Dropout whose draws belong to the example, not to its place in a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def example_keys(key: Key[Array, ""], example_ids: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key per example: ``fold_in(key, id)``. The same example draws the same on any device and in any micro-batch.

    Args:
        key: one typed key (``jax.random.key``), already specific to the step and the place in the network.
        example_ids: number of each row in the global batch.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_ids)


def dropout(x: Float[Array, " B *rest"], rate: float, keys: Key[Array, " B"] | None) -> Float[Array, " B *rest"]:
    """Zeroes each entry with probability ``rate`` and scales the others by ``1 / (1 - rate)``.

    Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", in the "inverted" form
    that leaves the expectation unchanged.

    Args:
        x: any float array with the batch in front.
        rate: probability of zeroing, in ``[0, 1)``.
        keys: one key per example (see ``example_keys``); None (evaluation) returns ``x``.

    Returns:
        An array like ``x``, same dtype.

    Raises:
        ValueError: if ``rate`` is not in ``[0, 1)``.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout: rate is {rate}, expected 0 <= rate < 1")
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
