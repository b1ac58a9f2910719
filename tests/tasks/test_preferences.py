"""Preference pairs: read, refused and encoded by hand; the losses of reward models and DPO on a model's own outputs."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.data.formats import Row
from jaxformer.schema import UserError
from jaxformer.tasks import DPO, DPOConfig, Reward, RewardConfig
from jaxformer.tasks.row_readers import Answered, PairReader
from jaxformer.tokenizers import decode, special_id
from tests.tasks.tiny import SEP, TOKENIZER, TWO_SIDED, bytes_of, config_of, on_device, random_params

USER, GOOD, BAD = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "good"},
    {"role": "assistant", "content": "bad"},
)
PAIRS = [
    {"prompt": "ab", "chosen": "cde", "rejected": "f"},
    {"prompt": "g", "chosen": "h", "rejected": "ijk"},
    {"prompt": "lm", "chosen": "n", "rejected": "o"},
]


def dpo(length=16, architecture="decoder", **settings):
    tokenizer = TWO_SIDED if architecture == "encoder_decoder" else TOKENIZER
    return DPO(DPOConfig(**settings), tokenizer, length, architecture)


def reward(length=16, **settings):
    return Reward(RewardConfig(**settings), TOKENIZER, length)


def row(number, **values):
    return Row(values, f"a.jsonl:{number}", f"a.jsonl, line {number}")


def real(batch, place, side):
    return batch["input_ids"][place, side][batch["attention_mask"][place, side] == 1].tolist()


def asked(batch, place, side):
    return [int(i) for i in batch["labels"][place, side] if i >= 0]


def test_pairs_of_a_decoder_by_hand():
    batch = dpo().rows(PAIRS).take(np.arange(4))
    assert batch["input_ids"].shape == (4, 2, 16)
    assert [real(batch, 0, side) for side in (0, 1)] == [bytes_of("abcde"), bytes_of("abf")]
    assert [asked(batch, 0, side) for side in (0, 1)] == [[*b"cde", SEP], [*b"f", SEP]]
    assert batch["labels"][0, 1, :5].tolist() == [-100, 102, SEP, -100, -100]
    assert batch["reference_log_probs"].shape == (4, 2) and not batch["attention_mask"][3].any()
    assert "reference_log_probs" not in dpo(loss="simpo").rows(PAIRS).take(np.arange(1))


def test_kto_has_a_third_text_with_the_response_to_the_next_prompt():
    batch = dpo(loss="kto").rows(PAIRS).take(np.arange(3))
    assert [real(batch, n, 2) for n in range(3)] == [bytes_of("abh"), bytes_of("gn"), bytes_of("lmcde")]
    assert [asked(batch, n, 2) for n in range(3)] == [[*b"h", SEP], [*b"n", SEP], [*b"cde", SEP]]


def test_pairs_of_an_encoder_decoder_by_hand():
    batch = dpo(8, "encoder_decoder").rows(PAIRS).take(np.arange(1))
    assert real(batch, 0, 0) == real(batch, 0, 1) == [97, 98, SEP]
    pad = special_id(TOKENIZER, "pad")
    assert batch["decoder_input_ids"][0, 0, :4].tolist() == [pad, *b"cde"] and asked(batch, 0, 1) == [*b"f", SEP]


def test_a_reward_model_reads_whole_texts():
    batch = reward(margin_column="m").rows([{**PAIRS[0], "m": "1.5"}]).take(np.arange(2))
    assert [real(batch, 0, side) for side in (0, 1)] == [[*b"abcde", SEP], [*b"abf", SEP]]
    assert batch["margin"].tolist() == [1.5, 0.0]


def test_dialogues():
    text = PairReader({}, as_messages=False)
    human = "\n\nHuman: q\n\nAssistant: r\n\nHuman: s\n\nAssistant:"
    pair = text.read({"chosen": f"{human} good", "rejected": f"{human} bad"})
    assert pair == (Answered(human, " good"), Answered(human, " bad"))
    as_messages = PairReader({}, as_messages=True).read({"chosen": f"{human} good", "rejected": f"{human} bad"})
    assert [m["content"] for m in as_messages.chosen.prompt] == ["q", "r", "s"]
    assert as_messages.rejected.response == [{"role": "assistant", "content": "bad"}]
    whole = text.read({"chosen": [USER, GOOD], "rejected": [USER, BAD]})
    assert (
        whole
        == text.read({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})
        == (Answered([USER], [GOOD]), Answered([USER], [BAD]))
    )
    batch = (
        dpo(40, chat_template="human_assistant")
        .rows([{"chosen": [USER, GOOD], "rejected": [USER, BAD]}])
        .take(np.arange(1))
    )
    assert decode(TOKENIZER, asked(batch, 0, 0)) == " good" and asked(batch, 0, 1)[-1] == SEP


REFUSED = [
    ({"prompt": "a", "chosen": "b"}, "column 'rejected' is missing"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are equal"),
    ({"prompt": "a", "chosen": " ", "rejected": "b"}, "the chosen response is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, "the rejected response is empty"),
    (
        {"prompt": "a", "chosen": [GOOD], "rejected": "b"},
        "prompt, chosen and rejected are not all text or all messages",
    ),
    ({"prompt": "a", "chosen": 1, "rejected": 2}, "prompt, chosen and rejected are not all text or all messages"),
    ({"prompt": "x" * 17, "chosen": "b", "rejected": "c"}, "the prompt is longer than the context of 16 tokens"),
    ({"prompt": "x" * 8, "chosen": "y" * 20, "rejected": "y" * 21}, "chosen and rejected are equal after truncation"),
    ({"chosen": "b", "rejected": "c"}, "a dialogue has no line that begins with Assistant:"),
    (
        {"chosen": "a\n\nAssistant: b", "rejected": "c\n\nAssistant: b"},
        "the two dialogues differ before their last message",
    ),
    ({"chosen": [GOOD], "rejected": [BAD]}, "a dialogue has fewer than two messages"),
    ({"chosen": [USER, GOOD], "rejected": [GOOD, BAD]}, "the two dialogues differ before their last message"),
    ({"chosen": [USER, {"role": "assistant", "content": ""}], "rejected": [USER, BAD]}, "an answer is empty"),
    ({"chosen": [USER, USER], "rejected": [USER, BAD]}, "the dialogue has no answer of the assistant"),
]


def test_pairs_that_cannot_be_used_are_named_and_counted(caplog):
    task = dpo(chat_template="human_assistant")
    data = [row(n, **values) for n, (values, _) in enumerate(REFUSED, 1)]
    with caplog.at_level(logging.WARNING):
        rows = task.rows([*data, row(99, prompt="ab", chosen="c" * 20, rejected="d" * 20)])
    assert sorted(rows.left_out) == sorted((f"a.jsonl, line {n}", reason) for n, (_, reason) in enumerate(REFUSED, 1))
    assert rows.num_rows == 1 and "skipped 1 of 15 rows: chosen and rejected are equal (a.jsonl, line 2)" in caplog.text
    # A pair of which both sides are cut counts once; so does the one that is equal thereafter.
    assert "truncated 2 of 15 responses" in caplog.text
    for record, (_, reason) in zip(data, REFUSED, strict=True):
        with pytest.raises(UserError) as error:
            dpo(chat_template="human_assistant", bad_rows="error").rows([record])
        assert str(error.value).startswith(f"{record.where}: {reason}; fix the row")
    with pytest.raises(UserError, match=r"none of the 1 rows can be used, the first is a\.jsonl, line 2: chosen and"):
        task.rows(data[1:2])
    with pytest.raises(UserError, match=r"column 'm' \(task\.margin_column\) is not a number"):
        reward(margin_column="m", bad_rows="error").rows([{**PAIRS[0], "m": "much"}])


def test_reward_loss_is_that_of_each_text_alone():
    task = reward(margin_column="m", centring=0.05)
    data = [{**pair, "m": 0.5 * n} for n, pair in enumerate(PAIRS)]
    model = task.model(config_of("gpt2"))
    params = random_params(model)
    batch = on_device(task.rows(data).take(np.arange(4)))  # the last row is padding
    sums, scores = jax.jit(lambda p: (task.loss(model, p, batch, None), task.predict(model, p, batch)["scores"]))(
        params
    )
    score = jax.jit(lambda ids: model.apply({"params": params}, ids[None]).logits[0, 0])
    alone = [
        [score(jnp.array([*pair["prompt"].encode(), *pair[s].encode(), SEP])) for s in ("chosen", "rejected")]
        for pair in PAIRS
    ]
    np.testing.assert_allclose(scores[:3], alone, rtol=1e-4, atol=1e-5)
    c, r = np.array(alone, np.float64).T
    margin = np.array([0, 0.5, 1])
    plain = np.log1p(np.exp(-(c - r - margin)))
    np.testing.assert_allclose(sums.metrics["loss"], plain.sum(), rtol=1e-4)
    np.testing.assert_allclose(sums.objective, (plain + 0.05 * (c + r) ** 2).sum(), rtol=1e-4)
    assert sums.weight == 3 and sums.metrics["pair_accuracy"] == (c > r).sum()
    report = task.report(data, {"scores": np.asarray(scores)[:3]})
    assert report.metrics["pair_accuracy"] == np.mean(c > r) and len(report.predictions) == 3


def expected_losses(name, means, sums, reference):
    """Of each pair, in float64 by the papers' formulas."""
    log_sigmoid = lambda x: -np.log1p(np.exp(-x))  # noqa: E731
    if name in ("orpo", "simpo"):
        c, r = means
        if name == "simpo":
            return -log_sigmoid(2 * (c - r) - 1)
        odds = lambda x: np.log(np.exp(x) / (1 - np.exp(x)))  # noqa: E731
        return -c - 0.1 * log_sigmoid(odds(c) - odds(r))
    if name == "ipo":
        c, r = means[0] - reference[0], means[1] - reference[1]
        return (c - r - 5) ** 2
    c, r = sums[0] - reference[0], sums[1] - reference[1]
    d = 0.1 * (c - r)
    match name:
        case "sigmoid":
            return -log_sigmoid(d)
        case "hinge":
            return np.maximum(0, 1 - d)
        case "cdpo":
            return -0.9 * log_sigmoid(d) - 0.1 * log_sigmoid(-d)
        case "robust":
            return (-0.9 * log_sigmoid(d) + 0.1 * log_sigmoid(-d)) / 0.8
    point = max(0.0, np.mean(sums[2] - reference[2]))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    return (2 - sigmoid(0.1 * (c - point)) - sigmoid(0.1 * (point - r))) / 2


