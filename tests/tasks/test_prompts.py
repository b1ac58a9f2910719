"""Prompts: read from the rows of every data set, encoded by hand and as the objectives on responses have them."""

import pytest

from jaxformer.data.formats import Row
from jaxformer.schema import UserError
from jaxformer.tasks.records import BadRow, Tally, read_rows
from jaxformer.tasks.responses import ResponseEncoder, encode_prompts
from jaxformer.tasks.row_readers import PromptReader, RowReader, alpaca_prompt
from tests.tasks.tiny import SEP, TOKENIZER, TWO_SIDED, bytes_of

SYSTEM, USER, AGAIN = (
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
    {"role": "user", "content": "t"},
)
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
HUMAN = "\n\nHuman: q\n\nAssistant: good\n\nHuman: t\n\nAssistant:"
ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


@pytest.mark.parametrize(
    ("row", "text", "messages"),
    [
        ({"prompt": "ab", "completion": "c"}, "ab", "ab"),
        ({"prompt": [USER], "chosen": [GOOD]}, [USER], [USER]),
        ({"messages": [SYSTEM, USER, GOOD, AGAIN, BAD]}, *[[SYSTEM, USER, GOOD, AGAIN]] * 2),
        ({"messages": [USER, GOOD, AGAIN], "prompt": "q"}, *[[USER, GOOD, AGAIN]] * 2),
        (ALPACA, alpaca_prompt("Add.", "1 2"), [{"role": "user", "content": "Add.\n\n1 2"}]),
        ({"instruction": "Add.", "input": None}, alpaca_prompt("Add."), [{"role": "user", "content": "Add."}]),
        ({"chosen": f"{HUMAN} a", "rejected": f"{HUMAN} b"}, HUMAN, [USER, GOOD, AGAIN]),
        ({"rejected": f"{HUMAN} b"}, HUMAN, [USER, GOOD, AGAIN]),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], [USER]),
    ],
)
def test_what_a_row_asks(row, text, messages):
    assert PromptReader({}, as_messages=False).read(row) == text
    assert PromptReader({}, as_messages=True).read(row) == messages


REFUSED = [
    ({"text": "a"}, "there is no prompt, expected a column messages, prompt, instruction, chosen"),
    ({"prompt": " "}, "the prompt is empty"),
    ({"prompt": []}, "the prompt is empty"),
    ({"prompt": 3}, "column 'prompt' contains int, expected text or a list of messages"),
    ({"prompt": [USER, GOOD]}, "the prompt ends with an answer"),
    ({"messages": [GOOD]}, "the dialogue has no message to answer"),
    ({"messages": "a"}, "column 'messages' contains str, expected text or a list of messages"),
    ({"messages": [USER, {"role": "user"}]}, "message 2 has no text in role or content"),
    ({"messages": [{"role": "user", "content": "a<pad>"}]}, "a message contains the special token <pad>"),
    ({"instruction": ""}, "the instruction is empty"),
    ({"instruction": "a", "input": 3}, "column 'input' contains int, expected text"),
    ({"chosen": "a", "rejected": "b"}, "a dialogue has no line that begins with Assistant:"),
    ({"chosen": f"{HUMAN} a", "rejected": "\n\nHuman: r\n\nAssistant: b"}, "the two dialogues differ before their"),
    ({"chosen": [USER, GOOD], "rejected": [AGAIN, BAD]}, "the two dialogues differ before their last message"),
    ({"prompt": "x" * 31}, "the prompt is longer than the context of 30 tokens"),
    ({"prompt": [{"role": "user", "content": "x" * 20}]}, "the prompt is longer than the context of 30 tokens"),
]


def test_prompts_that_cannot_be_used_are_named():
    data = [Row(values, f"a:{n}", f"a, line {n}") for n, (values, _) in enumerate(REFUSED)]
    tally, encoder = Tally(total=len(data)), ResponseEncoder(TOKENIZER, "human_assistant")
    assert encode_prompts(encoder, data, PromptReader({}, as_messages=True), tally, 30) == []
    found = dict(tally.left_out)
    for number, (_, reason) in enumerate(REFUSED):
        assert found[f"a, line {number}"].startswith(reason)
    with pytest.raises(UserError, match=r"a, line 2: the prompt is empty; fix the row"):
        encode_prompts(encoder, data[2:3], PromptReader({}, as_messages=True), Tally("error"), 30)
    with pytest.raises(UserError, match="the rows are dialogues but the tokenizer has no chat template"):
        encode_prompts(ResponseEncoder(TOKENIZER, None), [{"prompt": [USER]}], PromptReader({}, False), Tally(), 30)


def test_prompts_are_those_of_the_objectives():
    """By hand, and as rows with their answers have them; the order is that of the rows."""
    data = [{"prompt": "ab"}, {"messages": [USER, GOOD]}, ALPACA]
    for two_sided in (False, True):
        encoder = ResponseEncoder(TWO_SIDED if two_sided else TOKENIZER, "human_assistant", two_sided)
        found = encode_prompts(encoder, data, PromptReader({}, as_messages=False), Tally(), 999)
        assert [record for record, _ in found] == data
        end = [SEP] if two_sided else []
        assert found[0][1] == [*b"ab", *end]
        assert found[1][1] == [*bytes_of("\n\nHuman: q\n\nAssistant:"), *end]
        rows = [{"prompt": "ab", "completion": "c"}, *data[1:]]
        answered = encoder.encode(read_rows(rows, RowReader("auto", {}).read, Tally()), Tally())
        assert [ids for _, ids in found] == [encoded.prompt for encoded in answered]


def test_columns_of_other_names():
    reader = PromptReader({"prompt": "question", "messages": "turns"}, as_messages=False)
    assert reader.read({"question": "ab", "prompt": "c"}) == "ab" and reader.read({"turns": [USER]}) == [USER]
    with pytest.raises(BadRow, match="expected a column turns, question, instruction, chosen"):
        reader.read({"prompt": "c"})
