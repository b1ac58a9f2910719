"""The HTTP interface in one process: answers, limits, and one line for what is wrong."""

import base64
import json
import threading
import time

import numpy as np
import pytest

import jaxformer
from jaxformer.generation.scheduler import Job
from jaxformer.generation.slots import NEUTRAL
from jaxformer.serving.pages import scheduled
from jaxformer.serving.served import Limits, open_served
from tests.serving import models

HELLO = [{"role": "user", "content": "rain"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return models.save(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(folders):
    with models.client(folders) as made:
        yield made


@pytest.fixture(scope="module")
def writer(folders):
    return jaxformer.pipeline(model=folders["writer"])


def post(client, path, /, **body):
    found = client.post(path, json=body)
    assert found.status_code == 200, found.text
    return found.json()


def alone(writer, ids, count, **options):
    out = jaxformer.generate(
        writer.model, writer.params, [ids], max_new_tokens=count, tokenizer=writer.tokenizer, **options
    )
    return out.text[0], out.log_probs[0, : out.lengths[0]]


def chunks(client, path, /, **body):
    """The events of a stream, whose last is ``[DONE]``."""
    with client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_models_are_listed_with_their_uses(client):
    cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert {name: card["uses"] for name, card in cards.items()} == {
        "writer": ["completions", "chat"],
        "judge": ["classifications", "rerank"],
        "classes": ["classifications"],
        "encoder": ["embeddings"],
        "rewriter": ["completions"],
    }
    assert client.get("/v1/models/writer").json() == cards["writer"] and cards["writer"]["max_model_len"] == 128
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "seed": 7}])
def test_a_completion_is_the_text_of_generate(client, writer, options):
    """Of a text and of its tokens, at once and as a stream, for several prompts and copies."""
    ids = writer.tokenizer("the old mill")["input_ids"]
    chosen = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": [7]} if "seed" in options else {}
    expected, log_probs = alone(writer, ids, 12, **chosen)
    asked = {"model": "writer", "max_tokens": 12, **options}
    for prompt in ("the old mill", ids, ["the old mill"], [ids, ids]):
        found = post(client, "/v1/completions", prompt=prompt, logprobs=0, **asked)
        assert {choice["text"] for choice in found["choices"]} == {expected}
        np.testing.assert_allclose(found["choices"][0]["logprobs"]["token_logprobs"], log_probs, atol=3e-5)
        count = len(found["choices"])
        assert found["usage"]["completion_tokens"] == count * len(log_probs)
        assert found["usage"]["prompt_tokens"] == count * len(ids)
        events = chunks(client, "/v1/completions", prompt=prompt, stream_options={"include_usage": True}, **asked)
        for index in range(count):
            text = "".join(c["text"] for event in events for c in event["choices"] if c["index"] == index)
            assert text == expected
        assert events[-1]["usage"] == found["usage"] and events[0]["usage"] is None
    copies = post(client, "/v1/completions", prompt=ids, n=3, **asked)["choices"]
    assert [choice["index"] for choice in copies] == [0, 1, 2] and copies[0]["text"] == expected
    assert (len({choice["text"] for choice in copies}) == 1) == ("seed" not in options)


