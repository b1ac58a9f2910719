"""Fifty steps must give the losses they gave before: a refactor that changes them changes what a run computes.

After a change that is meant to change them, ``python -m tests.training.test_loss_curve`` writes the file again.
"""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.training.helpers import run_training, tiny_keys

GOLDEN = Path(__file__).parent.parent / "golden" / "loss_curves.json"


def curve(family, folder):
    keys = tiny_keys(folder, steps=50, batch_size=8, accumulate=1, eval_every=50)
    keys["model"] = {**keys["model"], "type": family, "num_layers": 2, "initializer_range": 0.1}
    keys["schedule"] = {"type": "cosine", "warmup_steps": 5}
    result = run_training(keys)
    lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [round(record["loss"], 6) for record in map(json.loads, lines)]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.default_cases("gpt2")
def test_fifty_steps_give_the_losses_they_gave_before(family, tmp_path):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[family]
    losses = curve(family, tmp_path)
    assert golden[-1] < golden[0] - 2, "the curve is worth holding: it learns"
    # Another processor sums in another order, and fifty steps carry that on.
    np.testing.assert_allclose(losses, golden, rtol=2e-4)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    curves = {}
    for name in ("gpt2", "llama"):
        with tempfile.TemporaryDirectory() as scratch:
            curves[name] = curve(name, Path(scratch))
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
