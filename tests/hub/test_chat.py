"""Chat templates: what they write, the assistant's tokens, and what the sandbox stops."""

import json
import time

import numpy as np
import pytest

from jaxformer.hub.chat import render_chat
from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.schema import UserError
from tests.golden import tokenizers as golden

CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
CHAT = [
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "sat on"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "the mat "},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = golden.write("gpt2", tmp_path_factory.mktemp("chat"))
    (folder / "chat_template.jinja").write_text(CHATML)
    return AutoTokenizer.from_pretrained(folder, pad_token="<|endoftext|>", truncation_side="right")


def write(template, **variables):
    return render_chat(template, CHAT, variables).text


def test_by_hand(tokenizer):
    text = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n"
    )
    batch = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True)
    assert batch.input_ids == tokenizer(text).input_ids
    assert tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=False) == batch.input_ids
    many = tokenizer.apply_chat_template([CHAT[:1], CHAT], padding=True)
    assert many.input_ids.shape[0] == 2 and isinstance(many.input_ids, np.ndarray)
    assert len(tokenizer.apply_chat_template([CHAT[:1], CHAT], tokenize=False)) == 2
    cut = tokenizer.apply_chat_template(CHAT, truncation=True, max_length=5, return_tensors="np")
    assert cut.input_ids.shape == (1, 5)


@pytest.mark.parametrize("kwargs", [{}, {"return_tensors": "np"}, {"padding": "max_length", "max_length": 300}])
def test_the_assistants_tokens(tokenizer, kwargs):
    batch = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True, **kwargs)
    ids, mask = np.ravel(batch.input_ids), np.ravel(batch.assistant_masks)
    assert ids.shape == mask.shape
    assert tokenizer.decode(ids[mask == 1]) == "sat on<|im_end|>the mat <|im_end|>"
    assert type(batch.assistant_masks) is type(batch.input_ids)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert tokenizer.decode(ids[: len(tokenizer(text).input_ids)]) == text, "the marks leave nothing in the text"


def test_the_assistants_tokens_of_many(tokenizer):
    call = {"padding": True, "padding_side": "left", "return_assistant_tokens_mask": True}
    batch = tokenizer.apply_chat_template([CHAT[:2], CHAT], **call)
    said = [tokenizer.decode(ids[mask == 1]) for ids, mask in zip(batch.input_ids, batch.assistant_masks, strict=True)]
    assert said == ["sat on<|im_end|>", "sat on<|im_end|>the mat <|im_end|>"]
    ragged = tokenizer.apply_chat_template([CHAT[:2], CHAT], return_assistant_tokens_mask=True)
    assert [sum(mask) for mask in ragged.assistant_masks] == batch.assistant_masks.sum(1).tolist()


def test_the_last_message_goes_on(tokenizer):
    def text(chat, **call):
        return tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True, **call)

    assert text(CHAT).endswith("<|im_start|>assistant\nthe mat "), "the blank at the end is the message's"
    trimming = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    assert text(CHAT, chat_template=trimming) == "[the cat?][sat on][and][the mat"
    blocks = [{"role": "user", "content": [{"type": "text", "text": "the"}, {"type": "image"}]}]
    assert text(blocks, chat_template="{% for b in messages[0].content %}{{ b.text }}|{% endfor %}") == "the"
    thought = [{"role": "assistant", "thinking": "so", "content": "x"}]
    assert (
        tokenizer.apply_chat_template(
            thought,
            chat_template="<{{ messages[0].thinking }}>{{ messages[0].content }}",
            tokenize=False,
            continue_final_message="thinking",
        )
        == "<so"
    )
    assert CHAT[-1]["content"] == "the mat ", "the caller's messages stay as they were"
    with pytest.raises(UserError, match=r"leaves out or changes the last message"):
        text(CHAT, chat_template="nothing {{ 1 }}")
    with pytest.raises(UserError, match=r"needs text in the 'content' of the last message"):
        text([{"role": "user"}])
    with pytest.raises(UserError, match=r"expected one of them"):
        text(CHAT, add_generation_prompt=True)