def test_the_prompt_is_echoed_with_its_log_probabilities(client, writer):
    ids = writer.tokenizer("the old mill stood")["input_ids"]
    logits = writer.model.apply({"params": writer.params}, np.array([ids])).logits[0]
    log_probs = np.asarray(logits - np.logaddexp.reduce(np.asarray(logits), axis=-1, keepdims=True))
    found = post(client, "/v1/completions", model="writer", prompt=ids, echo=True, logprobs=2, max_tokens=0)
    choice = found["choices"][0]
    assert choice["text"] == "the old mill stood" and choice["finish_reason"] == "length"
    shown = choice["logprobs"]
    assert shown["token_logprobs"][0] is None and shown["top_logprobs"][0] is None
    expected = log_probs[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(shown["token_logprobs"][1:], expected, atol=3e-5)
    np.testing.assert_allclose(
        [max(top.values()) for top in shown["top_logprobs"][1:]], log_probs[:-1].max(-1), atol=3e-5
    )
    assert "".join(shown["tokens"]) == "the old mill stood"
    assert [
        choice["text"][place:][: len(t)] for t, place in zip(shown["tokens"], shown["text_offset"], strict=True)
    ] == shown["tokens"]
    plain = post(client, "/v1/completions", model="writer", prompt=["rain", "the"], echo=True, max_tokens=2)
    assert [choice["text"].startswith(text) for choice, text in zip(plain["choices"], ("rain", "the"), strict=True)]
    events = chunks(client, "/v1/completions", model="writer", prompt="rain", echo=True, max_tokens=2, seed=1)
    assert "".join(c["text"] for event in events for c in event["choices"]).startswith("rain")


def test_stop_strings_end_a_text_before_them(client, writer):
    ids = writer.tokenizer("rain")["input_ids"]
    whole, _ = alone(writer, ids, 30, do_sample=True, seed=[5])
    stop = whole[8:11]
    asked = {"model": "writer", "prompt": "rain", "max_tokens": 30, "seed": 5, "stop": [stop, "no such"]}
    found = post(client, "/v1/completions", **asked)["choices"][0]
    assert (found["text"], found["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    events = chunks(client, "/v1/completions", **asked)
    assert "".join(c["text"] for event in events for c in event["choices"]) == found["text"]


def test_a_conversation(client, writer):
    ids = writer.tokenizer.apply_chat_template(HELLO, add_generation_prompt=True)["input_ids"]
    expected, _ = alone(writer, ids, 10)
    asked = {"model": "writer", "messages": HELLO, "max_completion_tokens": 10, "temperature": 0}
    found = post(client, "/v1/chat/completions", logprobs=True, top_logprobs=3, **asked)
    choice = found["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": expected, "refusal": None}
    content = choice["logprobs"]["content"]
    assert len(content) == found["usage"]["completion_tokens"] and found["object"] == "chat.completion"
    assert all(len(token["top_logprobs"]) == 3 for token in content)
    assert all(token["logprob"] == token["top_logprobs"][0]["logprob"] for token in content)  # greedy
    events = chunks(client, "/v1/chat/completions", **asked)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == expected
    assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "ra"}, {"type": "text", "text": "in"}]}]
    again = post(client, "/v1/chat/completions", **{**asked, "messages": parts})
    assert again["choices"][0]["message"]["content"] == expected


def test_a_text_follows_a_schema_or_an_expression(client):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "sex": {"enum": ["f", "m"]}},
        "required": ["age", "sex"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    for seed in range(3):
        asked = {"model": "writer", "messages": HELLO, "max_tokens": 60, "seed": seed}
        found = post(client, "/v1/chat/completions", response_format=form, **asked)["choices"][0]
        person = json.loads(found["message"]["content"])
        assert found["finish_reason"] == "stop" and 0 <= person["age"] <= 99 and person["sex"] in "fm"
    form = {"type": "regex", "regex": "(rain|snow) in [A-Z][a-z]{2}"}
    found = post(client, "/v1/completions", model="writer", prompt="it", max_tokens=40, response_format=form, seed=1)
    first, _, place = found["choices"][0]["text"].partition(" in ")
    assert first in ("rain", "snow") and len(place) == 3 and place.istitle()


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["n"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("add", "sub")
]


def test_calls_of_functions_are_parsed_back(client):
    asked = {"model": "writer", "messages": HELLO, "max_tokens": 80, "tools": TOOLS, "seed": 2}
    named = {"type": "function", "function": {"name": "sub"}}
    for choice, names in (("required", {"add", "sub"}), (named, {"sub"})):
        found = post(client, "/v1/chat/completions", tool_choice=choice, **asked)["choices"][0]
        [call] = found["message"]["tool_calls"]
        assert found["finish_reason"] == "tool_calls" and found["message"]["content"] is None
        assert call["function"]["name"] in names and 0 <= json.loads(call["function"]["arguments"])["n"] <= 9
        events = chunks(client, "/v1/chat/completions", tool_choice=choice, **asked)
        calls = [c for event in events for one in event["choices"] for c in one["delta"].get("tool_calls", [])]
        assert [c["function"] for c in calls] == [call["function"]] and calls[0]["index"] == 0
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    said = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "3"},
    ]
    post(client, "/v1/chat/completions", **{**asked, "messages": said})


