"""The mixture-of-experts module: its losses in the objective, its layouts, its refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxformer import functional as F
from jaxformer.families.checkpoint import ArrayWeights, UnfusedExperts
from jaxformer.generation import generate, prepare
from jaxformer.lora import LoraConfig, adapt, init_factors, merge
from jaxformer.models import TransformerConfig
from jaxformer.models.experts import ROUTER, sums_of
from jaxformer.schema import UserError
from jaxformer.tasks.base import token_loss
from tests.models.tiny import tiny, tokens

WEIGHTS = {"balance_loss": 0.7, "router_z_loss": 0.3}


def test_the_losses_of_all_layers_are_in_the_objective_once():
    """Each layer's logits are the hidden states before it times its router, read from the outputs of the model."""
    model, params = tiny("experts", **WEIGHTS)
    c, ids = model.config, tokens(3, 7)
    real = jnp.arange(7)[None] < jnp.array([[7], [4], [6]])
    batch = {"input_ids": ids, "attention_mask": real, "labels": jnp.where(real, jnp.roll(ids, -1, 1), -100)}
    got = jax.jit(lambda p: token_loss(model, p, batch, None, chunk_tokens=8))(params)
    plain, _ = tiny("experts", balance_loss=0.0, router_z_loss=0.0)
    expected = jax.jit(lambda p: token_loss(plain, p, batch, None, chunk_tokens=8))(params)
    assert got.metrics.keys() == {"loss", "objective", "balance_loss", "router_z_loss"}
    assert expected.metrics.keys() == {"loss"}

    # What enters each router, from the layers one by one.
    layers = {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(c.num_layers)}

    def entering(params):
        options = {"capture_intermediates": lambda module, _: module.name == "feed_forward_norm"}
        _, found = model.apply({"params": params}, ids, real, mutable="intermediates", **options)
        return [found["intermediates"]["layers"][i]["feed_forward_norm"]["__call__"][0] for i in layers]

    states = jax.jit(entering)({**params, "layers": layers})
    routers = [layer["experts"]["router"]["kernel"] for layer in layers.values()]
    logits = np.stack([np.asarray(x @ router, np.float64)[real] for x, router in zip(states, routers, strict=True)])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    share = np.zeros(c.num_experts)
    for row in p.reshape(-1, c.num_experts):
        share[np.argsort(-row)[: c.experts_per_token]] += 1
    balance = c.num_experts * np.sum(share * p.sum((0, 1))) / (c.num_layers * real.sum()) ** 2
    z = np.sum(np.log(np.exp(logits).sum(-1)) ** 2) / c.num_layers
    labels = float(got.weight)
    np.testing.assert_allclose(got.metrics["balance_loss"] / labels, balance, rtol=1e-5)
    np.testing.assert_allclose(got.metrics["router_z_loss"], z, rtol=1e-5)
    total = float(expected.objective) + 0.7 * balance * labels + 0.3 * z
    np.testing.assert_allclose(got.objective, total, rtol=1e-5)


def test_who_does_not_ask_gets_no_sums_and_who_asks_gets_those_of_all_layers():
    model, params = tiny("experts", **WEIGHTS)
    apply = jax.jit(lambda p, ids: model.apply({"params": p}, ids, mutable=ROUTER)[1])
    sums = sums_of(apply(params, tokens(2, 5))[ROUTER], model.config)
    assert float(sums.tokens) == 2 * 5 * model.config.num_layers
    assert float(jnp.sum(sums.choices)) == float(sums.tokens) * model.config.experts_per_token
    np.testing.assert_allclose(jnp.sum(sums.probabilities), sums.tokens, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, "int8"])
def test_generation_with_prepared_parameters(weights):
    model, params = tiny("experts")
    ids = tokens(2, 4)
    laid = prepare(model, params, weights)
    output = generate(model, laid, ids, max_new_tokens=5)
    kernel = laid["layers"]["0"]["experts"]["up"]["kernel"]
    assert isinstance(kernel, F.Quantized) == (weights == "int8")
    if weights is None:
        texts = jnp.concatenate([ids, jnp.asarray(output.tokens)], axis=1)
        logits = jax.jit(lambda p: model.apply({"params": p}, texts).logits)(params)
        np.testing.assert_array_equal(jnp.argmax(logits[:, 3:-1], axis=-1), output.tokens)
    else:
        assert kernel.scale.shape == (*kernel.values.shape[:1], 1, kernel.values.shape[2])


def test_factors_of_lora_belong_to_each_expert():
    model, params = tiny("experts")
    config = LoraConfig(rank=2, targets=["experts"])
    factors = init_factors(jax.random.key(0), params, config)
    flat = flatten_dict(factors, sep="/")
    assert flat["layers/experts/up/kernel/a"].shape == (2, 5, 18, 2)
    assert flat["layers/experts/router/kernel/b"].shape == (2, 2, 5)
    factors = jax.tree.map(lambda leaf: leaf + 0.1, factors)
    ids = tokens(2, 5)
    run = jax.jit(lambda p: model.apply({"params": p}, ids).logits)
    np.testing.assert_allclose(
        run(adapt(params, factors, config)), run(merge(params, factors, config)), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(UserError, match="whose inputs are sorted by expert: its input cannot be dropped"):
        init_factors(jax.random.key(0), params, config.model_copy(update={"dropout": 0.1}))


def test_fused_tensors_are_read_as_those_of_each_expert():
    fused = np.arange(2 * 6 * 4).reshape(2, 6, 4)  # two experts, gate and up of 3 x 4 each
    down = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    arrays = {
        "a.mlp.experts.gate_up_proj": fused,
        "a.mlp.experts.down_proj": down,
        "a.mlp.gate.weight": np.ones((2, 4)),
    }
    weights = UnfusedExperts(ArrayWeights(arrays))
    parts = {f"a.mlp.experts.{e}.{name}_proj.weight" for e in (0, 1) for name in ("gate", "up", "down")}
    assert set(weights.names()) == parts | {"a.mlp.gate.weight"}
    np.testing.assert_array_equal(weights.read("a.mlp.experts.1.up_proj.weight"), fused[1, 3:])
    np.testing.assert_array_equal(weights.read("a.mlp.experts.0.gate_proj.weight"), fused[0, :3])
    np.testing.assert_array_equal(weights.read("a.mlp.experts.1.down_proj.weight"), down[1])
    assert all(weights.shape(name) == weights.read(name).shape for name in weights.names())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_experts": 2, "experts_per_token": 3}, "experts_per_token is 3 and num_experts 2, expected at most 2"),
        ({"num_experts": 2}, "num_experts is given with biases in the feed-forward, expected feed_forward_bias: false"),
        ({"num_experts": 2, "architecture": "encoder"}, "with architecture encoder, expected a decoder"),
        ({"num_experts": 2, "use_bias": False, "numerics": "exact"}, "numerics is exact and num_experts 2, expected f"),
    ],
)
def test_what_does_not_go_together_is_said(keys, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**keys)
