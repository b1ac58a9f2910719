"""What a policy learns from a response: alignment of tokens, first ratios, gradients, against formulas by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import unbox

from jaxformer.families import model_config
from jaxformer.models import TransformerConfig
from jaxformer.tasks import TASKS, build_task
from jaxformer.tasks.policy import ROW, Response
from jaxformer.tokenizers import TokenizerConfig, add_special_tokens, find_special, special_id, train_tokenizer

SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 32, "vocab_size": 300}
TOKENIZER = add_special_tokens(train_tokenizer(TokenizerConfig(type="byte"), ["a cat"]), ("pad", "sep"))
END = find_special(TOKENIZER, "eos")
RESPONSES = [
    Response([5, 6, 7], [8, 9, END], np.float32([-1, -2, -3]), True),
    Response([5], [6, 7, 8, 9], np.float32([-4, -5, -6, -7]), False),
    Response([5, 6], [END], np.float32([-8]), True),
    Response([7], [8, 9], np.float32([-9, -10]), True),
]


def make(kind, architecture="decoder", **keys):
    family = "t5" if architecture == "encoder_decoder" else "gpt2"
    config = TransformerConfig(**model_config({"type": family, **SIZES}))
    task = build_task(TASKS[kind](reward="r.py:f", max_new_tokens=8, **keys), TOKENIZER, config, 32)
    model = task.model(config)
    params = unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"])
    return task, model, params


def on_device(task, **columns):
    """The batch of RESPONSES with further columns."""
    return {name: jnp.asarray(array) for name, array in {**task.batch(RESPONSES), **columns}.items()}


def experienced(task, model, params, scores, moved=0.0):
    """The batch of RESPONSES with scores and a reference that is so many nats a token away."""
    batch = on_device(task, scores=np.float32(scores))
    now, _ = jax.jit(lambda params: task.log_probs_and_values(model, params, batch))(params)
    batch["reference_log_probs"] = now - np.float32(moved)
    columns, facts, carried = jax.jit(lambda params: task.experience(model, params, batch, None))(params)
    return {**batch, **columns}, facts, carried


def test_a_batch_asks_for_the_response_and_nothing_else():
    task, *_ = make("ppo")
    batch = task.batch(RESPONSES)
    assert batch["input_ids"].shape == (4, 32)
    assert batch["input_ids"][0, :6].tolist() == [5, 6, 7, 8, 9, 0] and batch["attention_mask"][0].sum() == 5
    assert batch["labels"][0, :6].tolist() == [-100, -100, 8, 9, END, -100]
    assert batch["sampler_log_probs"][0, :6].tolist() == [0, 0, -1, -2, -3, 0]
    assert batch["labels"][1, :5].tolist() == [6, 7, 8, 9, -100]  # it was cut: no end is asked for


def test_a_batch_of_two_sides():
    task, *_ = make("ppo", "encoder_decoder")
    batch = task.batch(RESPONSES)
    assert batch["labels"].shape == batch["decoder_input_ids"].shape == (4, 8)
    assert batch["labels"][0, :4].tolist() == [8, 9, END, -100]
    assert batch["decoder_input_ids"][0, :4].tolist() == [special_id(TOKENIZER, "pad"), 8, 9, 0]
    assert batch["sampler_log_probs"][0, :4].tolist() == [-1, -2, -3, 0]


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_masked_truncated_responses_teach_nothing(architecture):
    task, *_ = make("grpo", architecture, group_size=2, mask_truncated=True)
    labels = task.batch(RESPONSES)["labels"]
    assert (labels[1] == -100).all() and (labels[0] != -100).any()


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
@pytest.mark.default_cases("decoder")
def test_first_ppo_update_is_the_policy_gradient(architecture):
    """At ratio 1 nothing is clipped, and the gradient is that of minus the mean of advantage times log-probability."""
    task, model, params = make("ppo", architecture, value_coefficient=0.5)
    batch, facts, _ = experienced(task, model, params, [1, -1, 2, 0.5], moved=0.25)
    mask = batch["labels"] != -100
    np.testing.assert_allclose(facts["kl"], 0.25 * mask.sum() / 4, rtol=1e-4)

    @jax.jit
    def ours(params):
        sums = task.loss(model, params, batch, None)
        return sums.objective, sums

    @jax.jit
    def plain(params):
        log_probs, values = task.log_probs_and_values(model, params, batch)
        return jnp.sum(-batch["advantages"] * log_probs * mask) + 0.25 * jnp.sum(
            mask * (values - batch["returns"]) ** 2
        )

    gradient, sums = jax.grad(ours, has_aux=True)(params)
    assert float(sums.weight) == mask.sum() and float(sums.metrics["clipped"]) == 0
    assert abs(float(sums.metrics["moved_kl"])) < 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, jax.grad(plain)(params))


def test_ppo_rewards_stand_at_the_last_token():
    """Returns by hand: with gamma and lambda 1 they are the rewards still to come; advantages are whitened."""
    task, model, params = make("ppo", decay=1.0, kl_coefficient=0.5)
    batch, _, _ = experienced(task, model, params, [1, -1, 2, 0.5], moved=0.25)
    returns, labels = np.asarray(batch["returns"], np.float64), batch["labels"]
    assert (returns[labels == -100] == 0).all()
    # Each token costs 0.5 * 0.25, the score is paid at the last: the end token, or where the response was cut.
    np.testing.assert_allclose(returns[0, 2:5], [1 - 0.375, 1 - 0.25, 1 - 0.125], atol=1e-5)
    np.testing.assert_allclose(returns[1, :4], [-1.5, -1.375, -1.25, -1.125], atol=1e-5)
    mask = labels != -100
    advantages = np.asarray(batch["advantages"], np.float64)[mask]
    np.testing.assert_allclose([advantages.mean(), advantages.std(ddof=1)], [0, 1], atol=1e-4)


def test_adaptive_kl_is_handed_on():
    task, model, params = make("ppo", kl_coefficient=0.2, kl_target=0.1, kl_horizon=100)
    assert task.carried == {"kl_coefficient": np.float32(0.2)}
    batch = on_device(task, scores=np.zeros(4, np.float32))
    batch["reference_log_probs"] = task.log_probs_and_values(model, params, batch)[0] - 1
    _, facts, carried = task.experience(model, params, batch, jax.tree.map(jnp.asarray, task.carried))
    assert float(facts["kl"]) == pytest.approx(2.5, rel=1e-4)
    assert float(carried["kl_coefficient"]) == pytest.approx(0.2 * (1 + 0.2 * 4 / 100))


@pytest.mark.slow
def test_groups_are_compared_with_each_other():
    task, model, params = make("grpo", group_size=2, scale_rewards=False, kl_coefficient=0.1)
    batch, _, _ = experienced(task, model, params, [1, 3, 2, 2], moved=0.0)
    np.testing.assert_allclose(batch["advantages"], [-1, 1, 0, 0])
    mask, lengths = batch["labels"] != -100, np.array([3, 4, 1, 2])
    sums = task.loss(model, params, batch, None)
    assert float(sums.weight) == 4

    def plain(params):
        log_probs, _ = task.log_probs_and_values(model, params, batch)
        return jnp.sum(-batch["advantages"] * jnp.sum(log_probs * mask, 1) / lengths)

    ours, theirs = jax.grad(lambda p: task.loss(model, p, batch, None).objective)(params), jax.grad(plain)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


def test_rloo_pays_for_the_kl_of_the_whole_response():
    task, model, params = make("rloo", group_size=2, kl_coefficient=0.5)
    batch, _, _ = experienced(task, model, params, [1, 3, 2, 2], moved=0.25)
    rewards = np.array([1, 3, 2, 2]) - 0.125 * np.array([3, 4, 1, 2])
    np.testing.assert_allclose(batch["advantages"], rewards - rewards[[1, 0, 3, 2]], atol=1e-5)


def test_temperature_is_that_of_the_draws():
    task, model, params = make("grpo", group_size=2, temperature=0.5)
    batch = on_device(task)
    found, _ = task.log_probs_and_values(model, params, batch)
    logits = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"]).logits / 0.5
    expected = jax.nn.log_softmax(logits)[0, [2, 3, 4], [8, 9, END]]
    np.testing.assert_allclose(found[0, 2:5], expected, atol=1e-5)


def test_prompts_that_do_not_fit_are_counted(caplog):
    task, *_ = make("ppo")
    data = [{"prompt": "abc"}, {"prompt": "x" * 30}, {"prompt": " "}]
    rows = task.rows(data)
    assert rows.num_rows == 1 and len(rows.left_out) == 2
    assert "longer than the context of 24 tokens" in caplog.text
    batch = rows.take(np.arange(2))
    assert batch[ROW].tolist() == [0, -1] and batch["attention_mask"].sum(1).tolist() == [3, 0]
