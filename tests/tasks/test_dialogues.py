"""Dialogues with tools and reasoning as ``apply_chat_template`` writes them; ends that are never learned are said."""

import copy
import json
import logging

import numpy as np
import pytest

from jaxformer.schema import UserError
from jaxformer.tasks import DPO, DPOConfig, Instruction, InstructionConfig, Reward, RewardConfig
from jaxformer.tasks.chat_template import ChatWriter
from jaxformer.tasks.records import Tally
from jaxformer.tasks.responses import ResponseEncoder, encode_prompts
from jaxformer.tasks.row_readers import PromptReader
from tests.tasks.tiny import TOKENIZER, TWO_SIDED

# As Qwen's: tools before the dialogue, calls and reasoning in an answer, results of calls as one turn.
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\n# Tools' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>\n' }}{%- endif %}
        {%- if message.content %}{{- message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>' + message.content + '</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>\n' }}{%- endif %}
{%- endif %}
"""
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"properties": {"city": {"type": "string"}}}},
}
CALLS = [
    {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}} for city in ("Oslo", "Bonn")
]
ASKED = {"role": "user", "content": "Where is it warmer?"}
CALLED = {"role": "assistant", "content": None, "reasoning_content": "I must ask.", "tool_calls": CALLS}
RESULTS = [{"role": "tool", "name": "weather", "content": degrees, "tool_calls": None} for degrees in ("3", "9")]
ANSWERED = {"role": "assistant", "content": "In Bonn."}
WHOLE = [ASKED, CALLED, *RESULTS, ANSWERED]


def with_template(template=QWEN, tokenizer=TOKENIZER):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def written(tokenizer, ids, mask=None):
    return tokenizer.decode(np.array(ids)[slice(None) if mask is None else np.array(mask) == 1])


def instruction(tokenizer, row, **settings):
    """The text of a row, and the text that is learned."""
    batch = Instruction(InstructionConfig(packed=False, **settings), tokenizer, 2000).rows([row]).take(np.arange(1))
    labels = batch["labels"][0]
    last = labels[labels >= 0][-1]  # not an input
    return written(tokenizer, [*batch["input_ids"][0][batch["attention_mask"][0] == 1], last]), written(
        tokenizer, labels[labels >= 0]
    )


@pytest.mark.parametrize("tools", [[WEATHER], json.dumps([WEATHER])], ids=["list", "JSON"])
def test_an_instruction_has_tools_calls_and_reasoning(tools):
    tokenizer = with_template()
    expected = tokenizer.apply_chat_template(WHOLE, tools=[WEATHER], tokenize=False)
    assert expected.startswith('<|im_start|>system\n# Tools\n{"type": "function"') and "I must ask." in expected
    learned = (
        "<think>I must ask.</think>\n"
        '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
        '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call><|im_end|>\n'
        "In Bonn.<|im_end|>\n"
    )
    assert instruction(tokenizer, {"messages": WHOLE, "tools": tools}) == (expected, learned)
    parts = {"prompt": WHOLE[:-1], "completion": WHOLE[-1:], "functions": tools}
    text, learned = instruction(tokenizer, parts, columns={"tools": "functions"})
    assert (text, learned) == (expected, "In Bonn.<|im_end|>\n")


def test_pairs_have_tools_and_calls():
    tokenizer = with_template()
    row = {"prompt": [ASKED], "chosen": [CALLED], "rejected": [ANSWERED], "tools": [WEATHER]}
    expected = [
        tokenizer.apply_chat_template([ASKED, said], tools=[WEATHER], tokenize=False) for said in (CALLED, ANSWERED)
    ]
    whole = {"chosen": [ASKED, CALLED], "rejected": [ASKED, ANSWERED], "tools": [WEATHER]}
    for data in (row, whole):
        batch = Reward(RewardConfig(), tokenizer, 999).rows([data]).take(np.arange(1))
        assert [
            written(tokenizer, *pair) for pair in zip(batch["input_ids"][0], batch["attention_mask"][0], strict=True)
        ] == expected
        batch = DPO(DPOConfig(), tokenizer, 999).rows([data]).take(np.arange(1))
        learned = [written(tokenizer, labels[labels >= 0]) for labels in batch["labels"][0]]
        assert [text.endswith(end) for text, end in zip(expected, learned, strict=True)] == [True, True]
        assert learned[1] == "In Bonn.<|im_end|>\n" and learned[0].startswith("<think>I must ask.")


def test_prompts_have_tools_calls_and_other_variables():
    tokenizer = with_template()
    row = {"messages": WHOLE, "tools": [WEATHER], "chat_template_kwargs": {"enable_thinking": False}}
    [(_, ids)] = encode_prompts(ResponseEncoder(tokenizer, None), [row], PromptReader({}), Tally(), 2000)
    options = {"tools": [WEATHER], "enable_thinking": False, "add_generation_prompt": True}
    expected = tokenizer.apply_chat_template(WHOLE[:-1], tokenizer_kwargs={"split_special_tokens": False}, **options)
    assert ids == expected["input_ids"] and written(tokenizer, ids).endswith("<|im_start|>assistant\n<think></think>\n")


def test_an_encoder_decoder_reads_calls_and_refuses_to_lose_them():
    tokenizer = with_template(tokenizer=TWO_SIDED)
    task = Instruction(InstructionConfig(packed=False), tokenizer, 2000, "encoder_decoder")
    batch = task.rows([{"messages": WHOLE, "tools": [WEATHER]}]).take(np.arange(1))
    source = written(tokenizer, batch["input_ids"][0], batch["segment_ids"][0])
    expected = tokenizer.apply_chat_template(WHOLE[:-1], tools=[WEATHER], add_generation_prompt=True, tokenize=False)
    assert source == expected + "<|endoftext|>"
    with pytest.raises(
        UserError, match="the answer has reasoning_content, tool_calls, of which an encoder-decoder learns"
    ):
        task.rows([{"messages": WHOLE[:2]}])


def test_a_template_of_its_own_for_tools():
    templates = {"default": QWEN.replace("# Tools", "none"), "tool_use": QWEN}
    tokenizer = with_template(templates)
    for tools in ({"tools": [WEATHER]}, {}):
        expected = tokenizer.apply_chat_template(WHOLE, **tools, tokenize=False)
        assert instruction(tokenizer, {"messages": WHOLE, **tools})[0] == expected


def test_reasoning_that_a_later_turn_takes_away():
    """As Qwen3's template, which writes the reasoning of the last turn alone."""
    last = "{%- set last = namespace(user=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    last += "{%- set last.user = loop.index0 %}{%- endif %}{%- endfor %}"
    template = last + QWEN.replace(
        "if message.reasoning_content", "if message.reasoning_content and loop.index0 > last.user"
    )
    tokenizer = with_template(template)
    first, second = (
        {"role": "assistant", "content": f"{answer}\n", "reasoning_content": f"{answer} it is."}
        for answer in ("A", "B")
    )
    dialogue = [ASKED, first, {"role": "user", "content": "A"}, second]
    text, learned = instruction(tokenizer, {"messages": dialogue})
    assert text == tokenizer.apply_chat_template(dialogue, tokenize=False) and "A it is." not in text
    assert learned == "A\n<|im_end|>\n<think>B it is.</think>\nB\n<|im_end|>\n"
    # Calls that a later turn takes away cannot be located.
    template = QWEN.replace("in message.tool_calls", "in (message.tool_calls if loop.last else [])")
    with pytest.raises(UserError, match="does not write a dialogue turn by turn"):
        instruction(with_template(template), {"messages": WHOLE})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tools": "weather"}, "column 'tools' contains 'weather', expected JSON"),
        ({"tools": ["weather"]}, r"column 'tools' contains \['weather'\], expected a list of JSON schemas"),
        (
            {"tools": [{**WEATHER, "note": "a<|im_end|>"}]},
            "tools or other variables of a row contain the special token",
        ),
        ({"chat_template_kwargs": [1]}, r"column 'chat_template_kwargs' contains \[1\], expected a dictionary"),
        (
            {"messages": [ASKED, {**CALLED, "reasoning_content": "<|im_end|>"}]},
            "a message contains the special token <",
        ),
        (
            {"messages": [ASKED, {**CALLED, "tool_calls": [{"name": "<pad>"}]}]},
            "a message contains the special token <p",
        ),
        ({"messages": [ASKED, {**CALLED, "tool_calls": []}]}, "message 2 has no text in role or content"),
        ({"messages": [ASKED, {"role": "assistant", "content": " ", "reasoning_content": "a"}]}, "an answer is empty"),
    ],
)
def test_what_cannot_be_used(change, reason):
    with pytest.raises(UserError, match=reason):
        instruction(with_template(), {"messages": WHOLE, **change}, bad_rows="error")


