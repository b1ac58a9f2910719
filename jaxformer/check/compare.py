"""Differences of arrays and trees, and the place of the largest."""

from typing import Any, NamedTuple

import jax
import numpy as np


class Difference(NamedTuple):
    """The largest difference of two trees, as a share of the largest magnitude beside it, and its place."""

    value: float
    place: str


# A gradient that is zero in truth (that of the keys' biases) is rounding alone, a share of the others.
NOTHING = 1e-3


def difference(got: Any, expected: Any, *, least: float = 0.0) -> Difference:
    """Returns the largest ``max|a - b| / max|b|`` over the leaves of two trees, and the place of it.

    The largest magnitude is that of the leaf, but at least a thousandth of that of the whole tree: a gradient that is
    small everywhere is compared with itself. A nan on one side alone is an infinite difference.

    Args:
        got: a tree of arrays.
        expected: a tree of the same structure and shapes.
        least: the smallest magnitude to divide by; 1 for nats, of which small ones are differences of large ones.
    """
    largest = Difference(0.0, "")
    floor = NOTHING * max((_magnitude(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(expected)), default=0.0)
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    for (path, mine), other in pairs:
        a, b = np.asarray(mine, np.float64), np.asarray(other, np.float64)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if a.shape != b.shape:
            return Difference(float("inf"), f"{name}: shape {list(a.shape)}, expected {list(b.shape)}")
        if not a.size:
            continue
        with np.errstate(invalid="ignore"):
            apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        apart = np.where(np.isnan(apart), np.inf, apart)
        scale = max(floor, least, _magnitude(b)) or 1.0
        value = float(apart.max()) / scale
        if value > largest.value:
            place = [int(i) for i in np.unravel_index(int(np.argmax(apart)), a.shape)]
            at = a[tuple(place)], b[tuple(place)]
            largest = Difference(
                value, f"{name}{place if place else ''}: {at[0]:.6g}, expected {at[1]:.6g}".lstrip(":")
            )
    return largest


def _magnitude(x: np.ndarray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))


def unequal_bits(got: Any, expected: Any) -> Difference:
    """Counts the numbers of two trees whose bits differ, and names the first leaf that has one."""
    count, place = 0, ""
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    for (path, mine), other in pairs:
        a, b = np.asarray(mine), np.asarray(other)
        differ = int((a.tobytes() != b.tobytes()) and ((a != b) & ~((a != a) & (b != b))).sum())
        place = place or (jax.tree_util.keystr(path, simple=True, separator="/") if differ else "")
        count += differ
    return Difference(float(count), place)
