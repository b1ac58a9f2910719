"""The mixture of experts against a loop over tokens in float64, and its losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F

M, D, INNER, E, C = 23, 6, 5, 4, 2
feed_forward = jax.jit(F.expert_feed_forward, static_argnames=("activation", "in_blocks"))
route = jax.jit(F.route, static_argnames=("chosen", "normalize"))
router_sums, balance_loss, router_z_loss = (jax.jit(f) for f in (F.router_sums, F.balance_loss, F.router_z_loss))


def arrays(gated=True, seed=0):
    random = np.random.default_rng(seed)
    names = ("gate", "up", "down") if gated else ("up", "down")
    shapes = {"gate": (E, D, INNER), "up": (E, D, INNER), "down": (E, INNER, D)}
    weights = {name: jnp.asarray(random.standard_normal(shapes[name]), jnp.float32) for name in names}
    logits = random.standard_normal((M, E))
    logits[:, 1] -= 20.0  # an expert that nobody chooses
    return jnp.asarray(random.standard_normal((M, D)), jnp.float32), weights, jnp.asarray(logits, jnp.float32)


def by_hand(x, weights, logits, normalize):
    """Token by token, expert by expert."""
    x, logits = np.asarray(x, np.float64), np.asarray(logits, np.float64)
    weights = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    output = np.zeros(x.shape)
    for t, row in enumerate(x):
        p = np.exp(logits[t]) / np.exp(logits[t]).sum()
        chosen = np.argsort(-p)[:C]
        for e in chosen:
            inner = row @ weights["up"][e]
            if "gate" in weights:
                gate = row @ weights["gate"][e]
                inner = gate / (1 + np.exp(-gate)) * inner
            else:
                inner = inner / (1 + np.exp(-inner))
            output[t] += p[e] / (p[chosen].sum() if normalize else 1.0) * (inner @ weights["down"][e])
    return output


@pytest.mark.parametrize("in_blocks", [False, True], ids=["ragged", "blocks"])
@pytest.mark.parametrize(("gated", "normalize"), [(True, True), (False, False)])
def test_every_token_has_the_sum_of_its_experts(in_blocks, gated, normalize):
    x, weights, logits = arrays(gated)

    def run(x, weights, logits):
        routing = route(logits, chosen=C, normalize=normalize)
        return feed_forward(x, weights, routing.experts, routing.weights, in_blocks=in_blocks)

    np.testing.assert_allclose(jax.jit(run)(x, weights, logits), by_hand(x, weights, logits, normalize), atol=1e-5)

    # Gradients by differences of the loop in float64, in a direction of each argument.
    arguments = (x, weights, logits)
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(run(*a))), (0, 1, 2)))(*arguments)
    direction = jax.tree.map(lambda a: np.random.default_rng(a.size).standard_normal(a.shape), arguments)
    got = sum(float(jnp.sum(g * d)) for g, d in zip(*map(jax.tree.leaves, (gradients, direction)), strict=True))

    def moved(step):
        places = jax.tree.map(lambda a, d: np.asarray(a, np.float64) + step * d, arguments, direction)
        return np.sin(by_hand(*places, normalize)).sum()

    np.testing.assert_allclose(got, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-3)


def test_one_token_and_many_tokens_for_one_expert():
    x, weights, logits = arrays()
    for rows, shift in ((slice(0, 1), 0.0), (slice(None), 30.0)):
        biased = logits[rows].at[:, 3].add(shift)
        routing = route(biased, chosen=C)
        for in_blocks in (False, True):
            got = feed_forward(x[rows], weights, routing.experts, routing.weights, in_blocks=in_blocks)
            np.testing.assert_allclose(got, by_hand(x[rows], weights, biased, False), atol=1e-5)


@pytest.mark.parametrize("in_blocks", [False, True], ids=["ragged", "blocks"])
def test_a_choice_of_no_expert_counts_nothing(in_blocks):
    """As on a device that has the first two experts only."""
    x, weights, logits = arrays()
    routing = route(logits, chosen=C)
    parts = []
    for first in (0, 2):
        own = routing.experts - first
        experts = jnp.where((own >= 0) & (own < 2), own, 2)
        some = {name: kernel[first : first + 2] for name, kernel in weights.items()}
        parts.append(feed_forward(x, some, experts, routing.weights, in_blocks=in_blocks))
    np.testing.assert_allclose(parts[0] + parts[1], by_hand(x, weights, logits, False), atol=1e-5)


def test_low_rank_factors_are_those_of_the_sum():
    x, weights, logits = arrays()
    random = np.random.default_rng(3)
    routing, low_rank, whole = route(logits, chosen=C), {}, {}
    for name, kernel in weights.items():
        a = jnp.asarray(random.standard_normal((E, kernel.shape[1], 2)), jnp.float32)
        b = jnp.asarray(random.standard_normal((E, 2, kernel.shape[2])), jnp.float32)
        low_rank[name], whole[name] = F.LowRankKernel(kernel, a, b), kernel + a @ b
    for in_blocks in (False, True):
        got = feed_forward(x, low_rank, routing.experts, routing.weights, in_blocks=in_blocks)
        np.testing.assert_allclose(got, by_hand(x, whole, logits, False), rtol=1e-4, atol=1e-4)


def test_weights_are_probabilities_or_sum_to_one():
    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    plain, normal = route(logits, chosen=2), route(logits, chosen=2, normalize=True)
    np.testing.assert_array_equal(plain.experts, [1, 2])
    np.testing.assert_allclose(plain.weights, [0.5, 0.3], rtol=1e-6)
    np.testing.assert_allclose(normal.weights, [0.625, 0.375], rtol=1e-6)
    with pytest.raises(ValueError, match="chosen is 4, expected 1 to 3"):
        route(logits, chosen=4)


def test_the_balance_loss_by_hand():
    # Two tokens choose expert 0 and one expert 1, padding is not counted: f = [2/3, 1/3], P = [0.6, 0.4].
    p = np.array([[0.8, 0.2], [0.7, 0.3], [0.3, 0.7], [0.1, 0.9]])
    logits = jnp.log(jnp.asarray(p))
    sums = router_sums(logits, route(logits, chosen=1), jnp.array([True, True, True, False]))
    np.testing.assert_allclose(balance_loss(sums), 2 * (2 / 3 * 0.6 + 1 / 3 * 0.4), rtol=1e-6)
    # log Z is 0 for logarithms of probabilities; all logits 1 higher it is 1.
    assert float(router_z_loss(sums)) < 1e-12
    shifted = router_sums(logits + 1.0, route(logits, chosen=1))
    np.testing.assert_allclose(router_z_loss(shifted), 1.0, rtol=1e-6)
    # An even choice has the smallest value, the number of experts of a token.
    even = jnp.zeros((6, 3))
    balanced = F.Routing(jnp.arange(12).reshape(6, 2) % 3, jnp.ones((6, 2)), jnp.full((6, 3), 1 / 3))
    np.testing.assert_allclose(balance_loss(router_sums(even, balanced)), 2.0, rtol=1e-6)


def test_with_the_prices_of_the_whole_the_balance_loss_is_a_sum_over_parts():
    logits = jnp.asarray(np.random.default_rng(4).standard_normal((10, E)), jnp.float32)

    def sums(logits):
        return router_sums(logits, route(logits, chosen=C))

    prices = jax.jit(F.expert_prices)(sums(logits))
    parts = [jnp.sum(prices * sums(part).probabilities) for part in (logits[:3], logits[3:])]
    np.testing.assert_allclose(sum(parts), balance_loss(sums(logits)), rtol=1e-6)
    whole = jax.jit(jax.grad(lambda x: balance_loss(sums(x))))(logits)
    part = jax.jit(jax.grad(lambda x: jnp.sum(prices * sums(x).probabilities)))(logits[:3])
    np.testing.assert_allclose(part, whole[:3], atol=1e-7)


def test_padding_has_no_part_in_the_losses_whatever_it_holds():
    logits = jnp.array([[1.0, 2.0, 0.5], [jnp.nan, jnp.inf, 0.0]])
    real = jnp.array([True, False])

    def loss(logits):
        sums = router_sums(logits, route(logits, chosen=2), real)
        return balance_loss(sums) + router_z_loss(sums)

    first = router_sums(logits[:1], route(logits[:1], 2))
    np.testing.assert_allclose(loss(logits), balance_loss(first) + router_z_loss(first), rtol=1e-6)


def test_an_unknown_activation_is_refused():
    x, weights, logits = arrays()
    routing = route(logits, chosen=C)
    with pytest.raises(ValueError, match="activation is 'mish', expected one of gelu"):
        feed_forward(x, weights, routing.experts, routing.weights, activation="mish")
