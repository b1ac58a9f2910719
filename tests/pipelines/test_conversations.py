"""Conversations with tools: the tokens are those of ``apply_chat_template`` of transformers."""

import json
import warnings

import pytest

import jaxformer
from jaxformer.cli import run
from jaxformer.pipelines import PipelineWarning
from jaxformer.pipelines.best_of_n import BestOfN, Settings, best_of_n
from jaxformer.schema import UserError
from tests.pipelines import tiny

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.name }};{% endfor %}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}"
    "{% for call in m.tool_calls %}<{{ call.name }}>{% endfor %}{{ m.reasoning_content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{{ mood }}{% endif %}"
)
ASKED = {"role": "user", "content": "rain"}
CALLED = {"role": "assistant", "content": "", "reasoning_content": "old", "tool_calls": [{"name": "sky"}]}
CHAT = [ASKED, CALLED, {"role": "tool", "content": "fell"}]
TOOLS = [{"name": "sky"}, {"name": "sea"}]


def opened(folder, template=TEMPLATE):
    saved = tiny.save(folder, "writes")
    file = saved / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    return jaxformer.pipeline(model=str(saved), do_sample=False, max_new_tokens=4)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("writes"))


def ids_of(pipe, item, **options):
    return pipe.encode([item], pipe.parse(options))[0][0].inputs["input_ids"]


def test_tools_calls_and_reasoning_reach_the_template(pipe):
    expected = pipe.tokenizer.apply_chat_template(CHAT, tools=TOOLS, mood="good", add_generation_prompt=True)[
        "input_ids"
    ]
    assert pipe.tokenizer.decode(expected) == "sky;sea;u:rain</s>a:<sky>old</s>t:fell</s>a:good"
    assert ids_of(pipe, CHAT, tools=TOOLS, chat_template_kwargs={"mood": "good"}) == expected
    item = {"messages": CHAT, "tools": TOOLS, "mood": "good"}
    assert ids_of(pipe, item) == ids_of(pipe, item, tools=[{"name": "other"}]) == expected
    [found] = pipe(item)
    assert (
        found["generated_text"][:-1] == CHAT
        and found == pipe(CHAT, tools=TOOLS, chat_template_kwargs={"mood": "good"})[0]
    )
    assert "".join(piece.text for piece in pipe.pieces(item)) == found["generated_text"][-1]["content"]


def test_lines_of_a_file_have_their_tools(pipe, tmp_path, capsys):
    row = {"messages": CHAT, "tools": json.dumps(TOOLS), "chat_template_kwargs": {"mood": "good"}}
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (row, {**row, "tools": "sky"}, {"messages": CHAT})))
    expected = [pipe({"messages": CHAT, "tools": TOOLS, "mood": "good"}), pipe(CHAT)]
    options = ["do_sample=false", "max_new_tokens=4"]
    assert (
        run("predict", ["--model", pipe.name, "--file", str(file), "--out", str(tmp_path / "out.jsonl"), *options]) == 1
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [lines[0], lines[2]] == [one[0] for one in expected]
    assert lines[1] == {"error": "line 2: column 'tools' contains 'sky', expected JSON"}
    capsys.readouterr()
    assert run("generate", ["--model", pipe.name, "--file", str(file), *options]) == 1
    said = capsys.readouterr()
    texts = [one[0]["generated_text"][-1]["content"] for one in expected]
    assert said.out == f"{texts[0]}\n\n\n{texts[1]}\n"
    assert said.err == "error: line 2: column 'tools' contains 'sky', expected JSON\n"


def test_the_best_answer_keeps_its_tools(pipe, tmp_path):
    prompt = "sky;sea;u:rain</s>a:<sky>old</s>t:fell</s>a:"
    function = f"def long(prompts, completions):\n    assert prompts == [{prompt!r}] * 2\n    return [1, 2]\n"
    (tmp_path / "reward.py").write_text(function)
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": CHAT, "tools": TOOLS}) + "\n")
    settings = Settings(n=2, keep_truncated=True, options={"max_new_tokens": 4})
    maker = BestOfN(pipe.name, f"{tmp_path / 'reward.py'}:long", settings)
    best_of_n(maker, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    record = json.loads((tmp_path / "out.jsonl").read_text())
    assert record["tools"] == TOOLS and record["prompt"] == CHAT and record["score"] == 2


def test_what_a_template_leaves_out_or_rejects(pipe, tmp_path):
    plain = opened(tmp_path / "plain", tiny.CHAT)
    with pytest.warns(PipelineWarning) as said:
        plain({"messages": CHAT, "tools": TOOLS})
    name = f"the chat template of {plain.name} leaves out"
    parts = ("tools", "tool_calls", "reasoning_content")
    assert [str(one.message) for one in said] == [f"{name} {part}: the model does not see them" for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe({"messages": CHAT, "tools": TOOLS})
    for item, reason in (
        ([ASKED, {"role": "assistant", "tool_calls": TOOLS}], "continue_final_message is set"),
        ({"messages": CHAT, "tools": [3]}, "Tools should"),
    ):
        with pytest.raises(UserError, match=f"the chat template of .* rejects the conversation: {reason}"):
            pipe(item)


def test_a_tokenizer_trained_here_reads_the_ends_of_the_template_as_ends(tmp_path):
    pipe = opened(tmp_path)
    expected = ids_of(pipe, CHAT)
    assert expected.count(pipe.tokenizer.eos_token_id) == 3
    pipe.tokenizer.split_special_tokens = True
    assert ids_of(pipe, CHAT) == expected
    with pytest.raises(UserError, match="a message contains the special token </s>, expected text without one"):
        pipe([{"role": "user", "content": "a</s>"}])
