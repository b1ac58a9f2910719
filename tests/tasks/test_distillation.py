"""A student's loss and gradient against plain formulas on both models' logits; what is taken from another objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.schema import UserError
from jaxformer.tasks import DistillationConfig, build_task
from jaxformer.tasks.base import apply
from jaxformer.tasks.distillation import WithTeacher
from jaxformer.training.sources import resolve_config
from tests.tasks.tiny import WITH_MASK, cache_of, config_of, features, on_device, random_params

TEXTS = cache_of("the cat sat on a mat", "dogs", "a longer text than all the others here")
PAIRS = [{"source": "ab", "target": "cde"}, {"source": "f", "target": "g"}]
# Objective, its keys, the student's family, the teacher's, data.
CASES = {
    "causal_lm": ({}, "gpt2", "llama", TEXTS),
    "masked_lm": ({"rate": 0.3}, "bert", "roberta", TEXTS),
    "seq2seq": ({"target_length": 8}, "t5", "t5", PAIRS),
    "span_corruption": ({}, "bart", "bart", TEXTS),
    "instruction": ({}, "gpt2", "gpt2", [{"prompt": "ab", "completion": "cd"}, {"prompt": "e", "completion": "f"}]),
}


def made(name, dropout=0.0, **keys):
    """The objective, the student, both models' parameters and a batch."""
    inner, family, other, data = CASES[name]
    config = DistillationConfig(teacher="x", of={"type": name, "chunk_tokens": 8, **inner}, **keys)
    student = config_of(family, dropout=dropout)
    # Wider, deeper, with more rows than there are tokens, and with a dropout that must not be used.
    teacher = config_of(other, hidden_size=12, num_layers=2, vocab_size=367, dropout=0.5)
    task = build_task(config, WITH_MASK, student, 16, train_records=data, teacher=teacher)
    model = task.model(student)
    params = WithTeacher(random_params(model), random_params(task.teacher, 1))
    return task, model, params, on_device(features(task, data))


def naive(task, model, params, batch, temperature, weight):
    """Per token and without chunks."""
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "masked_positions")}

    def logits(model, params):
        found = apply(model, params, inputs, None).logits
        if "masked_positions" in batch:
            found = jnp.take_along_axis(found, batch["masked_positions"][..., None], axis=1)
        return found

    q, p = logits(model, params.student), logits(task.teacher, params.teacher)[..., : model.config.vocab_size]
    trained = batch["labels"] >= 0
    soft = jax.nn.softmax(p / temperature)
    kl = jnp.sum(soft * (jnp.log(soft + 1e-30) - jax.nn.log_softmax(q / temperature)), -1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(q), jnp.maximum(batch["labels"], 0)[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(trained, (1 - weight) * temperature**2 * kl + weight * nll, 0.0))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.default_cases("causal_lm")
def test_loss_and_gradient_are_those_of_both_models_logits(name):
    task, model, params, batch = made(name, temperature=3.0, hard_weight=0.25)
    ours = jax.jit(jax.value_and_grad(lambda p: task.loss(model, p, batch, None).objective))
    plain = jax.jit(jax.value_and_grad(lambda p: naive(task, model, p, batch, 3.0, 0.25)))
    (value, gradient), (expected, by_formula) = ours(params), plain(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for path, leaf in jax.tree_util.tree_flatten_with_path(by_formula.student)[0]:
        found = dict(jax.tree_util.tree_flatten_with_path(gradient.student)[0])[path]
        np.testing.assert_allclose(found, leaf, rtol=1e-3, atol=1e-4 * float(jnp.abs(leaf).max() + 1), err_msg=path)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient.teacher))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient.student))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_student_alone_has_dropout(dropout):
    task, model, params, batch = made("causal_lm", dropout=dropout, hard_weight=0.0)
    both = jax.jit(lambda key: [task.loss(model, params, batch, k).metrics for k in (None, key)])
    evaluated, trained = both(jax.random.key(0))
    assert (evaluated == trained) == (dropout == 0)


def test_a_student_that_is_its_teacher_agrees_with_it():
    task, _, params, batch = made("causal_lm", hard_weight=0.0)
    same = WithTeacher(params.teacher, params.teacher)
    sums = jax.jit(lambda params: task.loss(task.teacher, params, batch, None))(same)
    assert float(sums.metrics["agreement"]) == float(sums.weight) > 20
    np.testing.assert_allclose(sums.metrics["divergence"], 0, atol=1e-4)


def test_rows_features_and_what_is_said_of_the_data_are_the_inner_objectives():
    config = DistillationConfig(teacher="x", of={"type": "seq2seq", "target_length": 8})
    assert (config.reads, config.special_tokens, config.report_at_end) == ("records", ("pad", "sep"), True)
    assert config.texts(PAIRS[0]) == ["ab", "cde"]
    task, _, _, batch = made("seq2seq")
    expected = features(task.of, PAIRS)
    assert expected.keys() == batch.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], expected[name])
    assert task.reports and not made("causal_lm")[0].reports
    masked = DistillationConfig(teacher="x", of={"type": "masked_lm"})
    assert masked.reads == "text" and masked.special_tokens == ("pad", "cls", "sep", "mask")


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ({}, "gpt2", r"task\.teacher is missing, expected a value"),
        ({"teacher": "x", "temperature": 0}, "gpt2", r"task\.temperature is 0, expected greater than 0"),
        ({"teacher": "x", "of": {"type": "dpo"}}, "gpt2", r"task\.of\.type is 'dpo', expected one of causal_lm"),
        (
            {"teacher": "x", "of": {"type": "masked_lm"}},
            "gpt2",
            r"task\.of\.type masked_lm does not go with model\.type gpt2 \(decoder\), expected encoder: set "
            r"model\.type to one of bert, .* or task\.of\.type to one of causal_lm, prefix_lm, instruction",
        ),
        ({"teacher": "x", "of": {"rates": 1}}, "bert", r"unknown key task\.of\.rates; did you mean task\.rate"),
        ({"teacher": "x", "of": {"z_loss": 1}}, "gpt2", r"of\.z_loss is 1\.0, expected 0\.0 with a teacher"),
        ({"teacher": "x", "of": {"sentence_pairs": "next_sentence"}}, "bert", r"of\.sentence_pairs is 'next_sentence'"),
        ({"teacher": "x"}, "electra", r"task\.of\.type is 'replaced_token_detection', expected one of causal_lm"),
    ],
)
def test_configurations_that_cannot_be(task, model, message):
    with pytest.raises(UserError, match=message):
        resolve_config({"task": {"type": "distillation", **task}, "model": {"type": model}}, "x")
