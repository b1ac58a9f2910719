"""Objectives that compare all rows of a batch: devices and cached parts see the whole batch, to its gradient."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxformer.hub.kinds import abstract_params
from jaxformer.parallel.mesh import ParallelConfig, make_mesh
from jaxformer.parallel.strategy import AXIS_NAME, DeviceStep
from jaxformer.tasks import build_task
from jaxformer.tasks.embedding import EmbeddingConfig
from jaxformer.training.state import abstract_state, init_state
from jaxformer.training.step import make_train_step
from tests.tasks.tiny import FRAMED, config_of

# SGD, since Adam's normalisation would hide a gradient that is off by a factor.
SGD = optax.sgd(0.05)
LABELLED = {"label_column": "label"}
LOSSES = {
    "ranking": {"negatives_column": "negatives", "symmetric": True, "matryoshka": [4]},
    "cosent": {**LABELLED, "loss": "cosent"},
    "cosine": LABELLED,
}
# Of different lengths, with a positive that two rows share and rows with and without negatives.
DATA = [
    {
        "text": "abcdefgh"[: 1 + n % 7] + str(n),
        "positive": "the same" if n in (3, 12) else "xyz"[n % 3] * (1 + n % 5) + str(n),
        "negatives": [f"no {n}", "none"][: n % 3],
        "label": n % 5 / 4,
    }
    for n in range(14)
]


@functools.cache
def run(loss, devices=1, accumulate=1, strategy="jit", axis="data", steps=2):
    """Parameters and losses after steps of 16 rows, two of them padding."""
    config = config_of("bert", dropout=0.1, unroll=1)
    task = build_task(EmbeddingConfig(**LOSSES[loss]), FRAMED, config, 16)
    model = task.model(config)
    mesh = make_mesh(ParallelConfig(strategy=strategy, **{axis: devices}), jax.devices()[:devices])
    abstract = abstract_state(abstract_params(model), SGD, False, mesh)
    state = init_state(model, SGD, 0, abstract)
    name = AXIS_NAME if strategy == "pmap" else None
    step = make_train_step(model, task, SGD, seed=0, accumulate=accumulate, axis_name=name)
    program = DeviceStep(step, abstract, mesh, strategy, 16)
    batch, found = task.rows(DATA).take(np.arange(16)), []
    for _ in range(steps):
        state, metrics, _ = program(state, program.put(batch))
        found.append([float(metrics.weight), *(float(value) for value in metrics.sums.values())])
    return jax.device_get(state.params), found


HOW = [
    {"devices": 8},
    {"accumulate": 4},
    {"devices": 4, "accumulate": 2},
    {"devices": 4, "accumulate": 2, "strategy": "pmap"},
    {"devices": 8, "strategy": "pmap"},
    {"devices": 8, "axis": "fsdp"},
]
# The steps of the three losses are one; the other two add what is special to them.
CASES = [(how, "ranking") for how in HOW] + [(HOW[3], "cosent"), (HOW[2], "cosine")]


@pytest.mark.parametrize(
    ("how", "loss"), CASES, ids=lambda it: "-".join(map(str, it.values())) if isinstance(it, dict) else it
)
@pytest.mark.default_cases("4-2-ranking")
def test_devices_and_parts_equal_the_whole_batch(loss, how):
    whole, expected = run(loss)
    params, found = run(loss, **how)
    assert expected[0][0] == 14
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), params, whole)
