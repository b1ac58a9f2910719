"""Every way to spread a step over 8 devices computes what one device computes: with SGD, dropout and uneven padding."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxformer.data.loader import example_generator
from jaxformer.hub.kinds import abstract_params
from jaxformer.parallel.mesh import ParallelConfig, make_mesh
from jaxformer.parallel.strategy import AXIS_NAME, DeviceStep
from jaxformer.tasks import TASKS, build_task
from jaxformer.training.state import abstract_state, init_state
from jaxformer.training.step import make_train_step
from tests.tasks.tiny import WITH_MASK, cache_of, config_of

LAYOUTS = {
    "data": {},
    "fsdp": {"fsdp": 8},
    "sequence": {"sequence": 8},
    "tensor": {"data": 2, "tensor": 4},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
    "2x2x2 with sequence": {"fsdp": 2, "sequence": 2, "tensor": 2},
    "pmap": {"strategy": "pmap"},
}
# All for one model, for the others those that may differ by what is split; the rest takes its time.
FAMILIES = {"gpt2": "causal_lm", "bert": "masked_lm", "t5": "span_corruption"}
FAMILIES |= {"mamba": "causal_lm", "mamba2": "causal_lm", "encoder_decoder": "span_corruption"}
ROUTED = {"num_experts": 4, "experts_per_token": 2, "balance_loss": 0.5, "router_z_loss": 0.1, "intermediate_size": 12}
STEPS, ROWS, LENGTH = 10, 16, 32
# SGD, since Adam's normalisation would hide a gradient that is off by a factor.
SGD = optax.sgd(0.1)


@functools.cache
def objective(family):
    keys = ROUTED if family == "qwen3_moe" else {}
    model = config_of(
        family,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        head_size=4,
        dropout=0.1,
        attention_dropout=0.1,
        unroll=1,
        **keys,
    )
    # A few tokens' logits at once, so that the loss comes in several chunks on every device.
    task = TASKS[FAMILIES.get(family, "causal_lm")](chunk_tokens=24)
    return model, build_task(task, WITH_MASK, model, LENGTH, "packed", ())


@functools.cache
def batches(family):
    """Documents of 1 to 60 tokens in rows, the last of them empty: devices have more or fewer tokens, one has none."""
    random = np.random.default_rng(0)
    cache = cache_of(*(random.integers(97, 123, size).tolist() for size in random.integers(2, 60, 12)))
    rows = objective(family)[1].rows(cache)
    made = []
    for step in range(STEPS):
        indices = np.arange(ROWS) + (rows.num_rows - ROWS + 3 if rows.num_rows > ROWS else 0)
        generators = [example_generator(0, step, index) for index in indices.tolist()]
        made.append(objective(family)[1].features(rows.take(indices), generators, rows))
    return made


def train(family, devices=8, accumulate=1, **axes):
    config, task = objective(family)
    model = task.model(config)
    parallel = ParallelConfig(**axes)
    mesh = make_mesh(parallel, jax.devices()[:devices])
    abstract = abstract_state(abstract_params(model), SGD, False, mesh)
    name = AXIS_NAME if parallel.strategy == "pmap" else None
    pure = make_train_step(model, task, SGD, seed=0, accumulate=accumulate, axis_name=name)
    step = DeviceStep(pure, abstract, mesh, parallel.strategy, ROWS)
    state, losses = init_state(model, SGD, 0, abstract), []
    for batch in batches(family):
        state, metrics, _ = step(state, step.put(batch))
        losses.append(float(metrics.sums["loss"] / metrics.weight))
    return jax.device_get(state.params), losses


@functools.cache
def alone(family):
    return train(family, devices=1)


# A mixer's blocks are split as those of attention; what differs is a row that is split, and a program for each device.
MIXED = {"mamba": ("data", "2x2x2 with sequence", "pmap"), "mamba2": ("data", "sequence")}
MIXED |= {"encoder_decoder": ("2x2x2 with sequence", "pmap")}
PAIRS = [(family, layout) for family in FAMILIES for layout in MIXED.get(family, LAYOUTS)]


@pytest.mark.parametrize(("family", "layout"), PAIRS)
@pytest.mark.default_cases("gpt2-data", "gpt2-2x2x2 with sequence")
def test_many_devices_equal_one(family, layout):
    params, losses = train(family, **LAYOUTS[layout])
    expected, expected_losses = alone(family)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected)
    assert losses[-1] < losses[0] - 0.05, "ten steps learn something, so the parameters are not those of the start"


@pytest.mark.parametrize(
    ("axes", "accumulate"),
    [({"expert": 4}, 1), ({"expert": 2, "fsdp": 2, "tensor": 2}, 2), ({"strategy": "pmap"}, 2)],
    ids=str,
)
@pytest.mark.default_cases("*expert': 4*-1")
def test_experts_on_many_devices_equal_one(axes, accumulate):
    """With the balance loss, a product of two means over all tokens of the batch, at a weight that shows."""
    params, losses = train("qwen3_moe", accumulate=accumulate, **axes)
    expected, expected_losses = alone("qwen3_moe")
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected)


@pytest.mark.parametrize("layout", ["data", "pmap"])
@pytest.mark.default_cases("data")
def test_accumulation_on_many_devices_equals_one(layout):
    params, losses = train("gpt2", accumulate=2, **LAYOUTS[layout])
    expected, expected_losses = alone("gpt2")
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_batches_are_uneven(family):
    labels = batches(family)[0]["labels"]
    trained = (labels != -100).sum(axis=1).reshape(8, -1).sum(axis=1)
    assert trained.min() == 0 and len(set(trained.tolist())) > 2
