"""Where a token stands: learned, sinusoidal and rotary positions.

A learned position is a row of a table (``embedding[position_ids]``); the other two are formulas.
"""

import math
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def learned_positions(table: Float[Array, "P D"], position_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """The table's row for each position (Gehring et al. 2017). Positions past the table's end are nan, not wrapped."""
    return jnp.take(table, position_ids, axis=0, mode="fill", fill_value=jnp.nan)


def sinusoidal_positions(
    position_ids: Int[Array, "*batch T"], hidden_size: int, *, theta: float = 10_000.0
) -> Float[Array, "*batch T D"]:
    """``PE[p, 2i] = sin(p / theta^(2i/D))`` and ``PE[p, 2i+1] = cos(p / theta^(2i/D))``, float32.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.5.

    Raises:
        ValueError: if ``hidden_size`` is odd.

    >>> sinusoidal_positions(jnp.array([0]), 4)
    Array([[0., 1., 0., 1.]], dtype=float32)
    """
    if hidden_size % 2:
        raise ValueError(f"sinusoidal_positions: hidden_size is {hidden_size}, expected an even number")
    frequencies = theta ** (-jnp.arange(0, hidden_size, 2, dtype=jnp.float32) / hidden_size)
    angles = position_ids[..., None].astype(jnp.float32) * frequencies
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*position_ids.shape, hidden_size)


class RotaryScaling(NamedTuple):
    """How rotary frequencies are changed to reach beyond the length a model was trained on.

    ``linear`` divides every frequency by ``factor`` (Chen et al. 2023, "Extending Context Window ... via Positional
    Interpolation"). ``llama3`` divides those whose wavelength is above ``original_max_length / low_frequency_factor``,
    keeps those below ``original_max_length / high_frequency_factor`` and interpolates between (Llama 3.1).
    """

    type: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_length: int = 8192


def rotary_frequencies(
    head_size: int, *, theta: float = 10_000.0, scaling: RotaryScaling | None = None
) -> Float[Array, " half"]:
    """Angle per position of each rotated pair, ``theta^(-2i/H)`` for ``i < H/2``, radians, float32.

    Su et al. 2021, "RoFormer", equation 15.

    Raises:
        ValueError: if ``head_size`` is odd.
    """
    if head_size % 2:
        raise ValueError(f"rotary_frequencies: head_size is {head_size}, expected an even number")
    frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    if scaling is None:
        return frequencies
    if scaling.type == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = jnp.clip((scaling.original_max_length / wavelengths - low) / (high - low), 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


class Rotary(NamedTuple):
    """Cosine and sine of each token's angles, ``[B, T, half]`` float32: made once, used by every layer."""

    cos: Any
    sin: Any


def rotary_angles(position_ids: Int[Array, "B T"], frequencies: Float[Array, " half"]) -> Rotary:
    """The cosines and sines ``apply_rotary`` needs for these positions."""
    angles = position_ids[..., None].astype(jnp.float32) * frequencies
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def apply_rotary(x: Float[Array, "B T N H"], rotary: Rotary) -> Float[Array, "B T N H"]:
    """Rotates entry ``i`` and entry ``i + half`` of each head by the token's angle ``i``.

    ``[a, b] -> [a cos - b sin, b cos + a sin]``: the halves layout of LLaMA and GPT-NeoX checkpoints. If the angles
    cover fewer than ``H`` entries (partial rotary), the rest passes unchanged.

    Su et al. 2021, "RoFormer", equation 34.
    """
    half = rotary.cos.shape[-1]
    cos = rotary.cos[:, :, None, :].astype(x.dtype)
    sin = rotary.sin[:, :, None, :].astype(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
