"""Keys by purpose: every random draw is a pure function of (seed, purpose, step, example)."""

import zlib

import jax
from jaxtyping import Array, Integer, Key


def purpose_key(seed: int | Integer[Array, ""], purpose: str, step: int | Integer[Array, ""] = 0) -> Key[Array, ""]:
    """A key that depends on the run's seed, the name of what is drawn, and the step; on nothing else.

    So a resumed run draws what the uninterrupted run would have drawn, and a new purpose changes no other draw. Fold
    the example's number in with ``example_keys``.

    Args:
        seed: of the run.
        purpose: for instance ``"init"``, ``"dropout"``, ``"sample"``.
        step: number of the training step.
    """
    # CRC-32 rather than Python's hash, which differs from one process to the next.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)
