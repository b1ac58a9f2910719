"""Rows and tokens of a batch on the devices."""

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxformer.parallel.batch import local_rows, put_batch
from jaxformer.parallel.mesh import ParallelConfig, make_mesh


def test_every_device_holds_its_rows_and_tokens():
    mesh = make_mesh(ParallelConfig(fsdp=2, sequence=2, tensor=2))
    ids = np.arange(4 * 6).reshape(4, 6)
    batch = put_batch({"input_ids": ids, "labels": ids[:, 0], "choices": ids.reshape(4, 2, 3)}, 4, mesh)
    assert local_rows(4, mesh).tolist() == [0, 1, 2, 3], "one process holds all"
    for name, array in batch.items():
        np.testing.assert_array_equal(array, {"labels": ids[:, 0], "choices": ids.reshape(4, 2, 3)}.get(name, ids))
    assert batch["input_ids"].sharding.spec == PartitionSpec(("data", "fsdp", "expert"), "sequence")
    assert batch["input_ids"].addressable_shards[0].data.shape == (2, 3)
    assert batch["labels"].addressable_shards[0].data.shape == (2,)
    # Three tokens cannot be halved; they stay together.
    assert batch["choices"].addressable_shards[0].data.shape == (2, 2, 3)


@pytest.mark.parametrize(("axes", "size"), [({}, 16), ({"fsdp": 4}, 24), ({"tensor": 8}, 4)])
def test_rows_come_back_in_order(axes, size):
    rows = np.random.default_rng(0).integers(0, 9, (size, 5))
    np.testing.assert_array_equal(put_batch({"a": rows}, size, make_mesh(ParallelConfig(**axes)))["a"], rows)
