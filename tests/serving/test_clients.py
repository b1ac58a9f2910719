"""The server as its clients see it: a process, the openai package, the harness over HTTP, curl, and hostile ones."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from jaxformer.cli import run
from jaxformer.evaluation.harness import JaxformerLM
from tests.evaluation import tasks
from tests.serving import models

pytestmark = pytest.mark.serve

ROOT = Path(__file__).parent.parent.parent
HELLO = [{"role": "user", "content": "rain"}]


class Server:
    """A server in a process of its own."""

    def __init__(self, *arguments, **environment):
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self.port = trial.getsockname()[1]
        command = [sys.executable, "-m", "jaxformer", "serve", "--port", str(self.port), *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
        )
        self.url = f"http://127.0.0.1:{self.port}"
        end = time.monotonic() + 200
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < end, self.process.communicate()[0]
            time.sleep(0.2)

    def answers(self):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.url}/health", timeout=20).status == 200
        return False

    def resident(self):
        """Bytes of memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return models.save(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folders):
    started = Server(
        *[part for name, folder in folders.items() for part in ("--model", f"{name}={folder}")],
        *("--slots", "4", "pooling=mean", "normalize=true"),
    )
    yield started
    code, said = started.stop()
    assert code == 0, said
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def client(server):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_the_openai_package_completes(client):
    assert {model.id for model in client.models.list()} == set(models.TASKS)
    asked = {"model": "writer", "prompt": "the old mill", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2, echo=True)
    choice = whole.choices[0]
    assert choice.text.startswith("the old mill") and whole.usage.completion_tokens <= 12
    assert len(choice.logprobs.tokens) == whole.usage.total_tokens
    plain = client.completions.create(**asked)
    streamed = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(streamed)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == plain.choices[0].text
    assert chunks[-1].usage == plain.usage
    drawn = client.completions.create(
        **{**asked, "temperature": 1.0}, n=3, seed=5, stop=["zzz"], logit_bias={"40": -100}
    )
    assert len(drawn.choices) == 3


def test_the_openai_package_converses(client):
    asked = {"model": "writer", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    with client.chat.completions.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
    assert "".join(deltas) == whole.choices[0].message.content
    schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}
    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": {**schema, "additionalProperties": False}}}
    found = client.chat.completions.create(**{**asked, "max_tokens": 40}, response_format=form)
    assert json.loads(found.choices[0].message.content)["wet"] in (True, False)
    tools = [
        {"type": "function", "function": {"name": "look", "parameters": {**schema, "additionalProperties": False}}}
    ]
    found = client.chat.completions.create(**{**asked, "max_tokens": 60}, tools=tools, tool_choice="required")
    [call] = found.choices[0].message.tool_calls
    assert call.function.name == "look" and json.loads(call.function.arguments)["wet"] in (True, False)