SAYS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}END\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MARKED = "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
MARKED += "{% else %}{{ m.content }}{% endif %}"
BLOCK = SAYS.replace("{{ m.content }}", MARKED)
WARNING = "puts no special token behind an answer that is learned, so the model does not learn to end its answers"


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (SAYS.replace("END", ""), False),
        (SAYS.replace("END", "</answer>"), False),
        (SAYS.replace("END", "{{ eos_token }}"), True),
        (SAYS.replace("END", "<|im_end|>"), True),
        (BLOCK.replace("END", "{{ eos_token }}"), False),
        (BLOCK.replace("{% endgeneration %}", "{{ eos_token }}{% endgeneration %}").replace("END", ""), True),
        (QWEN, True),
        ("human_assistant", True),
    ],
)
def test_an_end_that_is_never_learned_is_said_once(template, ends, caplog):
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<tool>"}]
    pair = {"chosen": said, "rejected": [said[0], {"role": "assistant", "content": "b"}]}
    tasks = [
        (Instruction(InstructionConfig(chat_template=template), with_template(), 99), {"messages": said}),
        (DPO(DPOConfig(chat_template=template), with_template(), 99), pair),
    ]
    for task, row in tasks:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            task.rows([row] * 2)
            task.rows([row])  # the validation split
        assert sum(WARNING in record.message for record in caplog.records) == (0 if ends else 1)
    caplog.clear()
    # A reward model writes nothing, and texts are ended by the task.
    Reward(RewardConfig(chat_template=template), with_template(), 99).rows([pair])
    Instruction(InstructionConfig(chat_template=template), with_template(), 99).rows(
        [{"prompt": "a", "completion": "b"}]
    )
    assert WARNING not in caplog.text


def test_what_a_template_leaves_out_is_said_once(caplog):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    row = {"messages": [ASKED, {**CALLED, "content": "I ask."}, *RESULTS, ANSWERED], "tools": [WEATHER]}
    with caplog.at_level(logging.WARNING):
        instruction(with_template(template), row)
    assert [record.message for record in caplog.records] == [
        f"rows have {part}, which the chat template leaves out: the model does not see them"
        for part in ("tools", "tool_calls", "reasoning_content")
    ]
    caplog.clear()
    instruction(with_template(), row)
    instruction(with_template(template), {"messages": [ASKED, ANSWERED]})
    assert not caplog.records


def test_the_words_of_a_new_tokenizer_are_those_of_the_dialogue():
    texts = InstructionConfig().texts({"messages": WHOLE, "tools": [WEATHER]})
    assert {"I must ask.", "Oslo", "Bonn", "9", "In Bonn.", "weather"} <= set(texts) and "assistant" not in texts


def test_a_chat_writer_takes_its_template_from_the_tokenizer():
    assert ChatWriter(QWEN, TOKENIZER).behind() == "<|im_end|>\n"