@pytest.fixture(scope="module")
def policy():
    model = dpo().model(config_of("llama", num_kv_heads=2))
    params = random_params(model)
    score = jax.jit(
        lambda ids: F.token_log_probs(model.apply({"params": params}, ids[None, :-1]).logits, ids[None, 1:])[0]
    )
    return model, params, score


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "hinge", "cdpo", "robust", "orpo", "simpo", "kto"])
@pytest.mark.default_cases("kto", "orpo", "sigmoid")
def test_losses_of_a_model_are_those_of_each_text_alone(policy, name):
    model, params, score = policy
    task = dpo(loss=name, chunk_tokens=7)
    rows = task.rows(PAIRS)
    reference = np.random.default_rng(0).normal(-8, 3, (3, 3 if name == "kto" else 2)).astype(np.float32)
    if task.reference_column:
        rows.set_column(task.reference_column, reference)
    batch = on_device(rows.take(np.arange(4)))
    result, said = jax.jit(lambda p: (task.loss(model, p, batch, None), task.reference(model, p, batch)))(params)
    texts = [("chosen", 0), ("rejected", 0)] + ([("chosen", 1)] if name == "kto" else [])
    found = []
    for side, shift in texts:
        responses = [PAIRS[(n + shift) % 3][side].encode() for n in range(3)]
        each = [
            np.asarray(score(jnp.array([*p["prompt"].encode(), *r, SEP])), np.float64)[len(p["prompt"]) - 1 :]
            for p, r in zip(PAIRS, responses, strict=True)
        ]
        found.append(([e.mean() for e in each], [e.sum() for e in each]))
    means, sums = (np.array(column) for column in zip(*found, strict=True))
    np.testing.assert_allclose(said[:3].T, means if name in ("ipo", "orpo", "simpo") else sums, rtol=1e-4, atol=1e-4)
    expected = expected_losses(name, means, sums, reference.T.astype(np.float64))
    np.testing.assert_allclose(result.objective, expected.sum(), rtol=1e-4)
    assert result.weight == 3


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match=r"label_smoothing is 0.2 with loss sigmoid, expected loss cdpo or robust"):
        DPOConfig(label_smoothing=0.2)
    assert DPOConfig(loss="simpo").strength == 2 and DPOConfig().strength == 0.1 and DPOConfig(loss="cdpo").noise == 0.1
