"""PPO, GRPO and RLOO against TRL's values and gradients, masked places that hold inf and nan included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from tests.golden import alignment

PPO, GROUPS = alignment.load(alignment.PPO_FILE), alignment.load()
DRAWN = {name: jnp.asarray(array) for name, array in alignment.inputs().items()}
MASK = DRAWN["mask"][0]
REAL = np.asarray(MASK) == 1
OLD, NEW = DRAWN["old"][0], DRAWN["old"][0] + 0.3 * DRAWN["values"][0]
POISON = jnp.where(MASK == 1, 0.0, jnp.array([jnp.inf, jnp.nan, -jnp.inf] * 14).reshape(6, 7))


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "theirs"), [("k1", "kl"), ("k2", "mse")])
def test_kl_and_rewards_equal_trl(kind, theirs):
    kl = F.kl_estimates(OLD, DRAWN["reference"][0], kind=kind)
    close(kl, PPO[f"kl/{theirs}"])
    rewards = F.token_rewards(DRAWN["rewards"], kl + POISON, MASK, 0.2)
    close(np.asarray(rewards)[REAL], PPO[f"rewards/{theirs}"][REAL])
    assert np.all(np.asarray(rewards)[~REAL] == 0)


def test_the_third_estimate_is_unbiased_and_never_negative():
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.4, 0.2])
    each = F.kl_estimates(jnp.log(p)[None], jnp.log(q)[None], kind="k3")[0]
    close(jnp.sum(p * each), np.sum(p * np.log(p / q)))
    assert np.all(np.asarray(each) >= 0)


def test_advantages_and_returns_equal_trl():
    rewards = F.token_rewards(DRAWN["rewards"], F.kl_estimates(OLD, DRAWN["reference"][0]), MASK, 0.2)
    close(np.asarray(F.masked_whiten(rewards + POISON, MASK, shift=False))[REAL], PPO["whitened_rewards"][REAL])
    advantages, returns = F.generalized_advantages(
        rewards + POISON, DRAWN["values"][1] + POISON, MASK, discount=0.97, decay=0.9
    )
    close(np.asarray(returns)[REAL], PPO["returns"][REAL])
    close(np.asarray(F.masked_whiten(advantages + POISON, MASK))[REAL], PPO["advantages"][REAL])
    assert np.all(np.asarray(returns)[~REAL] == 0)


def test_advantages_by_the_sum_in_the_paper():
    # A_t = sum_l (g l)^k d_(t+k), in float64, for one row of four tokens behind a masked one.
    rewards, values, mask = np.array([9, 1.0, -2, 0.5, 3]), np.array([9, 0.3, 1, -1, 2]), jnp.array([[0, 1, 1, 1, 1]])
    deltas = [rewards[t] + 0.9 * (values[t + 1] if t < 4 else 0) - values[t] for t in range(5)]
    expected = [sum((0.9 * 0.8) ** k * deltas[t + k] for k in range(5 - t)) for t in range(1, 5)]
    got, returns = F.generalized_advantages(jnp.array([rewards]), jnp.array([values]), mask, discount=0.9, decay=0.8)
    close(got[0], [0, *expected])
    close(returns[0, 1:], np.array(expected) + values[1:])


def test_whitened_values_have_mean_0_and_variance_1():
    whitened = np.asarray(F.masked_whiten(DRAWN["values"][0] + POISON, MASK))[REAL]
    close(whitened.mean(), 0)
    np.testing.assert_allclose(whitened.var(ddof=1), 1, rtol=1e-5)
    assert float(F.masked_mean(POISON, jnp.zeros_like(MASK))) == 0


def of(policy, scale=1.0):
    """The mean of a loss by the log-probabilities, with its gradient."""

    def mean(log_probs):
        loss = policy(log_probs)
        return scale * loss.total / loss.weight, loss

    (value, loss), gradient = jax.value_and_grad(mean, has_aux=True)(NEW + POISON)
    return value, gradient, loss


def test_ppo_policy_loss_equals_trl():
    value, gradient, loss = of(lambda p: F.ppo_policy_loss(p, OLD + POISON, DRAWN["advantages"] + POISON, MASK))
    close(value, PPO["policy/loss"])
    close(gradient, PPO["policy/gradient"])
    close(loss.clipped / loss.weight, PPO["policy/clipped"])
    close(loss.kl / loss.weight, PPO["policy/kl"])
    assert 0 < loss.clipped < loss.weight == REAL.sum()


def test_ppo_value_loss_equals_trl():
    returns = jnp.asarray(PPO["returns"])

    def mean(values):
        loss = F.ppo_value_loss(values, DRAWN["values"][1] + POISON, returns + POISON, MASK, clip=0.3)
        return loss.total / loss.weight

    value, gradient = jax.value_and_grad(mean)(DRAWN["values"][2] + POISON)
    close(value, PPO["value/loss"])
    close(gradient, PPO["value/gradient"])
    plain = F.ppo_value_loss(DRAWN["values"][2], DRAWN["values"][1], returns, MASK, clip=None)
    np.testing.assert_allclose(
        plain.total, 0.5 * np.sum((np.asarray(DRAWN["values"][2]) - np.asarray(returns))[REAL] ** 2), rtol=1e-6
    )


def test_the_coefficient_is_adapted_as_trl_does():
    coefficient, found = 0.2, []
    for kl in (5.0, 6.5, 30.0, 0.1):
        coefficient = F.adapted_kl_coefficient(coefficient, kl, target=6.0, horizon=10_000, steps=256)
        found.append(coefficient)
    close(found, PPO["coefficients"])


GRPO = {
    "grpo": {},
    "grpo_kl": {"kl_coefficient": 0.04, "reference_log_probs": DRAWN["reference"][0] + POISON},
    "grpo_tokens": {"mean_over": "tokens"},
}


@pytest.mark.parametrize("name", GRPO)
def test_grpo_equals_trl(name):
    value, gradient, _ = of(
        lambda p: F.grpo_loss(p, OLD + POISON, DRAWN["rewards"], MASK, clip=0.2, clip_above=0.3, **GRPO[name])
    )
    close(value, GROUPS[f"{name}/loss"])
    close(gradient, GROUPS[f"{name}/gradient"])


def test_rloo_equals_trl():
    value, gradient, loss = of(lambda p: F.rloo_loss(p, OLD + POISON, DRAWN["rewards"], MASK))
    close(value, GROUPS["rloo/loss"])
    close(gradient, GROUPS["rloo/gradient"])
    assert loss.weight == 6


def test_rows_of_padding_count_nothing():
    mask = MASK.at[2].set(0)
    others = jnp.array([0, 1, 3, 4, 5])
    for loss in (F.grpo_loss, F.rloo_loss):
        got = loss(NEW, OLD, DRAWN["rewards"], mask)
        expected = loss(NEW[others], OLD[others], DRAWN["rewards"][others], mask[others])
        close(got, expected)
        assert got.weight == 5


def test_advantages_of_groups_by_hand():
    rewards = np.asarray(DRAWN["rewards"], np.float64)
    groups = rewards.reshape(2, 3)
    means, deviations = groups.mean(1, keepdims=True), groups.std(1, ddof=1, keepdims=True)
    close(F.grpo_advantages(DRAWN["rewards"], 3), ((groups - means) / (deviations + 1e-4)).ravel())
    close(F.grpo_advantages(DRAWN["rewards"], 3, scale=False), (groups - means).ravel())
    expected = [r - (group.sum() - r) / 2 for group in groups for r in group]
    close(F.rloo_advantages(DRAWN["rewards"], 3), expected)
    assert np.all(F.grpo_advantages(jnp.ones(4), 2) == 0)
    for find in (F.grpo_advantages, F.rloo_advantages):
        with pytest.raises(ValueError, match="6 rewards in groups of 4, expected a multiple"):
            find(DRAWN["rewards"], 4)


def test_a_kl_needs_its_reference():
    with pytest.raises(ValueError, match="kl_coefficient is given without reference_log_probs"):
        F.grpo_loss(NEW, OLD, DRAWN["rewards"], MASK, kl_coefficient=0.1)
