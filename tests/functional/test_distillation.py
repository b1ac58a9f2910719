"""Distillation against TRL's divergence, its value and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from tests.golden import alignment

GOLDEN = alignment.load()
DRAWN = {name: jnp.asarray(array) for name, array in alignment.inputs().items()}
MASK = DRAWN["mask"][0]
LABELS = jnp.where(MASK == 1, 0, -100)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_trl(temperature):
    poison = jnp.where(MASK[..., None] == 1, 0.0, jnp.inf)

    def total(student):
        loss = F.distillation_loss(student, DRAWN["teacher"] - poison, LABELS, temperature=temperature)
        return loss.total, loss.weight

    (value, weight), gradient = jax.value_and_grad(total, has_aux=True)(DRAWN["student"] + poison)
    name, square = f"distillation_{temperature}", temperature**2  # TRL leaves Hinton's factor out
    np.testing.assert_allclose(value, square * GOLDEN[f"{name}/loss"], rtol=1e-6)
    np.testing.assert_allclose(gradient, square * GOLDEN[f"{name}/gradient"], rtol=1e-5, atol=1e-6)
    assert weight == MASK.sum()


def test_the_same_logits_have_no_divergence_and_the_teacher_no_gradient():
    both = DRAWN["teacher"]
    value, gradients = jax.value_and_grad(
        lambda s, t: F.distillation_loss(s, t, LABELS, temperature=2.0).total, argnums=(0, 1)
    )(both, both)
    assert value == 0
    np.testing.assert_allclose(gradients[0], 0, atol=1e-6)
    assert np.all(gradients[1] == 0)


def test_a_word_that_the_teacher_rules_out_counts_nothing():
    teacher = jnp.array([[0.0, 0.0, -jnp.inf]])
    value, gradient = jax.value_and_grad(lambda s: F.distillation_loss(s, teacher, jnp.array([0])).total)(
        jnp.zeros((1, 3))
    )
    np.testing.assert_allclose(value, np.log(3 / 2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-1 / 6, -1 / 6, 1 / 3]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"temperature is 0\.0, expected a number above 0"):
        F.distillation_loss(teacher, teacher, jnp.array([0]), temperature=0.0)
