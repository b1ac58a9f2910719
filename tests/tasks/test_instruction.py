"""Supervised fine-tuning: which tokens are learned, by hand; packed against unpacked; what cannot be used."""

import copy
import logging
import re
from functools import partial

import jax
import numpy as np
import pytest

from jaxformer.data.formats import Row
from jaxformer.schema import UserError
from jaxformer.tasks import Instruction, InstructionConfig
from jaxformer.tasks.chat_template import split_dialogue
from jaxformer.tasks.records import BadRow
from jaxformer.tasks.row_readers import alpaca_prompt
from jaxformer.tokenizers import decode, special_id
from tests.tasks.tiny import SEP, TOKENIZER, TWO_SIDED, bytes_of, config_of, generators, on_device, random_params

SPECIAL = "<|endoftext|>"
# Marks the answers, as templates of the Hub may; and one that does not.
MARKED = (
    "{% for m in messages %}{{ m.role[0] + ':' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
CHAT = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "rs"},
    {"role": "user", "content": "t"},
    {"role": "assistant", "content": "u"},
]


def make(length=12, architecture="decoder", **settings):
    tokenizer = TWO_SIDED if architecture == "encoder_decoder" else TOKENIZER
    return Instruction(InstructionConfig(**settings), tokenizer, length, architecture)


def row(number, **values):
    return Row(values, f"a.jsonl:{number}", f"a.jsonl, line {number}")


def taken(task, data, count=None):
    rows = task.rows(data)
    batch = rows.take(np.arange(count or rows.num_rows))
    return task.features(batch, generators(len(batch["labels"])), rows)


def learned(batch, place=0):
    """What a row asks for."""
    return [int(i) for i in batch["labels"][place] if i >= 0]


def test_inputs_and_labels_by_hand():
    data = [{"prompt": "ab", "completion": "cd"}, {"prompt": "e", "completion": "f"}]
    batch = taken(make(packed=False), data, 3)
    assert batch["input_ids"][:, :4].tolist() == [[97, 98, 99, 100], [101, 102, 0, 0], [0] * 4]
    assert batch["labels"][:, :5].tolist() == [[-100, 99, 100, SEP, -100], [102, SEP, -100, -100, -100], [-100] * 5]
    assert batch["attention_mask"].sum(axis=1).tolist() == [4, 2, 0]


def test_packed_rows_by_hand():
    data = [{"prompt": "ab", "completion": "cd"}, {"prompt": "e", "completion": "f"}]
    batch = taken(make(8), data)
    assert batch["input_ids"].tolist() == [[97, 98, 99, 100, 101, 102, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 99, 100, SEP, 102, SEP, -100, -100]]


def test_an_encoder_decoder_reads_the_prompt_in_its_encoder():
    data = [{"prompt": "ab", "completion": "cd"}, {"prompt": "e", "completion": "f"}]
    batch = taken(make(8, "encoder_decoder"), data)
    pad = special_id(TOKENIZER, "pad")
    assert batch["input_ids"].tolist() == [[97, 98, SEP, 101, SEP, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]
    assert batch["decoder_input_ids"].tolist() == [[pad, 99, 100, pad, 102, 0, 0, 0]]
    assert batch["decoder_segment_ids"].tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]
    assert batch["labels"].tolist() == [[99, 100, SEP, 102, SEP, -100, -100, -100]]
    chat = taken(make(16, "encoder_decoder", chat_template=PLAIN), [{"messages": CHAT}])
    assert chat["labels"][0, :2].tolist() == [ord("u"), SEP]
    # The encoder reads all before the last answer, the end of the answer before it as the special token that it is.
    assert chat["input_ids"][0, :13].tolist() == [*bytes_of("u:qa:rs"), SEP, *bytes_of("u:ta:")]


