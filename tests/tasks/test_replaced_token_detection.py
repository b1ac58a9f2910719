from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import unbox
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.models.masked_lm import with_one_table
from jaxformer.tasks.replaced_token_detection import (
    ReplacedTokenDetection,
    ReplacedTokenDetectionConfig,
    generator_config,
    sample_replacements,
)
from tests.tasks.tiny import CLS, MASK, SEP, WITH_MASK, cache_of, config_of, features, on_device, random_params

CACHE = cache_of("abcdefgh", "QRSTUVWXYZ", "hello there", "x", "and so on and on")


def make(T=16, **settings):
    return ReplacedTokenDetection(ReplacedTokenDetectionConfig(**settings), WITH_MASK, T)


def electra(task, seed=0, **keys):
    model = task.model(config_of("electra", num_heads=4, **keys))
    return model, random_params(model, seed)


def test_the_generator_is_a_share_as_wide():
    base = config_of("electra", hidden_size=768, num_heads=12, num_layers=12, intermediate_size=3072)
    generator = generator_config(base, 1 / 3)
    # ELECTRA-Base, Clark et al. 2020, table 6: 256 wide, 1024 inside, 4 heads, 768 for the embedding.
    sizes = (generator.hidden_size, generator.inner_size, generator.num_heads, generator.head_width)
    assert sizes == (256, 1024, 4, 64)
    assert generator.num_layers == 12 and generator.token_size == 768
    # ELECTRA-Small: 64 of 256 with an embedding of 128.
    small = config_of("electra", hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=128)
    generator = generator_config(small, 0.25)
    assert (generator.hidden_size, generator.inner_size, generator.num_heads) == (64, 256, 1)
    assert generator.token_size == 128
    # As wide as the model, and narrower than one head.
    same = generator_config(base, 1.0)
    assert (same.hidden_size, same.inner_size, same.token_size) == (768, 3072, 768)
    assert generator_config(base, 0.01).hidden_size == 64
    # Where the generator is as wide as the embedding there is nothing to project.
    narrow = config_of("electra", hidden_size=256, num_heads=4, embedding_size=64)
    assert generator_config(narrow, 0.25).embedding_size is None


def test_every_hidden_token_is_a_mask():
    for seed in range(30):
        batch = features(make(T=12, rate=0.25), cache_of("abcd", "ef"), seed=seed)
        assert set(batch) == {"input_ids", "segment_ids", "masked_positions", "labels"}
        text = np.array([CLS, 97, 98, 99, 100, SEP, CLS, 101, 102, SEP, 0, 0])
        hidden = batch["masked_positions"][0, :2]
        assert batch["labels"][0].tolist() == [*text[hidden], -100]
        text[hidden] = MASK
        assert batch["input_ids"].tolist() == [text.tolist()]


def test_tokens_are_sampled_from_the_generators_distribution():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2, 0.0], [0.0, 0.0, 0.1, 0.9]]))
    n = 4000
    drawn = sample_replacements(jnp.broadcast_to(logits, (n, 2, 4)), jax.random.split(jax.random.key(0), n))
    for column, row in enumerate(np.exp(logits)):
        counts = np.bincount(drawn[:, column], minlength=4)
        assert (np.abs(counts - n * row) <= 5 * np.sqrt(n * row * (1 - row)) + 1e-3).all()
    # One place is drawn without regard to the other.
    both = np.mean((drawn[:, 0] == 0) & (drawn[:, 1] == 2))
    assert abs(both - 0.05) < 5 * np.sqrt(0.05 * 0.95 / n)


def test_only_hidden_places_are_replaced_and_only_by_other_tokens():
    task = make()
    batch = {
        "input_ids": jnp.array([[1, MASK, 3, MASK, 2, 0], [1, 5, MASK, 2, 0, 0]]),
        "masked_positions": jnp.array([[1, 3, 0], [2, 0, 0]]),
        "labels": jnp.array([[7, 8, -100], [9, -100, -100]]),
    }
    # A generator that is sure: 7 and 9 are true, 10 is not; it says 11 where there is nothing to say.
    sure = jnp.array([[7, 10, 11], [9, 11, 11]])
    replaced, is_replaced = task._replace(batch, 1000 * jax.nn.one_hot(sure, 20), None)
    assert replaced.tolist() == [[1, 7, 3, 10, 2, 0], [1, 5, 9, 2, 0, 0]]
    assert is_replaced.tolist() == [[False, False, False, True, False, False], [False] * 6]


def generated(model, params, inputs):
    """The generator's hidden states, and its head."""
    return jax.jit(partial(model.apply, method="generator_hidden_and_head"))({"params": params}, **inputs)


def logits_in_float64(model, params, task, batch, key):
    """The generator's logits at the hidden places, the text it makes, what differs and the discriminator's logits."""
    inputs = {name: batch[name] for name in ("input_ids", "segment_ids")}
    hidden, head = generated(model, params, inputs)
    every = np.asarray(hidden, np.float64) @ np.asarray(head.kernel.kernel, np.float64).T + np.asarray(
        head.bias, np.float64
    )
    places = np.asarray(batch["masked_positions"])
    logits = np.take_along_axis(every, places[..., None], axis=1)
    replaced, is_replaced = task._replace(batch, jnp.asarray(logits, jnp.float32), key)
    output = jax.jit(model.apply)({"params": params}, replaced, segment_ids=batch["segment_ids"])
    return logits, np.asarray(replaced), np.asarray(is_replaced), np.asarray(output.logits, np.float64)


