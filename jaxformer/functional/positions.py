"""Positions of tokens: learned, sinusoidal and rotary, and biases by distance (T5's buckets, ALiBi)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.functional.apart import together
from jaxformer.functional.mask import STATIC


def learned_positions(table: Float[Array, "P D"], position_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """The table's row for each position (Gehring et al. 2017). Positions past the table's end are nan, not wrapped."""
    return jnp.take(table, position_ids, axis=0, mode="fill", fill_value=jnp.nan)


def sinusoidal_positions(
    position_ids: Int[Array, "*batch T"],
    hidden_size: int,
    *,
    theta: float = 10_000.0,
    halves: bool = False,
    inclusive: bool = False,
    apart: Callable[..., Any] = together,
) -> Float[Array, "*batch T D"]:
    """``PE[p, 2i] = sin(p / theta^(2i/D))`` and ``PE[p, 2i+1] = cos(p / theta^(2i/D))``, float32.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.5. With ``halves`` all sines come before all cosines,
    as in the paper's code and in Marian. With ``inclusive`` the exponent is ``i/(D/2 - 1)``, so that the last
    wavelength is ``2 pi theta`` itself, as in fairseq (M2M100, XGLM). ``apart`` is ``exact_elementwise``, where a row's
    bits must be its own.

    Raises:
        ValueError: if ``hidden_size`` is odd.

    >>> sinusoidal_positions(jnp.array([0]), 4)
    Array([[0., 1., 0., 1.]], dtype=float32)
    """
    if hidden_size % 2:
        raise ValueError(f"sinusoidal_positions: hidden_size is {hidden_size}, expected an even number")
    steps = hidden_size // 2 - 1 if inclusive else hidden_size // 2
    frequencies = theta ** (-jnp.arange(hidden_size // 2, dtype=jnp.float32) / steps)
    angles = position_ids[..., None].astype(jnp.float32) * frequencies
    waves = jnp.stack([apart(jnp.sin, angles), apart(jnp.cos, angles)], axis=-2 if halves else -1)
    return waves.reshape(*position_ids.shape, hidden_size)


class RotaryScaling(NamedTuple):
    """Change of rotary frequencies for texts longer than those of training.

    - ``linear`` divides every frequency by ``factor`` (Chen et al. 2023, "Extending Context Window ... via Positional
      Interpolation").
    - ``llama3`` divides those whose wavelength is above ``original_max_length / low_frequency_factor``, keeps those
      below ``original_max_length / high_frequency_factor`` and interpolates between (Llama 3.1).
    - ``yarn`` divides those that turn fewer than ``beta_slow`` times in ``original_max_length`` tokens, keeps those
      that turn more than ``beta_fast`` times, and interpolates between, over the index of the pair; cosines and sines
      are multiplied by ``magnitude`` (Peng et al. 2023, "YaRN", sections 3.2 to 3.4).
    - ``longrope`` divides each by a number of its own, from ``short_factors`` for rows of at most
      ``original_max_length`` tokens, else from ``long_factors`` (Ding et al. 2024, "LongRoPE").
    - ``dynamic`` raises the base for rows of more than ``original_max_length`` tokens, by the length of the row.
    """

    type: Literal["linear", "llama3", "yarn", "longrope", "dynamic"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_length: int = 8192
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    @property
    def magnitude(self) -> float:
        """Factor of cosines and sines: as given, else by ``factor``; 1 for most types."""
        if self.type not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        if self.type == "longrope":
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_length))
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    def _temperature(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0


def rotary_frequencies(
    head_size: int,
    *,
    theta: float = 10_000.0,
    scaling: RotaryScaling | None = None,
    lengths: Int[Array, " B"] | None = None,
) -> Float[Array, " half"] | Float[Array, "B half"]:
    """Angle per position of each rotated pair, ``theta^(-2i/H)`` for ``i < H/2``, radians, float32.

    Su et al. 2021, "RoFormer", equation 15. With ``longrope`` and ``dynamic`` they depend on the number of tokens of a
    row, ``lengths``, and are ``[B, half]``; without it they are those of short rows.

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
    if scaling.type == "yarn":
        keep = 1.0 - _yarn_ramp(head_size, theta, scaling)
        return keep * frequencies + (1 - keep) * frequencies / scaling.factor
    if scaling.type in ("longrope", "dynamic"):
        by_length = _longrope if scaling.type == "longrope" else _dynamic
        original = jnp.asarray(scaling.original_max_length)
        rows = jnp.maximum(original if lengths is None else lengths[:, None], original)
        return by_length(frequencies, rows, head_size, theta, scaling)
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = jnp.clip((scaling.original_max_length / wavelengths - low) / (high - low), 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def _yarn_ramp(head_size: int, theta: float, scaling: RotaryScaling) -> Float[Array, " half"]:
    """0 for the pairs whose frequency is kept, 1 for those whose frequency is divided, linear between."""

    def pair_of(turns: float) -> float:
        """The pair, a real number, that turns so many times in the original length."""
        return head_size * math.log(scaling.original_max_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_size - 1)
    return jnp.clip((jnp.arange(head_size // 2, dtype=jnp.float32) - first) / max(last - first, 1e-3), 0.0, 1.0)


def _longrope(frequencies: Array, rows: Array, head_size: int, theta: float, scaling: RotaryScaling) -> Array:
    short, long = (jnp.asarray(factors, jnp.float32) for factors in (scaling.short_factors, scaling.long_factors))
    return frequencies / jnp.where(rows > scaling.original_max_length, long, short)


def _dynamic(frequencies: Array, rows: Array, head_size: int, theta: float, scaling: RotaryScaling) -> Array:
    stretch = scaling.factor * rows / scaling.original_max_length - (scaling.factor - 1)
    base = theta * stretch ** (head_size / (head_size - 2))
    return base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rotary:
    """Cosine and sine of each token's angles, ``[B, T, half]`` float32; all layers share them.

    ``adjacent`` says which entries of a head are a pair: ``2i`` and ``2i + 1``, or else ``i`` and ``i + half``.
    """

    cos: Any
    sin: Any
    adjacent: bool = field(default=False, metadata=STATIC)


def rotary_angles(
    position_ids: Int[Array, "B T"],
    frequencies: Float[Array, " half"] | Float[Array, "B half"],
    magnitude: float = 1.0,
    *,
    adjacent: bool = False,
    apart: Callable[..., Any] = together,
) -> Rotary:
    """Cosines and sines for these positions, times ``magnitude`` (``RotaryScaling.magnitude``).

    ``adjacent`` is that of ``Rotary``; ``apart`` is ``exact_elementwise``, where a row's bits must be its own.
    """
    each = frequencies if frequencies.ndim == 1 else frequencies[:, None]
    angles = position_ids[..., None].astype(jnp.float32) * each
    return Rotary(magnitude * apart(jnp.cos, angles), magnitude * apart(jnp.sin, angles), adjacent)


def apply_rotary(x: Float[Array, "B T N H"], rotary: Rotary) -> Float[Array, "B T N H"]:
    """Rotates each pair of entries of a head by the token's angle of that pair.

    ``[a, b] -> [a cos - b sin, b cos + a sin]``. A pair are the entries ``i`` and ``i + half``, as in LLaMA's and
    GPT-NeoX's checkpoints, or neighbours, as in the paper and GPT-J. If the angles cover fewer than ``H`` entries
    (partial rotary), the others are unchanged.

    Su et al. 2021, "RoFormer", equation 34.
    """
    half = rotary.cos.shape[-1]
    cos = rotary.cos[:, :, None, :].astype(x.dtype)
    sin = rotary.sin[:, :, None, :].astype(x.dtype)
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if rotary.adjacent:
        a, b = turned[..., ::2], turned[..., 1::2]
        pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return jnp.concatenate([pairs.reshape(turned.shape), rest], axis=-1)
    a, b = turned[..., :half], turned[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def relative_buckets(
    distance: Int[Array, "..."], *, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> Int[Array, "..."]:
    """T5's bucket of each distance ``key position - query position``.

    Half of the buckets hold one distance each, the others grow logarithmically up to ``max_distance``; all distances
    from there on share the last one. With ``bidirectional`` distances above 0 have buckets of their own, else bucket 0.

    Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.1; the formula is that of the code
    published with it.

    Raises:
        ValueError: if ``max_distance`` is no more than the distances that have a bucket each.

    >>> relative_buckets(jnp.array([-200, -2, 0, 1]), bidirectional=False)
    Array([31,  2,  0,  0], dtype=int32)
    """
    offset = jnp.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        back = jnp.abs(distance)
    else:
        back = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    far = num_buckets - exact
    if max_distance <= exact:
        raise ValueError(
            f"relative_buckets: max_distance is {max_distance}, expected more than {exact}, "
            "the number of distances that have a bucket each"
        )
    # First distances of the logarithmic buckets, computed in float64: a float32 logarithm would put the distances
    # exactly on a border (16, 32, 64) on either side by chance.
    begins = [math.ceil(round(exact * (max_distance / exact) ** (k / far), 6)) for k in range(1, far)]
    above = jnp.searchsorted(jnp.array(begins), back.ravel(), side="right").reshape(back.shape).astype(back.dtype)
    return offset + jnp.where(back < exact, back, exact + above)


def disentangled_buckets(
    distance: Int[Array, "..."], *, num_buckets: int = 256, max_distance: int = 512
) -> Int[Array, "..."]:
    """DeBERTa's bucket of each distance ``query position - key position``, from 0 to ``2 num_buckets - 1``.

    Distances of up to ``num_buckets / 2`` have a bucket each on either side of ``num_buckets``; farther ones share
    buckets that grow logarithmically up to ``max_distance``, and those beyond it the first and the last.

    He et al. 2021, "DeBERTa", section 3.1, equation 3, and the logarithmic buckets of the code published with it.

    >>> disentangled_buckets(jnp.array([-9, -1, 0, 1, 3, 9]), num_buckets=4, max_distance=8)
    Array([0, 3, 4, 5, 7, 7], dtype=int32)
    """
    exact = num_buckets // 2
    # First distances of the shared buckets, in float64: a float32 logarithm would decide those on a border by chance.
    ratio = (max_distance - 1) / exact
    begins = [math.floor(round(exact * ratio ** (k / (exact - 1)), 6)) + 1 for k in range(exact)]
    far = jnp.abs(distance)
    above = jnp.searchsorted(jnp.array(begins), far.ravel(), side="right").reshape(far.shape).astype(far.dtype)
    bucket = jnp.sign(distance) * jnp.where(far <= exact, far, exact + above)
    return jnp.clip(bucket + num_buckets, 0, 2 * num_buckets - 1)


def relative_bias(
    table: Float[Array, "buckets N"],
    distance: Int[Array, "#B T S"],
    *,
    bidirectional: bool,
    max_distance: int = 128,
) -> Float[Array, "#B N T S"]:
    """T5's bias of the scores: one learned number per head and bucket of distances (see ``relative_buckets``).

    Args:
        table: the learned numbers.
        distance: key position minus query position.
        bidirectional: False in a decoder.
        max_distance: as in ``relative_buckets``.
    """
    buckets = relative_buckets(
        distance, bidirectional=bidirectional, num_buckets=table.shape[0], max_distance=max_distance
    )
    return jnp.moveaxis(jnp.take(table, buckets, axis=0), -1, 1)


def alibi_slopes(num_heads: int) -> Float[Array, " N"]:
    """The slope of each head, ``2^(-8 n / N)`` for ``n = 1 ... N``, float32.

    If ``N`` is not a power of two: the slopes for the power of two below, then every other slope for the one above.

    Press, Smith, Lewis 2022, "Train Short, Test Long", section 3, and the code published with it.

    >>> alibi_slopes(4)
    Array([0.25      , 0.0625    , 0.015625  , 0.00390625], dtype=float32)
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * n / below) for n in range(1, below + 1)]
    slopes += [2.0 ** (-4.0 * n / below) for n in range(1, 2 * (num_heads - below), 2)]
    return jnp.array(slopes, jnp.float32)


def alibi_bias(distance: Int[Array, "#B T S"], num_heads: int) -> Float[Array, "#B N T S"]:
    """ALiBi's bias of the scores, ``-slope_n * |key position - query position|`` (Press, Smith, Lewis 2022)."""
    return -alibi_slopes(num_heads)[:, None, None] * jnp.abs(distance)[:, None].astype(jnp.float32)