def test_the_openai_package_embeds_and_raises_its_own_errors(client, server):
    import openai

    packed = client.embeddings.create(model="encoder", input=["rain", "the old mill"])
    plain = client.embeddings.create(model="encoder", input=["rain", "the old mill"], encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    for error, asked in (
        (openai.NotFoundError, {"model": "other", "prompt": "a"}),
        (openai.BadRequestError, {"model": "writer", "prompt": "a " * 400}),
    ):
        with pytest.raises(error) as caught:
            client.completions.create(**asked)
        assert caught.value.body["message"] and caught.value.body["type"]


def test_the_harness_scores_over_http_as_in_the_same_process(server, folders, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=tasks.write(tmp_path), include_defaults=False)
    options = {"tasks": ["tiny_choice", "tiny_letter"], "task_manager": manager, "bootstrap_iters": 0}
    ours = lm_eval.simple_evaluate(JaxformerLM(folders["writer"]), **options)
    asked = {
        "model": "writer",
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": folders["writer"],
        "num_concurrent": 4,
        "max_length": 128,
    }
    found = lm_eval.simple_evaluate("local-completions", asked, **options)
    for name in options["tasks"]:
        assert found["results"][name]["acc,none"] == ours["results"][name]["acc,none"]
        for one, other in zip(found["samples"][name], ours["samples"][name], strict=True):
            for (likelihood, greedy), (expected, other_greedy) in zip(
                [answer[0] for answer in one["resps"]], [answer[0] for answer in other["resps"]], strict=True
            ):
                assert likelihood == pytest.approx(expected, abs=1e-4, rel=1e-5) and greedy == other_greedy


def test_the_lines_of_the_page_work(server):
    """Every curl line of docs/serving.md, with the names of the models that are served here."""
    blocks = re.findall(r"```sh\n(curl .*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        line = block.replace("localhost:8000", f"127.0.0.1:{server.port}").replace('"dpo"', '"writer"')
        found = subprocess.run(
            line.replace("curl ", "curl -sS --fail-with-body "), shell=True, capture_output=True, text=True, timeout=60
        )
        assert found.returncode == 0, found.stdout + found.stderr
        if "-N" in line:
            assert found.stdout.rstrip().endswith("data: [DONE]")
        else:
            assert "error" not in json.loads(found.stdout)


def test_ten_thousand_requests_leave_memory_flat(server):
    """Texts, conversations, vectors, errors and streams from eight clients."""
    ask = {"model": "writer", "prompt": "the old mill", "max_tokens": 4}
    bodies = [
        ("completions", ask),
        ("completions", {**ask, "stream": True}),
        ("completions", {**ask, "prompt": 7}),
        ("chat/completions", {"model": "writer", "messages": HELLO, "max_tokens": 3}),
        ("embeddings", {"model": "encoder", "input": "rain"}),
    ]

    def some(seed):
        chosen = random.Random(seed)
        with httpx.Client(base_url=f"{server.url}/v1/", timeout=60) as session:
            for _ in range(250):
                path, body = chosen.choice(bodies)
                assert session.post(path, json=body).status_code == (400 if body.get("prompt") == 7 else 200)

    sizes = []
    with ThreadPoolExecutor(8) as pool:
        for part in range(5):  # of 2,000
            list(pool.map(some, range(8 * part, 8 * part + 8)))
            sizes.append(server.resident())
    assert sizes[-1] < sizes[0] + 30 * 2**20, [size >> 20 for size in sizes]


def hostile(server, chosen):
    """One client that means no good; returns nothing."""
    body = json.dumps({"model": "writer", "prompt": "rain", "max_tokens": 50, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    kind = chosen.randrange(8)
    if kind == 0:  # bytes that are no HTTP
        sent = chosen.randbytes(chosen.randrange(1, 400))
    elif kind == 1:  # a body that is cut
        sent = head % len(body) + body[: chosen.randrange(len(body))]
    elif kind == 2:  # a body with some bytes changed
        broken = bytearray(body)
        for _ in range(chosen.randrange(1, 6)):
            broken[chosen.randrange(len(broken))] = chosen.randrange(256)
        sent = head % len(broken) + bytes(broken)
    elif kind == 3:  # values of wrong types
        values = [None, True, -1, 10**30, "", "x" * 3000, [], {}, [[]], float("nan")]
        keys = ["prompt", "max_tokens", "temperature", "stop", "logit_bias", "n", "response_format", "stream", "seed"]
        wrong = {"model": "writer", "prompt": "a", **{key: chosen.choice(values) for key in chosen.sample(keys, 3)}}
        made = json.dumps(wrong).encode()
        sent = head % len(made) + made
    elif kind == 4:  # deep brackets
        made = b"[" * 5000
        sent = head % len(made) + made
    elif kind == 5:  # a large head
        sent = b"GET /health HTTP/1.1\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n"
    else:  # leaves while a text is written, at once or after some of it
        sent = head % len(body) + body
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=10) as link:
        link.sendall(sent)
        if kind == 7:
            link.recv(chosen.randrange(1, 300))
        elif kind != 6:
            link.settimeout(0.05)
            link.recv(1000)


def test_after_each_hostile_client_the_server_answers(server):
    ask = {"model": "writer", "prompt": "the old mill", "max_tokens": 6, "temperature": 0}
    with httpx.Client(base_url=f"{server.url}/v1/", timeout=60) as session:
        expected = session.post("completions", json=ask).json()["choices"]
        # A reader that takes nothing of its stream, all the while.
        slow = socket.create_connection(("127.0.0.1", server.port))
        body = json.dumps({**ask, "prompt": "rain", "max_tokens": 100, "stream": True}).encode()
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        for number in range(500):
            hostile(server, random.Random(number))
            assert session.post("completions", json=ask).json()["choices"] == expected, number
        slow.close()
        end = time.monotonic() + 30
        while 'jaxformer_running{model="writer"} 0.0' not in httpx.get(f"{server.url}/metrics").text:
            assert time.monotonic() < end, "a slot was not freed"
            time.sleep(0.1)


def test_a_signal_lets_what_runs_finish(folders):
    started = Server("--model", f"writer={folders['writer']}", JAXFORMER_API_KEY="word")
    headers = {"Authorization": "Bearer word"}
    asked = {"model": "writer", "prompt": "rain", "max_tokens": 120, "ignore_eos": True, "stream": True}
    got, begun = [], threading.Event()

    def read():
        with httpx.stream("POST", f"{started.url}/v1/completions", json=asked, headers=headers, timeout=60) as answer:
            for line in answer.iter_lines():
                got.append(line)
                begun.set()

    assert httpx.get(f"{started.url}/v1/models").status_code == 401
    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    code, said = started.stop()
    reader.join(60)
    assert got[-2 if not got[-1] else -1] == "data: [DONE]" and code == 0, said


def test_what_is_wrong_with_the_command_is_said_in_one_line(folders, server, tmp_path, capsys):
    def failing(*arguments):
        assert run("serve", arguments) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        return said

    model = ["--model", folders["writer"]]
    assert "is not available" in failing(*model, "--port", str(server.port))
    assert "two models are called 'writer'" in failing(*model, *model, "--port", "0")
    assert "--slots is 0, expected more than 0" in failing(*model, "--slots", "0")
    assert "context is 9999, expected 2 to 128" in failing(*model, "--context", "9999", "--port", "0")
    assert "no model has the option 'polling'" in failing(*model, "polling=mean", "--port", "0")
    assert "holds no key" in failing(*model, "--api-key-file", os.devnull, "--port", "0")
    assert "is a model for" in failing("--model", models.tiny.save(tmp_path / "tags", "tags").as_posix(), "--port", "0")
