"""Random draws: every one is a pure function of (seed, purpose, step, example); and dropout."""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key


def purpose_key(seed: int | Integer[Array, ""], purpose: str, step: int | Integer[Array, ""] = 0) -> Key[Array, ""]:
    """A key that depends on the run's seed, the name of what is drawn, and the step; on nothing else.

    So a resumed run draws what the uninterrupted run would have drawn, and a new purpose changes no other draw. The
    number of the example is folded in by ``example_keys``.

    Args:
        seed: of the run.
        purpose: for instance ``"init"``, ``"dropout"``, ``"sample"``.
        step: number of the training step.
    """
    # CRC-32 rather than Python's hash, which differs from one process to the next.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)


def example_keys(key: Key[Array, ""], example_ids: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key per example, ``fold_in(key, id)``: an example draws the same on any device and in any micro-batch.

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
        x: any float array, batch first.
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