def test_vectors_ranks_and_labels_are_those_of_the_pipelines(client, folders):
    texts = ["the old mill", "rain fell over six hills"]
    pipe = jaxformer.pipeline("feature-extraction", folders["encoder"], pooling="mean", normalize=True)
    found = post(client, "/v1/embeddings", model="encoder", input=texts)
    np.testing.assert_allclose([row["embedding"] for row in found["data"]], pipe(texts), atol=1e-6)
    packed = post(client, "/v1/embeddings", model="encoder", input=texts[0], encoding_format="base64")
    vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, found["data"][0]["embedding"], atol=1e-6)
    assert packed["usage"]["prompt_tokens"] == len(pipe.tokenizer(texts[0])["input_ids"])
    ranking = jaxformer.pipeline("text-ranking", folders["judge"])
    expected = ranking("rain", texts)
    found = post(client, "/v1/rerank", model="judge", query="rain", documents=[texts[0], {"text": texts[1]}])
    assert [row["index"] for row in found["results"]] == [row["corpus_id"] for row in expected]
    np.testing.assert_allclose(
        [row["relevance_score"] for row in found["results"]], [row["score"] for row in expected], atol=1e-6
    )
    assert len(post(client, "/v1/rerank", model="judge", query="a", documents=texts, top_n=1)["results"]) == 1
    classify = jaxformer.pipeline("text-classification", folders["classes"])
    items = [texts[0], {"text": texts[0], "text_pair": texts[1]}]
    found = post(client, "/v1/classifications", model="classes", input=items)
    for row, expected in zip(found["data"], classify(items, top_k=None), strict=True):
        assert row["label"] == expected[0]["label"]
        assert [score["label"] for score in row["scores"]] == [score["label"] for score in expected]
        np.testing.assert_allclose(
            [score["score"] for score in row["scores"]], [score["score"] for score in expected], atol=1e-6
        )
    rewrite = jaxformer.pipeline("text2text-generation", folders["rewriter"])
    found = post(client, "/v1/completions", model="rewriter", prompt=texts, max_tokens=8)
    assert [c["text"] for c in found["choices"]] == [r["generated_text"] for r in rewrite(texts, max_new_tokens=8)]


def test_tokens_are_counted_and_decoded(client, writer):
    ids = writer.tokenizer("the old mill")["input_ids"]
    found = post(client, "/tokenize", model="writer", prompt="the old mill", return_token_strs=True)
    assert (found["tokens"], found["count"]) == (ids, len(ids)) and len(found["token_strs"]) == len(ids)
    assert post(client, "/detokenize", model="writer", tokens=ids) == {"prompt": "the old mill"}
    chat = writer.tokenizer.apply_chat_template(HELLO, add_generation_prompt=True)["input_ids"]
    assert post(client, "/tokenize", model="writer", messages=HELLO)["tokens"] == chat


def completion(**keys):
    return "/v1/completions", {"model": "writer", "prompt": "a", **keys}


