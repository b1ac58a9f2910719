"""The checks of anyone's training step: a right one passes, and each fault has its line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import check

V, D = 11, 8


def start():
    random = np.random.default_rng(0)
    return {
        "params": {
            "table": jnp.asarray(random.standard_normal((V, D)), jnp.float32),
            "head": jnp.asarray(0.3 * random.standard_normal((D, V)), jnp.float32),
        }
    }


def batch():
    random = np.random.default_rng(1)
    ids = random.integers(0, V, (4, 6))
    mask = (np.arange(6) < np.array([6, 5, 6, 4])[:, None]).astype(int)
    return {"input_ids": ids, "attention_mask": mask, "labels": np.where(mask > 0, (ids * 3 + 1) % V, -100)}


def token_losses(params, batch):
    logits = jax.nn.log_softmax(params["table"][batch["input_ids"]] @ params["head"])
    asked = batch["labels"] != -100
    chosen = jnp.take_along_axis(logits, jnp.maximum(batch["labels"], 0)[..., None], -1)[..., 0]
    return jnp.where(asked, -chosen, 0.0), asked


def mean_over_tokens(params, batch):
    losses, asked = token_losses(params, batch)
    return losses.sum() / asked.sum()


def mean_of_means(params, batch):
    losses, asked = token_losses(params, batch)
    return jnp.mean(losses.sum(1) / jnp.maximum(asked.sum(1), 1))


def sum_over_tokens(params, batch):
    return token_losses(params, batch)[0].sum() / 20


def over_all_places(params, batch):
    losses, _ = token_losses(params, batch)
    return losses.mean()


def frozen_head(params, batch):
    return mean_over_tokens({**params, "head": jax.lax.stop_gradient(params["head"])}, batch)


def first_rows(params, batch):
    return mean_over_tokens(params, {name: array[:2] for name, array in batch.items()})


def step_with(loss, sign=-1.0):
    @jax.jit
    def step(state, batch):
        value, gradient = jax.value_and_grad(loss)(state["params"], batch)
        moved = jax.tree.map(lambda p, g: p + sign * 0.5 * g, state["params"], gradient)
        return {"params": moved}, {"loss": value}

    return step


@functools.cache
def failed(loss, sign=-1.0):
    return {outcome.name for outcome in check.failures(check.train_step(step_with(loss, sign), start(), batch()))}


def test_a_right_step_passes():
    assert failed(mean_over_tokens) == set()


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        (mean_of_means, "tokens weigh alike"),
        (sum_over_tokens, "rows twice"),
        (over_all_places, "more padding"),
        (frozen_head, "gradient reaches every parameter"),
        (first_rows, "order of rows"),
    ],
)
def test_a_fault_has_its_line(loss, line):
    assert line in failed(loss)


def test_a_gradient_of_the_wrong_sign_learns_nothing():
    assert "a batch can be learned" in failed(mean_over_tokens, 1.0)


def test_a_step_that_reads_the_time_is_not_the_same_twice():
    calls = iter(range(10**6))

    def step(state, batch):
        return {"params": jax.tree.map(lambda p: p * (1 + 0.01 * next(calls)), state["params"])}, {"loss": 1.0}

    found = check.train_step(step, start(), batch())
    assert next(outcome for outcome in found if outcome.name == "same twice").passed is False


def test_checks_without_an_attention_mask_say_so():
    given = {name: array for name, array in batch().items() if name != "attention_mask"}
    found = check.train_step(step_with(mean_over_tokens), start(), given)
    assert [outcome.name for outcome in found if outcome.passed is None] == ["more padding"]
