"""The fixed tree against one that is written out in NumPy, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.parallel.batch import put_batch
from jaxformer.parallel.fixed_tree import FixedTree, by_device, on_every_device
from jaxformer.parallel.mesh import ParallelConfig, make_mesh

# Sums of such numbers depend on their order in every bit.
ROWS = (np.random.default_rng(0).standard_normal((16, 5)) * 10.0 ** np.arange(-3, 2)).astype(np.float32)


def by_hand(parts):
    return parts[0] if len(parts) == 1 else by_hand(parts[: len(parts) // 2]) + by_hand(parts[len(parts) // 2 :])


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_adds_eight_parts_in_pairs_of_pairs(devices):
    mesh, tree = make_mesh(ParallelConfig(), jax.devices()[:devices]), FixedTree(devices)
    function = on_every_device(
        lambda scale, batch: tree.sum(lambda part, scale: {"x": scale * (part["x"][0] + part["x"][1])}, batch, scale),
        mesh,
        (False, True),
    )
    found = jax.jit(function)(jnp.float32(4.0), put_batch({"x": ROWS}, 16, mesh))
    expected = by_hand([np.float32(4) * (ROWS[i] + ROWS[i + 1]) for i in range(0, 16, 2)])
    assert np.asarray(found["x"]).tobytes() == expected.tobytes()


def test_the_order_matters_here():
    parts = [ROWS[i] + ROWS[i + 1] for i in range(0, 16, 2)]
    assert by_hand(parts).tobytes() != sum(parts[1:], start=parts[0]).tobytes()


@pytest.mark.parametrize("devices", [1, 4])
def test_results_by_row(devices):
    mesh, tree = make_mesh(ParallelConfig(), jax.devices()[:devices]), FixedTree(devices)
    placed = put_batch({"x": ROWS}, 16, mesh)
    spread = on_every_device(lambda batch: tree.by_rows(lambda mine: mine["x"] * 2, batch), mesh, (True,))
    assert np.array_equal(jax.jit(spread)(placed), ROWS * 2)
    apart = by_device(lambda scale, batch: batch["x"] * scale, mesh)
    assert np.array_equal(jax.jit(apart)(2.0, placed), ROWS * 2)
    assert np.array_equal(jax.jit(apart)(2.0, {"x": ROWS[:1]}), ROWS[:1] * 2)  # does not divide: each device has it