def test_the_alpaca_template():
    with_input = alpaca_prompt("Do {it}.", "{x}")
    assert with_input.endswith("### Instruction:\nDo {it}.\n\n### Input:\n{x}\n\n### Response:")
    assert with_input.startswith("Below is an instruction that describes a task, paired with an input that provides")
    without = alpaca_prompt("Do.", " ")
    assert without.endswith("the request.\n\n### Instruction:\nDo.\n\n### Response:") and "Input" not in without
    batch = taken(make(400, packed=False), [{"instruction": "Do.", "input": None, "output": "ok"}])
    text = [*bytes_of(without), *b"ok"]
    assert batch["input_ids"][0, : len(text)].tolist() == text
    assert learned(batch) == [*b"ok", SEP]
    renamed = make(400, packed=False, columns={"input": "context", "output": "response"})
    dolly = taken(renamed, [{"instruction": "Do.", "context": "", "response": "ok"}])
    np.testing.assert_array_equal(dolly["input_ids"], batch["input_ids"])


@pytest.mark.parametrize("template", [MARKED, PLAIN], ids=["marked", "turn by turn"])
def test_only_the_assistants_turns_are_learned(template):
    task = make(40, packed=False, chat_template=template)
    batch = taken(task, [{"messages": CHAT}])
    ids = [*bytes_of("u:qa:rs"), SEP, *bytes_of("u:ta:u"), SEP]
    assert batch["input_ids"][0, : len(ids) - 1].tolist() == ids[:-1]
    assert learned(batch) == [ord("r"), ord("s"), SEP, ord("u"), SEP]
    # A prompt of messages is not learned.
    only_last = taken(task, [{"prompt": CHAT[:3], "completion": CHAT[3:]}])
    assert learned(only_last) == [ord("u"), SEP]
    np.testing.assert_array_equal(only_last["input_ids"], batch["input_ids"])


def test_the_template_of_human_and_assistant():
    batch = taken(make(80, packed=False, chat_template="human_assistant"), [{"messages": CHAT}])
    text = TOKENIZER.decode(batch["input_ids"][0][batch["attention_mask"][0] == 1], skip_special_tokens=False)
    assert text == f"\n\nHuman: q\n\nAssistant: rs{SPECIAL}\n\nHuman: t\n\nAssistant: u"
    assert decode(TOKENIZER, learned(batch)) == " rs u"
    assert [m["content"] for m in split_dialogue(text.replace(SPECIAL, ""))] == ["q", "rs", "t", "u"]
    with pytest.raises(BadRow, match="does not begin with an empty line and Human:"):
        split_dialogue("Hello")


