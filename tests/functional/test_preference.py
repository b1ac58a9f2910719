"""The losses of preference pairs against TRL's values and gradients, and what they must be by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer import functional as F
from tests.golden import alignment

GOLDEN = alignment.load()
DRAWN = {name: jnp.asarray(array) for name, array in alignment.inputs().items()}
LABELS = jnp.where(DRAWN["mask"] == 1, 0, -100)  # [2, B, T]: the responses preferred, then the others
LOSSES = {
    "sigmoid": F.dpo_loss,
    "cdpo": F.dpo_loss,
    "robust": F.robust_dpo_loss,
    "hinge": F.hinge_dpo_loss,
    "ipo": F.ipo_loss,
}
# At masked tokens a policy may hold anything.
POISON = jnp.where(DRAWN["mask"] == 1, 0.0, jnp.array([jnp.inf, jnp.nan, -jnp.inf] * 28).reshape(2, 6, 7))


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def sums(log_probs, mean=False):
    return jnp.stack([F.sequence_log_probs(p, y, mean=mean) for p, y in zip(log_probs, LABELS, strict=True)])


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_log_ratios_equal_trl(name):
    _, beta, smoothing = alignment.PAIR_LOSSES[name]
    options = {"beta": beta} | ({"label_smoothing": smoothing} if smoothing else {})
    reference = sums(DRAWN["reference"], mean=name == "ipo")

    def total(log_probs):
        losses = LOSSES[name](*(sums(log_probs + POISON, mean=name == "ipo") - reference), **options)
        return jnp.sum(losses), losses

    gradient, losses = jax.grad(total, has_aux=True)(DRAWN["policy"])
    close(losses, GOLDEN[f"{name}/loss"])
    close(gradient, GOLDEN[f"{name}/gradient"])


@pytest.mark.parametrize(
    ("name", "loss"), [("orpo", F.odds_ratio_loss), ("simpo", lambda a, b: F.simpo_loss(a, b, beta=2.0, margin=0.7))]
)
def test_losses_without_reference_equal_trl(name, loss):
    means = sums(DRAWN["policy"], mean=True)
    gradients = jax.grad(lambda pair: jnp.sum(loss(*pair)))(means)
    close(loss(*means), GOLDEN[f"{name}/loss"])
    close(gradients, GOLDEN[f"{name}/gradient"])


@pytest.mark.parametrize(("name", "sign"), [("kto", 1.0), ("kto_below_zero", -1.0)])
def test_kto_equals_trl(name, sign):
    options = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.8}
    weights = jnp.array([1.0] * 6 + [0.0])
    kl = jnp.append(DRAWN["kl"][0] + sign * 1.5 - DRAWN["kl"][1], jnp.nan)
    point = F.kto_reference_point(kl, weights)

    def mean(log_probs):
        ratios = F.sequence_log_probs(log_probs, LABELS[0]) - F.sequence_log_probs(DRAWN["reference"][0], LABELS[0])
        return jnp.mean(F.kto_loss(ratios, DRAWN["desirable"] == 1, point, **options))

    loss, gradient = jax.value_and_grad(mean)(DRAWN["policy"][0])
    close(point, GOLDEN[f"{name}/point"])
    close(loss, GOLDEN[f"{name}/loss"])
    close(gradient, GOLDEN[f"{name}/gradient"])
    assert (point == 0) == (sign < 0)
    assert np.all(jax.grad(lambda kl: F.kto_reference_point(kl, weights))(kl) == 0)


@pytest.mark.parametrize("name", ["plain", "margin", "centred"])
def test_reward_loss_equals_trl(name):
    margin = 0.0 if name == "plain" else DRAWN["margin"]

    def mean(scores):
        return jnp.mean(F.bradley_terry_loss(*scores, margin, centring=0.05 if name == "centred" else 0.0))

    loss, gradient = jax.value_and_grad(mean)(DRAWN["scores"])
    close(loss, GOLDEN[f"reward/{name}/loss"])
    close(gradient, GOLDEN[f"reward/{name}/gradient"])


NUMBERS = st.floats(-40, 40, width=32)


@settings(max_examples=25, deadline=None)
@given(NUMBERS, NUMBERS, st.floats(0.05, 2))
def test_what_the_formulas_imply(chosen, rejected, beta):
    c, r = jnp.array([chosen]), jnp.array([rejected])
    plain = F.dpo_loss(c, r, beta=beta)
    # The probabilities of the two orders add up to one.
    close(jnp.exp(-plain) + jnp.exp(-F.dpo_loss(r, c, beta=beta)), [1.0])
    # A robust loss over flipped and right pairs is the plain one: its purpose.
    e = 0.3
    robust = [F.robust_dpo_loss(*pair, beta=beta, label_smoothing=e) for pair in ((c, r), (r, c))]
    np.testing.assert_allclose((1 - e) * robust[0] + e * robust[1], plain, rtol=1e-5, atol=1e-4)
    mixed = F.dpo_loss(c, r, beta=beta, label_smoothing=e)
    np.testing.assert_allclose(mixed, (1 - e) * plain + e * F.dpo_loss(r, c, beta=beta), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(F.bradley_terry_loss(beta * c, beta * r), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", [*LOSSES.values(), F.simpo_loss, F.bradley_terry_loss])
def test_far_differences_are_finite(loss):
    far = jnp.array([1e4, -1e4, 0.0])
    values, gradient = loss(far, -far), jax.grad(lambda x: jnp.sum(loss(x, -far)))(far)
    assert np.isfinite(values).all() and np.isfinite(gradient).all()


def test_odds_of_certain_and_impossible_responses_are_finite():
    p = jnp.array([0.0, -1e-30, -1e-7, -0.5, -0.7, -50.0, -1e4])
    values = F.odds_ratio_loss(p, p[::-1])
    gradients = jax.grad(lambda x: jnp.sum(F.odds_ratio_loss(x, x[::-1])))(p)
    assert np.isfinite(values).all() and np.isfinite(gradients).all()
    # In the middle, in float64 by hand.
    a, b = np.float64(-0.5), np.float64(-0.7)
    odds = np.log(np.exp(a) / (1 - np.exp(a))) - np.log(np.exp(b) / (1 - np.exp(b)))
    close(F.odds_ratio_loss(jnp.array([-0.5]), jnp.array([-0.7])), [np.log1p(np.exp(-odds))])


@pytest.mark.parametrize("loss", [F.dpo_loss, F.robust_dpo_loss])
def test_more_than_half_cannot_be_the_wrong_way_round(loss):
    with pytest.raises(ValueError, match=r"label_smoothing is 0.5, expected 0 <= label_smoothing < 0.5"):
        loss(jnp.zeros(1), jnp.zeros(1), label_smoothing=0.5)