def test_what_a_template_sees(tokenizer):
    def out(template, **variables):
        return tokenizer.apply_chat_template(CHAT, chat_template=template, tokenize=False, **variables)

    assert out("{{ eos_token }}{{ bos_token }}") == "<|endoftext|>" * 2
    assert out("{{ mine }}{{ tools }}{{ documents }}", mine=3) == "3NoneNone"
    tool = {"type": "function", "function": {"name": "<f>", "parameters": {"한": 1}}}
    assert out("{{ tools | tojson }}", tools=[tool]) == json.dumps([tool], ensure_ascii=False)
    assert out("{{ tools[0] | tojson(indent=2) }}", tools=[tool]) == json.dumps(tool, indent=2, ensure_ascii=False)
    assert len(out("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert (
        out("{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role[0] }}{% endfor %}") == "ua"
    )
    assert (
        out("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}")
        == "4"
    )
    assert out("  {% if true %}\nx\n  {% endif %}\n") == "x\n"
    assert out(
        "{{ 'a' ~ 1 ~ messages[0].role }}{{ 'x' * 3 }}{{ 7 % 4 }}{{ '%s-%s' % (1, 'b') }}{{ '**%s**' % 1 }}"
    ) == ("a1userxxx31-b**1**")
    assert out("{{ '{:>3}|{}'.format(1, 'b') }}{{ ['a', 'b'] | join(', ') }}{{ 'aXb'.split('X') | join }}") == (
        "  1|ba, bab"
    )
    assert (
        out("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}") == "2"
    )
    assert out(
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{{ dict(a=1)['a'] }}{{ 'ab' | replace('a', 'c') }}"
    ) == ("<1>1cb")
    assert out("{{ messages[0].none is defined }}") == "False"
    assert write("{{ messages[0].content is defined }}") == "True"
    empty = [{"role": "assistant", "content": None, "tool_calls": [{"x": 1}]}]
    assert render_chat("{{ messages[0].content is defined }}", empty, {}).text == "False", "None is left out"


def test_templates_by_name(tmp_path):
    golden.write("gpt2", tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": "d{{ 1 }}"}, {"name": "tool_use", "template": "t{{ 1 }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path / "saved")
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert one.apply_chat_template(CHAT, tokenize=False) == "d1"
        assert one.apply_chat_template(CHAT, tokenize=False, tools=[{}]) == "t1"
        assert one.apply_chat_template(CHAT, tokenize=False, chat_template="tool_use") == "t1"
        assert one.apply_chat_template(CHAT, tokenize=False, chat_template="own {{ 2 }}") == "own 2"
        with pytest.raises(
            UserError, match=r"chat_template is 'tool', expected a Jinja text or one of default, tool_use"
        ):
            one.apply_chat_template(CHAT, chat_template="tool")


def test_one_template_is_saved_as_its_own_file(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == CHATML
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == CHATML
    assert AutoTokenizer.from_pretrained(tmp_path, chat_template="{{ 1 }}").chat_template == "{{ 1 }}"


def test_wrong_conversations(tokenizer, tmp_path):
    plain = AutoTokenizer.from_pretrained(golden.write("bert", tmp_path))
    with pytest.raises(UserError, match=r"the tokenizer has no chat template"):
        plain.apply_chat_template(CHAT)
    for wrong in ([], ["hello"], [3], "hello", [[]]):
        with pytest.raises(UserError, match=r"a conversation is a list of at least one message"):
            tokenizer.apply_chat_template(wrong)
    for call, message in [
        ({"tools": [print]}, r"tools is a list of JSON schemas"),
        ({"mine": object()}, r"given a object, expected text, numbers"),
        ({"messages": 1}, r"messages is not free as a variable"),
        ({"chat_template": "{% if %}"}, r"line 1 of the chat template is not Jinja"),
        ({"chat_template": "{{ raise_exception('no system') }}"}, r"refused the conversation: no system"),
        ({"chat_template": "{{ messages[9].role }}"}, r"refused the conversation"),
        ({"chat_template": "{{ 1 / 0 }}"}, r"the chat template failed: ZeroDivisionError"),
        ({"chat_template": "{{ messages + 1 }}"}, r"the chat template failed: TypeError"),
        ({"return_assistant_tokens_mask": True, "tokenize": False}, r"needs tokenize=True"),
    ]:
        with pytest.raises(UserError, match=message):
            tokenizer.apply_chat_template(CHAT, **call)
    endless = []
    endless.append(endless)
    with pytest.raises(UserError, match=r"lists within lists without end"):
        tokenizer.apply_chat_template([{"role": "user", "content": endless}])
    with pytest.raises(UserError, match=r"characters U\+FDD0 to U\+FDD2"):
        tokenizer.apply_chat_template([{"role": "user", "content": "\ufdd0"}])


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('true') }}",
    "{{ self._TemplateReference__context }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ ('{0.__class__}' | attr('format'))(1) }}",
    "{{ ['{0.__class__}'] | map('format', 1) | list }}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{% extends 'x' %}",
    "{% set x = messages.append(1) %}",
    "{% set x = messages[0].update(a=1) %}",
    "{{ ((messages | map(attribute='__class__')) | list)[0].__name__ }}",
    "{{ lipsum(n=1000000) }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_no_way_out(template):
    before = json.dumps(CHAT)
    try:
        text = write(template)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert "class" not in text and text.strip() in ("", "{0.__class__}", "['{0.__class__}']")
    assert json.dumps(CHAT) == before


HUGE = [
    "{{ 'a' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ 10 ** 100000 }}",
    "{{ (2 ** 4000) * (2 ** 4000) }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{{ range(10**9) | list }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ 'a\tb'.expandtabs(10**9) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a\nb' | indent(10**9) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ {'a': 1} | tojson(indent=10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '{:1000000000d}'.format(1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 100000).join(('b' * 1000) | list) }}",
    "{{ (('b' * 1000) | list) | join('a' * 100000) }}",
    "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='aa') %}{% for i in range(60) %}"
    "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}{{ ns.s }}",
    "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
]


@pytest.mark.parametrize("template", HUGE)
def test_nothing_enormous(template):
    started = time.monotonic()
    with pytest.raises(UserError, match=r"the chat template (was stopped|failed|refused)") as caught:
        write(template)
    assert time.monotonic() - started < 5
    assert len(str(caught.value)) < 400
