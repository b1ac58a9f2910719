import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.data.formats import ClassName
from jaxformer.schema import UserError
from jaxformer.tasks import MultipleChoice, MultipleChoiceConfig
from tests.tasks.tiny import CLS, FRAMED, PAD, SEP, TOKENIZER, Scores

DATA = [
    {"question": "q", "choices": ["a", "bc"], "label": 1},
    {"question": "r", "choices": ["d", "e", "f"], "label": "0"},
]


def make(length=6):
    return MultipleChoice(MultipleChoiceConfig(), FRAMED, length, train_records=DATA)


def batch_of(rows):
    return jax.tree.map(jnp.asarray, make().rows(DATA).take(np.arange(rows)))


def test_inputs_by_hand():
    batch = batch_of(3)
    assert batch["input_ids"].shape == (3, 3, 6)
    assert batch["input_ids"][0].tolist() == [[CLS, 113, SEP, 97, SEP, PAD], [CLS, 113, SEP, 98, 99, SEP], [PAD] * 6]
    assert batch["attention_mask"].sum(-1).tolist() == [[5, 6, 0], [5, 5, 5], [0, 0, 0]]
    assert batch["token_type_ids"][0].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1], [0] * 6]
    assert batch["labels"].tolist() == [1, 0, -100]
    assert make().config.texts(DATA[0]) == ["q", "a", "bc"]


def test_a_missing_choice_has_no_part_in_the_loss():
    task, batch, model = make(), batch_of(3), Scores(1, True)
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    params = model.init(jax.random.key(1), *inputs)["params"]
    logits = np.asarray(model.apply({"params": params}, *inputs).logits, np.float64)
    assert np.isnan(logits[0, 2]), "what a model makes of no tokens"
    sums = jax.jit(lambda b: task.loss(model, params, b, None))(batch)
    first, second = logits[0, :2], logits[1]
    expected = np.log(np.exp(first).sum()) - first[1] + np.log(np.exp(second).sum()) - second[0]
    np.testing.assert_allclose(sums.objective, expected, rtol=1e-5)
    assert sums.weight == 2
    outputs = task.predict(model, params, batch)
    assert outputs["choice"][:2].tolist() == [int(first.argmax()), int(second.argmax())]
    np.testing.assert_allclose(outputs["confidence"][0], np.exp(first.max()) / np.exp(first).sum(), rtol=1e-5)


def test_report():
    report = make().report(DATA, {"choice": np.array([1, 2]), "confidence": np.array([0.75, 0.5])})
    assert report.metrics == {"accuracy": 0.5}
    assert report.predictions[1] == {
        "question": "r",
        "choices": ["d", "e", "f"],
        "label": 0,
        "predicted": 2,
        "probability": 0.5,
    }


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q", "choices": ["a"], "label": 0}, "has 1 choices, expected at least 2"),
        ({"question": "q", "choices": ["a", "b"], "label": 2}, "holds 2, expected the number of a choice from 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "label": "B"}, "holds 'B', expected the number of a choice"),
    ],
)
def test_what_is_refused(record, message):
    with pytest.raises(UserError, match=message):
        make().rows([record])


def test_a_missing_label_is_left_out_and_a_class_is_its_number():
    rows = [{"question": "q", "choices": ["a", "b"], "label": label} for label in ("", None, ClassName("B", 1), 0)]
    found = make().rows(rows)
    assert found.take(np.arange(2))["labels"].tolist() == [1, 0]
    assert found.records == rows[2:] and len(found.left_out) == 2


def test_a_choice_without_tokens_is_not_taken_for_a_missing_one():
    data = [*DATA, {"question": "", "choices": ["a", ""], "label": 0}]
    rows = MultipleChoice(MultipleChoiceConfig(), TOKENIZER, 6).rows(data)
    reason = "the text has no tokens, and the tokenizer puts none around it"
    assert rows.left_out == [("a record", reason)] and rows.num_rows == 2
    assert MultipleChoice(MultipleChoiceConfig(), FRAMED, 6).rows(data).num_rows == 3
