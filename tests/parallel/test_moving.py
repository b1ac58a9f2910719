"""A run goes on elsewhere: on more devices, on fewer, under the other strategy, in more processes."""

import numpy as np
import pytest
import yaml

from tests import processes
from tests.training.helpers import tiny_keys

# Devices and processes of each part of the run, with its keys.
MOVES = [
    ((1, 1), []),
    ((1, 8), ["parallel.fsdp=8"]),
    ((1, 4), ["parallel.strategy=pmap"]),
    ((2, 1), ["parallel.sequence=2"]),
    ((1, 2), ["parallel.strategy=jit"]),
]


@pytest.mark.slow
def test_from_one_device_to_eight_to_four_to_two_processes_and_back(tmp_path):
    path = tmp_path / "tiny.yaml"
    keys = tiny_keys(tmp_path, steps=3 * len(MOVES))
    keys["schedule"] = {"type": "constant"}
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    processes.run(1, 1, "--config", path)
    moved = tmp_path / "moved"
    for number, ((count, devices), more) in enumerate(MOVES, 1):
        command = ("--config", path, f"output_dir={moved}", f"training.steps={3 * number}", *more)
        printed = processes.run(count, devices, *command)
        if number > 1:
            assert f"resuming at step {3 * (number - 1)} of {3 * number}" in printed
    here, there = processes.losses(tmp_path / "run"), processes.losses(moved)
    assert here.keys() == there.keys()
    np.testing.assert_allclose(list(there.values()), list(here.values()), rtol=1e-5)
