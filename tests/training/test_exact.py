"""Exact numerics in training: the same bits on any number of devices, after any interruption, and no sampler's gap."""

import functools
import json

import jax
import numpy as np
import optax
import pytest

from jaxformer.hub.kinds import abstract_params
from jaxformer.parallel.fixed_tree import FixedTree, check_tree, number_of_parts
from jaxformer.parallel.mesh import ParallelConfig, make_mesh
from jaxformer.parallel.strategy import DeviceStep
from jaxformer.schema import UserError
from jaxformer.training.loop import train
from jaxformer.training.optimizer import OptimizerConfig, build_optimizer
from jaxformer.training.run import prepare
from jaxformer.training.sources import resolve_config
from jaxformer.training.state import abstract_state, init_state
from jaxformer.training.step import make_train_step
from tests.parallel.test_strategy import ROWS, batches, objective
from tests.training.helpers import make_run, quiet, run_training, tiny_keys

STEPS = 3


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@functools.cache
def trained(family, devices, numerics="exact", accumulate=1):
    """The state after a few steps with dropout, Adam and clipping, and the metrics of each."""
    config, task = objective(family)
    model = task.model(config.model_copy(update={"numerics": numerics}))
    optimizer = build_optimizer(OptimizerConfig(), lambda _: 1e-2)
    mesh = make_mesh(ParallelConfig(), jax.devices()[:devices])
    abstract = abstract_state(abstract_params(model), optimizer, False, mesh)
    tree = FixedTree(devices, accumulate) if numerics == "exact" else None
    step = make_train_step(model, task, optimizer, seed=0, accumulate=accumulate, tree=tree)
    program = DeviceStep(step, abstract, mesh, "jit", ROWS, exact=numerics == "exact")
    state, said = init_state(model, optimizer, 0, abstract), []
    for batch in batches(family)[:STEPS]:
        state, metrics, _ = program(state, program.put(batch))
        said.append(jax.device_get(metrics))
    return jax.device_get(state), said


@pytest.mark.parametrize(("family", "devices"), [("gpt2", 2), ("gpt2", 4), ("gpt2", 8), ("bert", 4), ("t5", 8)])
@pytest.mark.slow
def test_any_number_of_devices_trains_the_same_bits(family, devices):
    assert bits(trained(family, devices)) == bits(trained(family, 1))


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
@pytest.mark.slow
def test_trains_what_fast_numerics_train(family):
    (_, said), (_, fast_said) = trained(family, 1), trained(family, 1, "fast")
    for one, other in zip(said, fast_said, strict=True):
        assert one.weight == other.weight
        np.testing.assert_allclose(one.sums["loss"], other.sums["loss"], rtol=1e-5)
        np.testing.assert_allclose(one.gradient_norm, other.gradient_norm, rtol=1e-4)


@pytest.mark.slow
def test_accumulated_parts_are_parts_of_the_tree():
    assert bits(trained("gpt2", 2, accumulate=8)) == bits(trained("gpt2", 1))
    assert [number_of_parts(rows) for rows in (1, 6, 12, 16, 64)] == [1, 2, 4, 8, 8]
    assert number_of_parts(64, accumulate=9) == 16


def losses(folder):
    """The last record of each step, as written."""
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return {(line["step"], line["split"]): (line["loss"], line.get("gradient_norm")) for line in lines}


class KilledError(Exception):
    pass


def run_on(keys, devices, until=None):
    """Trains on so many devices, to the end or to a step after which all that was not saved is lost."""
    display = quiet()
    record = display.record

    def die(step, *rest):
        record(step, *rest)
        if step == until:
            raise KilledError

    display.record = die
    train(prepare(resolve_config(keys, "the test"), display, tuple(jax.devices()[:devices])), display)


@pytest.mark.slow
def test_one_loss_column_over_1_4_2_and_8_devices(tmp_path):
    keys = {}
    for name in ("whole", "killed"):
        (folder := tmp_path / name).mkdir()
        keys[name] = tiny_keys(folder, steps=12, eval_every=4, save_every=2)
        keys[name]["model"] |= {"numerics": "exact"}
    run_on(keys["whole"], 1)
    for devices, until in ((1, 3), (4, 6), (2, 9)):
        with pytest.raises(KilledError):
            run_on(keys["killed"], devices, until)
    run_on(keys["killed"], 8)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"parallel": {"fsdp": 8}}, "numerics is exact and parallel.fsdp is 8, expected 1"),
        ({"parallel": {"strategy": "pmap"}}, "numerics is exact and parallel.strategy pmap"),
        ({"model": {"dtype": "bfloat16"}}, "numerics is exact and dtype bfloat16, expected float32"),
        ({"model": {"attention_implementation": "reference"}}, "expected auto"),
    ],
)
def test_refuses_what_it_does_not_promise(tmp_path, keys, said):
    given = tiny_keys(tmp_path)
    given["model"] |= {"numerics": "exact"}
    for section, values in keys.items():
        given[section] = {**given.get(section, {}), **values}
    with pytest.raises(UserError, match=said):
        make_run(given)


def test_refuses_a_batch_of_too_few_parts():
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    check_tree(24, 8, mesh)
    with pytest.raises(UserError, match=r"cuts into 8 parts, .* set it to a multiple of 16"):
        check_tree(24, 12, mesh)


REWARDS = """
def letters(prompts, completions, **columns):
    return [float(completion.count("a")) for completion in completions]
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_sampler_and_the_trainer_agree_to_the_bit(tmp_path, kind):
    tiny = tiny_keys(tmp_path, steps=2)
    tiny["model"] |= {"max_length": 32}
    run_training(tiny)
    rows = [{"prompt": "cat" * n} for n in range(1, 6)] * 8
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    said = {}
    for devices in (1, 4):
        keys = tiny_keys(tmp_path, steps=3, batch_size=16)
        keys["data"] |= {"path": str(tmp_path / "prompts.jsonl")}
        keys["model"] = {"pretrained": str(tmp_path / "run"), "numerics": "exact"}
        task = {"type": kind, "reward": f"{tmp_path / 'rewards.py'}:letters", "max_new_tokens": 12, "minibatches": 2}
        folder = tmp_path / f"on{devices}"
        keys |= {"task": task, "output_dir": str(folder)}
        run_on(keys, devices)
        said[devices] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in said[1]:
        if record["split"] == "train":
            assert record["sampler_gap"] == 0.0
    names = ("loss", "kl", "score", "gradient_norm", "policy_loss")
    assert [[r.get(n) for n in names] for r in said[1]] == [[r.get(n) for n in names] for r in said[4]]


@pytest.mark.slow
def test_optimizers_state_is_as_it_would_be(tmp_path):
    """SGD with momentum, whose update has a product and a sum in a row."""
    config, task = objective("gpt2")
    model = task.model(config.model_copy(update={"numerics": "exact"}))
    optimizer, states = optax.sgd(0.1, momentum=0.9), {}
    for devices in (1, 8):
        mesh = make_mesh(ParallelConfig(), jax.devices()[:devices])
        abstract = abstract_state(abstract_params(model), optimizer, True, mesh)
        step = make_train_step(model, task, optimizer, seed=0, ema_decay=0.9, tree=FixedTree(devices))
        program = DeviceStep(step, abstract, mesh, "jit", ROWS, exact=True)
        state = init_state(model, optimizer, 0, abstract)
        for batch in batches("gpt2")[:2]:
            state, _, _ = program(state, program.put(batch))
        states[devices] = bits(jax.device_get(state))
    assert states[1] == states[8]