def chat(**keys):
    return "/v1/chat/completions", {"model": "writer", "messages": HELLO, **keys}


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        (("/v1/completions", b"{"), 400, "the body is no JSON: Expecting property name"),
        (("/v1/completions", b""), 400, "the body is empty, expected a JSON object"),
        (("/v1/completions", b"[1]"), 400, "the body is [1], expected a valid dictionary"),
        (("/v1/completions", b"\xff"), 400, "the body is no JSON"),
        (completion(model="other"), 404, "there is no model 'other', expected one of writer, judge"),
        (completion(model="judge"), 400, "the model 'judge' has no completions, expected a request for its class"),
        (completion(prompt=3), 400, "prompt is 3, expected"),
        (completion(prompt=[]), 400, "prompt is an empty list"),
        (completion(prompt=[[5000]]), 400, "the prompt has token 5000, expected 0 to"),
        (completion(prompt="a " * 300), 400, "301 tokens and 16 more are asked for, expected at most 128 together"),
        (completion(max_tokens="5"), 400, "max_tokens is '5', expected a valid integer"),
        (completion(max_tokens=10**9), 400, "1000000000 more are asked for"),
        (completion(temperature=-1), 400, "temperature is -1, expected greater than or equal to 0"),
        (completion(temprature=1), 400, "temprature is not known here"),
        (completion(logit_bias={"x": 1}), 400, "logit_bias has the key 'x', expected the number of a token"),
        (completion(logit_bias={"5000": 1}), 400, "logit_bias has token 5000"),
        (completion(suffix="b"), 400, "suffix is given, expected none"),
        (completion(response_format={"type": "regex", "regex": "("}), 400, "response_format cannot be followed"),
        (completion(stream_options={}), 400, "stream_options are given without stream"),
        (chat(messages=[]), 400, "messages is [], expected"),
        (chat(messages=[{"role": "user"}]), 400, "a message of role user has no content"),
        (chat(messages=[{"content": "a"}]), 400, "expected one with a role"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "expected text alone"),
        (chat(tools=[{"type": "function"}]), 400, "tool 0 is"),
        (chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "x"}}), 400, "tool_choice names 'x'"),
        (chat(chat_template_kwargs={"chat_template": "{{ 1 }}"}), 400, "chat_template_kwargs has chat_template"),
        (chat(chat_template_kwargs={"tokenize": False}), 400, "chat_template_kwargs has tokenize, expected variables"),
        (completion(prompt=["a"] * 11), 400, "11 texts are asked for at once, expected at most 10"),
        (chat(reasoning_effort="high"), 400, "reasoning_effort is not known here"),
        (chat(top_logprobs=2), 400, "top_logprobs is given without logprobs"),
        (("/v1/embeddings", {"model": "encoder", "input": ""}), 400, "input is ''"),
        (("/v1/embeddings", {"model": "encoder", "input": "a", "dimensions": 3}), 400, "dimensions is 3, expected"),
        (("/v1/rerank", {"model": "judge", "query": "a", "documents": [{"x": 1}]}), 400, 'a document is {"x": 1}'),
        (("/v1/nothing", {}), 404, "POST /v1/nothing: Not Found"),
        (("/tokenize", {"model": "writer"}), 400, "expected prompt or messages, and not both"),
        (("/detokenize", {"model": "writer", "tokens": [99999]}), 400, "tokens has 99999"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_as_clients_expect_it(client, asked, status, said):
    path, body = asked
    given = (
        {"content": body, "headers": {"Content-Type": "application/json"}}
        if isinstance(body, bytes)
        else {"json": body}
    )
    found = client.post(path, **given)
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert said in error["message"] and "\n" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"].endswith("_error")


def test_a_template_that_raises_and_a_fault_inside_leave_the_server_unharmed(client, monkeypatch):
    raises = [{"role": "user", "content": "rain", "tool_calls": 3}]
    template = client.served["writer"].pipe.tokenizer.chat_template
    client.served["writer"].pipe.tokenizer.chat_template = "{{ raise_exception('no " + "such turn') }}" + template
    found = client.post("/v1/chat/completions", json=chat(messages=raises)[1])
    client.served["writer"].pipe.tokenizer.chat_template = template
    assert found.status_code == 400 and "rejects the conversation: no such turn" in found.json()["error"]["message"]

    def fault(*arguments, **options):
        raise RuntimeError("a secret path")

    with monkeypatch.context() as patched:
        patched.setattr("jaxformer.serving.completions.wanted", fault)
        found = client.post("/v1/completions", json=completion()[1])
        assert found.status_code == 500 and "secret" not in found.text
    with monkeypatch.context() as patched:
        patched.setattr("jaxformer.generation.slots.advance", fault)
        found = client.post("/v1/completions", json=completion()[1])
        assert found.status_code == 500 and found.json()["error"]["code"] == "internal_error"
    assert post(client, "/v1/completions", model="writer", prompt="a")["choices"][0]["finish_reason"]


def test_keys_sizes_queues_and_times_are_limited(folders):
    limits = Limits(slots=1, waiting=1, seconds=0.3, body=2000)
    with models.client(folders, limits, ["writer"], key="word", origins=["https://page.org"]) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            found = client.get("/v1/models", headers=headers)
            assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
        client.headers["Authorization"] = "Bearer word"
        assert client.get("/metrics").status_code == 200
        large = client.post("/v1/completions", json=completion(prompt="a" * 3000)[1])
        assert large.status_code == 413 and "expected at most 2000" in large.json()["error"]["message"]
        streamed = client.post("/v1/completions", content=iter([b'{"model": "', b"a" * 3000, b'"}']))
        assert streamed.status_code == 413
        asked = {"Origin": "https://page.org", "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/completions", headers=asked).headers["access-control-allow-origin"]
        held, release = threading.Event(), threading.Event()

        def hold(event):
            held.set()
            return release.wait(60)

        client.served["writer"].scheduler.submit(Job([5], NEUTRAL._replace(max_new_tokens=9), hold))
        assert held.wait(60)
        statuses = []
        waits = threading.Thread(
            target=lambda: statuses.append(client.post("/v1/completions", json=completion()[1]).status_code)
        )
        waits.start()
        while not client.served["writer"].scheduler.waiting:
            time.sleep(0.01)
        full = client.post("/v1/completions", json=completion()[1])
        assert full.status_code == 429 and full.json()["error"]["type"] == "rate_limit_error"
        time.sleep(0.4)
        release.set()
        waits.join(60)
        assert statuses == [504]
        page = client.get("/metrics").text
        assert 'jaxformer_requests_total{route="/v1/completions",status="429"} 1.0' in page


def test_no_page_of_another_origin_may_ask_by_default(client):
    asked = {"Origin": "https://page.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/v1/completions", headers=asked).headers
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=asked).headers


