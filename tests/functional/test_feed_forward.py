import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.functional import ACTIVATIONS, dropout, feed_forward

POINTS = np.linspace(-5, 5, 41)
FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_sigmoid": lambda x: x / (1 + math.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "tanh": lambda x: 1 - 2 / (math.exp(2 * x) + 1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_against_their_formula(name):
    expected = [FORMULAS[name](x) for x in POINTS]
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.array(POINTS, jnp.float32)), expected, atol=1e-6)


def test_plain_by_hand():
    # up: [1, 2] -> [1 - 2 + 0, 2 + 2 + 1] = [-1, 5] -> relu [0, 5]; down: 5 * [3, 4] + [1, 1]
    weights = {
        "up": {"kernel": jnp.array([[1.0, 2.0], [-1.0, 1.0]]), "bias": jnp.array([0.0, 1.0])},
        "down": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([1.0, 1.0])},
    }
    np.testing.assert_array_equal(feed_forward(jnp.array([[[1.0, 2.0]]]), weights, activation="relu"), [[[16.0, 21.0]]])


def test_gated_by_hand():
    # gate: relu([-1, 5]) = [0, 5]; up: [1, 2] @ [[1, 0], [0, 2]] = [1, 4]; product [0, 20]; down: 20 * [3, 4]
    weights = {
        "gate": {"kernel": jnp.array([[1.0, 3.0], [-1.0, 1.0]])},
        "up": {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]])},
        "down": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])},
    }
    np.testing.assert_array_equal(feed_forward(jnp.array([[[1.0, 2.0]]]), weights, activation="relu"), [[[60.0, 80.0]]])


def test_inner_dropout_is_between_the_two_maps():
    weights = {"up": {"kernel": jnp.eye(4)}, "down": {"kernel": 2 * jnp.eye(4)}}
    x, keys = jnp.ones((2, 3, 4)), jax.random.split(jax.random.key(0), 2)
    y = feed_forward(x, weights, activation="relu", dropout_rate=0.5, dropout_keys=keys)
    np.testing.assert_array_equal(y, 2 * dropout(x, 0.5, keys))
    np.testing.assert_array_equal(feed_forward(x, weights, activation="relu", dropout_rate=0.5), 2 * x)


def test_bfloat16_keeps_its_dtype():
    weights = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "down": {"kernel": jnp.ones((3, 2))}}
    assert feed_forward(jnp.ones((1, 1, 2), jnp.bfloat16), weights).dtype == jnp.bfloat16


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation is 'swish', expected one of gelu, gelu_tanh, .*silu, relu"):
        feed_forward(jnp.ones((1, 1, 2)), {}, activation="swish")