def test_templates_that_cannot_work():
    for template, message in (
        ("{% if %}", "the chat template fails or rejects the dialogue"),
        ("plain", "task.chat_template is 'plain', expected a Jinja template or one of human_assistant"),
        ("{{ 1 }}", "the chat template renders nothing for an assistant's message, expected its content"),
        ("{{ messages | length }}", "the chat template does not write a dialogue turn by turn"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            make(chat_template=template).rows([{"messages": CHAT}])
    with pytest.raises(UserError, match=r"the tokenizer has no chat template: set task\.chat_template"):
        make().rows([{"messages": CHAT}])


BAD = [
    row(1, prompt="a", completion=" "),
    row(2, prompt="a"),
    row(3, prompt="a", completion=7),
    row(4, messages=[]),
    row(5, messages=[{"role": "user"}]),
    row(6, messages=CHAT[:1]),
    row(7, messages=[*CHAT[:1], {"role": "assistant", "content": ""}]),
    row(8, messages=[{"role": "user", "content": SPECIAL}, CHAT[1]]),
    row(9, prompt="x" * 30, completion="y"),
    row(10, instruction="a", input=3, output="b"),
]
REASONS = [
    "the response is empty",
    "a column is missing, expected messages, or prompt and completion, or instruction and output",
    "column 'completion' contains int, expected text",
    "expected a list of messages with role and content",
    "message 1 has no text in role or content",
    "the dialogue has no answer of the assistant",
    "an answer is empty",
    f"a message contains the special token {SPECIAL}",
    "the prompt is longer than the context of 12 tokens",
    "column 'input' contains int, expected text",
]


def test_rows_that_cannot_be_used_are_named_and_counted(caplog):
    task = make(chat_template=MARKED)
    good = row(11, prompt="ab", completion="c")
    with caplog.at_level(logging.WARNING):
        rows = task.rows([*BAD, good])
    assert sorted(rows.left_out) == sorted((f"a.jsonl, line {n}", reason) for n, reason in enumerate(REASONS, 1))
    assert "skipped 1 of 11 rows: the response is empty (a.jsonl, line 1)" in caplog.text
    assert learned(rows.take(np.arange(1))) == [ord("c"), SEP] and rows.num_rows == 1
    for bad, reason in zip(BAD, REASONS, strict=True):
        with pytest.raises(UserError, match=r"; fix the row, or set task\.bad_rows to report") as error:
            make(chat_template=MARKED, bad_rows="error").rows([bad, good])
        assert str(error.value).startswith(f"{bad.where}: {reason}")
        assert task.config.texts(bad) == [] or reason == REASONS[8] or "messages" in bad
    with pytest.raises(UserError, match=r"none of the 10 rows can be used, the first is a\.jsonl, line"):
        task.rows(BAD)


def test_a_long_answer_is_cut_and_its_end_not_learned(caplog):
    with caplog.at_level(logging.WARNING):
        batch = taken(make(6, packed=False), [row(1, prompt="ab", completion="cdefghij")])
    assert batch["input_ids"].tolist() == [bytes_of("abcdef")]
    assert learned(batch) == bytes_of("cdefg")
    assert "truncated 1 of 1 responses to fit 6 tokens (a.jsonl, line 1)" in caplog.text
    # One that fits to the last token is not cut.
    assert learned(taken(make(6, packed=False), [row(1, prompt="ab", completion="cdef")])) == [*b"cdef", SEP]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_packed_and_single_examples_have_one_loss_and_gradient(kind):
    data = [
        {"prompt": "ab", "completion": "cd"},
        {"prompt": "e", "completion": "fgh"},
        {"prompt": "ij", "completion": "k"},
    ]
    config = config_of(kind)
    tasks = [make(16, config.architecture, packed=packed) for packed in (True, False)]
    model = tasks[0].model(config)
    params = random_params(model)
    results = []
    for task in tasks:
        batch = on_device(taken(task, data))

        @jax.jit
        @partial(jax.value_and_grad, has_aux=True)
        def loss(params, task=task, batch=batch):
            sums = task.loss(model, params, batch, None)
            return sums.objective, sums.weight

        (objective, weight), gradient = loss(params)
        assert weight == 9
        results.append((objective, gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


def test_alpaca_rows_are_dialogues_where_a_template_is_set():
    data = [{"instruction": "Add.", "input": "1 2", "output": "3"}]
    batch = taken(make(80, packed=False, chat_template="human_assistant"), data)
    dialogue = [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]
    same = taken(make(80, packed=False, chat_template="human_assistant"), [{"messages": dialogue}])
    for name, array in same.items():
        np.testing.assert_array_equal(batch[name], array)
    assert learned(batch) == [*b" 3", SEP]
    assert InstructionConfig(chat_template="human_assistant").texts(data[0]) == ["Add.\n\n1 2", "3"]
    # A template that the tokenizer brings is for messages alone.
    own = copy.deepcopy(TOKENIZER)
    own.chat_template = PLAIN
    brings = Instruction(InstructionConfig(packed=False), own, 400, "decoder")
    np.testing.assert_array_equal(taken(brings, data)["input_ids"], taken(make(400, packed=False), data)["input_ids"])
    with pytest.raises(UserError, match="none of the 1 rows can be used, the first is a record: the response is empty"):
        make(80, chat_template=PLAIN).rows([{"instruction": "Add.", "output": " "}])