def test_the_pages_of_the_demo_write_through_the_scheduler(client, folders):
    """The same text as the pipeline by itself; what the scheduler does not know is left to the pipeline."""
    served = client.served["writer"]
    pieces, alone = scheduled(served), jaxformer.pipeline(model=folders["writer"]).pieces
    for item, options in (
        ("the old mill", {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "seed": 3}),
        (HELLO, {"do_sample": False}),
        ("the old mill", {"do_sample": False, "no_repeat_ngram_size": 2}),
    ):
        before = served.scheduler.counts.written_tokens
        found = list(pieces(item, max_new_tokens=12, **options))
        expected = list(alone(item, max_new_tokens=12, **options))
        assert "".join(piece.text for piece in found) == "".join(piece.text for piece in expected)
        assert found[-1].finish_reason == expected[-1].finish_reason
        assert (served.scheduler.counts.written_tokens > before) == ("no_repeat_ngram_size" not in options)


def test_settings_of_the_model_that_the_server_does_not_follow_are_said(tmp_path):
    folder = models.tiny.save(tmp_path / "writer", "writes")
    (folder / "generation_config.json").write_text(json.dumps({"no_repeat_ngram_size": 2, "temperature": 0.5}))
    with pytest.warns(UserWarning, match="the server leaves out no_repeat_ngram_size"):
        served = open_served([str(folder)], models.LIMITS)
    served["writer"].close(finish=False)


def test_the_time_to_the_first_token_and_between_tokens_is_counted(client):
    def counts():
        lines = client.get("/metrics").text.splitlines()
        found = [line for line in lines if "_token_seconds_count" in line and 'model="writer"' in line]
        return {line.split("{")[0]: float(line.split()[-1]) for line in found}

    before = counts()
    chunks(client, "/v1/chat/completions", model="writer", messages=HELLO, max_tokens=9, ignore_eos=True)
    first, later = "jaxformer_first_token_seconds_count", "jaxformer_next_token_seconds_count"
    assert counts()[first] - before.get(first, 0) == 1 and counts()[later] - before.get(later, 0) >= 2