def test_loss_by_hand_from_the_logits_of_both_models():
    task = make(rate=0.3, discriminator_weight=7.0, chunk_tokens=4)
    model, params = electra(task)
    batch = on_device(features(task, CACHE, [0, 1, 2, 3, 4, 9]))
    sums = jax.jit(lambda: task.loss(model, params, batch, None))()
    logits, replaced, is_replaced, scores = logits_in_float64(model, params, task, batch, None)
    generator = detection = right = tokens = 0.0
    changed = 0
    for row in range(6):
        hidden = {}
        for place, label, values in zip(batch["masked_positions"][row], batch["labels"][row], logits[row], strict=True):
            if label >= 0:
                hidden[int(place)] = int(label)
                generator += np.log(np.sum(np.exp(values))) - values[label]
        for place in range(16):
            token = int(replaced[row, place])
            if place not in hidden:
                assert token == batch["input_ids"][row, place], "only hidden tokens are replaced"
            false = place in hidden and token != hidden[place]
            changed += false
            assert false == is_replaced[row, place]
            if batch["segment_ids"][row, place]:
                score = scores[row, place]
                detection += np.log1p(np.exp(-score)) + (0 if false else score)
                right += (score > 0) == false
                tokens += 1
    assert changed > 5
    np.testing.assert_allclose(sums.metrics["generator_loss"], generator / 0.3, rtol=1e-5)
    np.testing.assert_allclose(sums.metrics["detection_loss"], detection, rtol=1e-5)
    np.testing.assert_allclose(sums.metrics["detection_accuracy"], right)
    np.testing.assert_allclose(sums.objective, generator / 0.3 + 7 * detection, rtol=1e-5)
    np.testing.assert_allclose(sums.metrics["loss"], sums.objective)
    assert sums.weight == tokens


@pytest.mark.slow
def test_a_gradient_reaches_its_own_model_and_the_shared_table():
    task = make(rate=0.3)
    model, params = electra(task)
    batch = on_device(features(task, CACHE))

    def gradient(name):
        return jax.jit(jax.grad(lambda p: task.loss(model, p, batch, None).metrics[name]))(params)

    def reached(tree):
        """The names of the parameters, at the top, with a gradient."""
        return {name for name, part in tree.items() if any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(part))}

    own = {"generator", "generator_head"}
    of_generator, of_discriminator = gradient("generator_loss"), gradient("detection_loss")
    assert reached(of_generator) == own | {"embeddings"}
    assert reached(of_discriminator) == set(params) - own
    # Of the discriminator's embeddings the generator shares the token table alone.
    shared = {name for name in params["embeddings"] if reached({name: of_generator["embeddings"][name]})}
    assert shared == {"token"}
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.all(jnp.isfinite(leaf))), (of_generator, of_discriminator)))


def test_disentangled_tables_get_each_their_own_gradient_and_are_one_in_the_end():
    """The generator trains the shared table, the discriminator the difference; added they are what it reads."""
    shared, apart = make(rate=0.3), make(rate=0.3, embedding_sharing="disentangled")
    (one, _), (two, params) = electra(shared), electra(apart)
    batch = on_device(features(shared, CACHE))

    @jax.jit
    def gradients(params):
        def of(name):
            return jax.grad(lambda p: apart.loss(two, p, batch, None).metrics[name])(params)

        return of("generator_loss"), of("detection_loss")

    def tables(tree):
        found = (tree["embeddings"]["token"]["embedding"], tree["token_difference"]["embedding"])
        return tuple(np.abs(table).max() for table in found)

    of_generator, of_discriminator = (tables(tree) for tree in gradients(params))
    assert of_generator[0] > 0 == of_generator[1] and of_discriminator[1] > 0 == of_discriminator[0]
    flat = with_one_table(flatten_dict(params, sep="/"))
    assert "token_difference/embedding" not in flat
    read = {name: batch[name] for name in ("input_ids", "segment_ids")}
    np.testing.assert_allclose(
        one.apply({"params": unflatten_dict(flat, sep="/")}, **read).logits,
        two.apply({"params": params}, **read).logits,
        atol=1e-5,
    )
    fresh = two.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    assert not np.any(unbox(fresh)["token_difference"]["embedding"])


@pytest.mark.parametrize("training", [False, True])
def test_sums_over_parts_of_a_batch_are_those_of_the_whole(training):
    task = make(rate=0.3)
    model, params = electra(task, dropout=0.2)
    batch = features(task, CACHE, [0, 1, 2, 0]) | {"example_ids": np.arange(4, dtype=np.int32)}
    key = jax.random.key(3) if training else None
    loss = jax.jit(lambda batch: task.loss(model, params, batch, key))
    whole = loss(batch)
    parts = [loss({name: array[half] for name, array in batch.items()}) for half in (slice(2), slice(2, 4))]
    summed = jax.tree.map(lambda *values: sum(values), *parts)
    for one, other in zip(jax.tree.leaves(summed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    # The number of an example decides what is drawn for it, not its place in the batch.
    numbered = loss(batch | {"example_ids": np.arange(4, 8, dtype=np.int32)})
    assert abs(float(numbered.objective - whole.objective)) > 1e-3
