"""The one step against itself (devices, accumulation, packing) and against a float64 calculation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer.families import build_model, model_config
from jaxformer.hub.kinds import abstract_params
from jaxformer.models import TransformerConfig
from jaxformer.parallel.batch import put_batch
from jaxformer.parallel.mesh import ParallelConfig, make_mesh
from jaxformer.tasks import CausalLM, CausalLMConfig
from jaxformer.training.optimizer import OptimizerConfig, build_optimizer
from jaxformer.training.state import abstract_state, init_state
from jaxformer.training.step import make_train_step

TASK = CausalLM(CausalLMConfig(chunk_tokens=32), None, 8)
# SGD, since Adam's normalisation would hide a gradient that is off by a factor.
SGD = optax.sgd(0.5)
ONE_DEVICE = jax.devices()[:1]


def tiny(family="gpt2", **keys):
    shape = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "max_length": 16,
        "dropout": 0.1,
        "unroll": 1,
    }
    return build_model(TransformerConfig(**model_config({"type": family, **shape, **keys})))


def uneven_batch(rows=16, length=16):
    """Rows with 1 to ``length`` labels, so that devices and parts hold different numbers of tokens."""
    ids = jax.random.randint(jax.random.key(5), (rows, length), 0, 32)
    kept = jnp.arange(length) < (1 + jnp.arange(rows)[:, None] * 7 % length)
    return {"input_ids": np.asarray(ids), "labels": np.asarray(jnp.where(kept, jnp.roll(ids, -1, 1), -100))}


def run(model, batch, steps=3, accumulate=1, mesh=None, optimizer=SGD, ema_decay=None):
    mesh = mesh or make_mesh(ParallelConfig(), ONE_DEVICE)
    abstract = abstract_state(abstract_params(model), optimizer, ema_decay is not None, mesh)
    state = init_state(model, optimizer, 0, abstract)
    step = jax.jit(
        make_train_step(model, TASK, optimizer, seed=0, accumulate=accumulate, ema_decay=ema_decay), donate_argnums=0
    )
    batch = put_batch(batch, len(batch["input_ids"]), mesh)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics.sums["loss"] / metrics.weight))
    return state, losses


@functools.cache
def on_one_device(family="gpt2", **keys):
    """What the others are compared with: the whole batch at once on one device."""
    return run(tiny(family, **keys), uneven_batch())


def assert_same(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), jax.device_get(a), jax.device_get(b))


@pytest.mark.parametrize("accumulate", [2, 16])
@pytest.mark.default_cases("2")
def test_accumulated_parts_equal_the_whole_batch_with_dropout_and_uneven_tokens(accumulate):
    whole, losses = on_one_device()
    parts, part_losses = run(tiny(), uneven_batch(), accumulate=accumulate)
    np.testing.assert_allclose(losses, part_losses, rtol=1e-5)
    assert_same(whole.params, parts.params)


def test_one_sgd_step_is_the_gradient_of_the_mean_over_tokens():
    model, batch = tiny(dropout=0.0), uneven_batch()
    abstract = abstract_state(abstract_params(model), SGD, False, make_mesh(ParallelConfig(), ONE_DEVICE))
    params = jax.device_get(init_state(model, SGD, 0, abstract).params)

    def mean_loss(params):
        logits = model.apply({"params": params}, batch["input_ids"]).logits
        kept = batch["labels"] != -100
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(kept, batch["labels"], 0))
        return jnp.sum(nll * kept) / kept.sum()

    expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(mean_loss)(params))
    assert_same(run(model, batch, steps=1)[0].params, expected)


def test_packed_documents_equal_separate_ones_in_loss_and_gradient():
    model = tiny("llama", dropout=0.0)
    tokens = np.asarray(jax.random.randint(jax.random.key(3), (17,), 0, 32))
    packed = TASK.features(
        {
            "tokens": tokens[None],
            "segment_ids": np.array([[1] * 5 + [2] * 3 + [3] * 9]),
            "position_ids": np.array([[*range(5), *range(3), *range(9)]]),
        },
        [],
        None,
    )
    rows, segments = np.zeros((3, 17), np.int32), np.zeros((3, 17), np.int32)
    for row, (start, stop) in enumerate([(0, 5), (5, 8), (8, 17)]):
        rows[row, : stop - start], segments[row, : stop - start] = tokens[start:stop], 1
    positions = np.broadcast_to(np.arange(17), (3, 17))
    alone = TASK.features({"tokens": rows, "segment_ids": segments, "position_ids": positions}, [], None)
    assert (alone["labels"] != -100).sum() == (packed["labels"] != -100).sum() == 14
    a, b = (run(model, jax.tree.map(jnp.asarray, batch)) for batch in (packed, alone))
    np.testing.assert_allclose(a[1], b[1], rtol=1e-5)
    assert_same(a[0].params, b[0].params)


def test_dropout_is_on_in_training_off_in_evaluation_and_changes_with_the_step():
    model, batch = tiny(dropout=0.5), uneven_batch()
    zero = optax.sgd(0.0)
    state, losses = run(model, batch, optimizer=zero)
    assert len({round(loss, 6) for loss in losses}) == 3, "three steps with the same parameters drop differently"

    def loss(model):
        evaluate = jax.jit(lambda params, batch: TASK.loss(model, params, batch, None))
        return evaluate(state.params, batch).metrics["loss"]

    assert loss(model) == loss(model) == loss(tiny(dropout=0.0))


def test_a_non_finite_step_changes_nothing_and_is_counted():
    model, batch = tiny(dropout=0.0), uneven_batch()
    adam = optax.adam(1e-2)
    mesh = make_mesh(ParallelConfig(), ONE_DEVICE)
    state = init_state(model, adam, 0, abstract_state(abstract_params(model), adam, True, mesh))
    step = jax.jit(make_train_step(model, TASK, adam, seed=0, ema_decay=0.9))
    state, _ = step(state, batch)
    poisoned = jax.tree.map(lambda x: x, state.params)
    poisoned["final_norm"]["scale"] = poisoned["final_norm"]["scale"].at[0].set(jnp.inf)
    bad = type(state)(state.step, poisoned, state.opt_state, state.ema, state.skipped, state.skipped_in_a_row)
    after, metrics = step(bad, batch)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (2, 1, 1)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
    jax.tree.map(np.testing.assert_array_equal, after.ema, state.ema)
    jax.tree.map(np.testing.assert_array_equal, after.params, poisoned)
    healed = type(state)(after.step, state.params, after.opt_state, after.ema, after.skipped, after.skipped_in_a_row)
    good, metrics = step(healed, batch)
    assert (int(good.skipped), int(metrics.skipped_in_a_row)) == (1, 0)


def test_a_batch_without_labels_is_harmless():
    batch = {name: array.copy() for name, array in uneven_batch().items()}
    batch["labels"][:] = -100
    state, _ = run(tiny(dropout=0.0), batch, steps=1)
    assert int(state.skipped) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


def test_ema_by_hand():
    model, batch = tiny(dropout=0.0), uneven_batch()
    start, first, second = (run(model, batch, steps=steps, ema_decay=0.9)[0].params for steps in (0, 1, 2))
    state, _ = run(model, batch, steps=2, ema_decay=0.9)
    expected = jax.tree.map(lambda a, b, c: 0.9 * (0.9 * a + 0.1 * b) + 0.1 * c, start, first, second)
    assert_same(state.ema, expected, 1e-6)
    assert state.evaluation_params is state.ema


def test_tied_head_stays_one_table_and_gets_both_gradients():
    model, batch = tiny(dropout=0.0), uneven_batch()
    state, _ = run(model, batch, steps=1)
    assert "lm_head" not in state.params
    untied = tiny(dropout=0.0, tie_embeddings=False)
    table = jax.device_get(run(model, batch, steps=0)[0].params)
    params = {**table, "lm_head": {"kernel": table["embeddings"]["token"]["embedding"].T}}
    params = jax.tree.map(jnp.asarray, params)

    def loss(params):
        sums = TASK.loss(untied, params, jax.tree.map(jnp.asarray, batch), None)
        return sums.objective / sums.weight

    gradient = jax.grad(loss)(params)
    both = gradient["embeddings"]["token"]["embedding"] + gradient["lm_head"]["kernel"].T
    expected = params["embeddings"]["token"]["embedding"] - 0.5 * both
    np.testing.assert_allclose(state.params["embeddings"]["token"]["embedding"], expected, atol=1e-6)


def test_the_state_is_made_split_and_its_optimizer_statistics_like_it():
    mesh = make_mesh(ParallelConfig(fsdp=8))
    model = tiny()
    adam = optax.adam(1e-3)
    state = init_state(model, adam, 0, abstract_state(abstract_params(model), adam, False, mesh))
    kernel = state.params["layers"]["feed_forward"]["up"]["kernel"]
    mean = state.opt_state[0].mu["layers"]["feed_forward"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 2, 64) == mean.sharding.shard_shape(mean.shape)
    same = init_state(
        model, adam, 0, abstract_state(abstract_params(model), adam, False, make_mesh(ParallelConfig(), ONE_DEVICE))
    )
    assert_same(state.params, same.params, 0)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon", "lion", "sgd"])
@pytest.mark.default_cases("muon")
def test_every_optimizer_learns_on_eight_devices_with_its_statistics_split(kind):
    mesh = make_mesh(ParallelConfig(fsdp=8))
    optimizer = build_optimizer(OptimizerConfig(type=kind, momentum=0.9), lambda _: 0.01)
    state, losses = run(tiny(dropout=0.0), uneven_batch(), optimizer=optimizer, mesh=mesh, steps=4)
    assert losses[-1] < losses[0]
    up = state.params["layers"]["feed_forward"]["up"]["kernel"]
    statistics = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == up.shape]
    assert all(leaf.sharding.is_equivalent_to(up.sharding, up.ndim) for leaf in statistics)
    assert len(statistics) == {"adamw": 2, "adafactor": 1, "lion": 1, "muon": 1, "sgd": 1}[kind]
