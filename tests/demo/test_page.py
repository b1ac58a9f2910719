"""The page in a real browser, Debian's chromium without a window: what is typed, what is shown, who is asked."""

import ipaddress
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxformer.cli import run
from jaxformer.demo.page import build_page, launch_options
from tests.demo.models import TEXT, opened

pytestmark = pytest.mark.demo

MAIN = "from jaxformer.cli import main; main()"


@pytest.fixture
def visit(browser):
    """Opens an address; at the end nobody but this machine was asked for anything."""
    asked, context = [], browser.new_context()
    context.on("request", lambda request: asked.append(request.url))

    def opener(address):
        page = context.new_page()
        page.goto(address)
        return page

    yield opener
    context.close()
    assert len(asked) > 10
    assert [
        url for url in asked if not re.match(r"(http://127\.0\.0\.1:\d+/|data:|blob:http://127\.0\.0\.1)", url)
    ] == []


# Hooks cannot be taken away; outside of a test nobody reads the list.
CONNECTIONS = []


def note(event, arguments):
    """Every connection that this process, and so the server in it, opens."""
    if event == "socket.connect" and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        CONNECTIONS.append(arguments[1][0])
    elif event == "socket.getaddrinfo":
        CONNECTIONS.append(arguments[0])


sys.addaudithook(note)


@pytest.fixture
def serve():
    """Serves a pipeline's page; at the end the server has connected to nobody but itself."""
    pages = []
    CONNECTIONS.clear()

    def start(pipe):
        pages.append(build_page(pipe))
        return pages[-1].launch(**launch_options("127.0.0.1", None))[1]

    yield start
    for page in pages:
        page.close(verbose=False)
    hosts = {host.decode() if isinstance(host, bytes) else str(host) for host in CONNECTIONS}
    assert hosts and all(host == "localhost" or ipaddress.ip_address(host).is_loopback for host in hosts), hosts


def press(page, verb, *texts):
    for number, text in enumerate(texts):
        page.get_by_role("textbox").nth(number).fill(text)
    page.get_by_role("button", name=verb, exact=True).click()


def meters(page, count):
    """Every bar's label and value."""
    page.locator("meter").nth(count - 1).wait_for()
    return {bar.get_attribute("aria-label"): float(bar.get_attribute("value")) for bar in page.locator("meter").all()}


def table(page):
    """The rows of the table, once it is filled."""
    page.get_by_test_id("cell-0-0").wait_for()
    cells = {}
    for cell in page.locator("[data-testid^=cell-]").all():
        row, column = map(int, cell.get_attribute("data-testid").split("-")[1:])
        cells.setdefault(row, {})[column] = cell.inner_text().strip()
    return [[cells[row][column] for column in sorted(cells[row])] for row in sorted(cells)]


def marks(page):
    """Every marked part of the text with its label."""
    found = page.locator(".token.highlighted").all()
    return [[mark.locator(f".{part}").text_content() for part in ("text", "label")] for mark in found]


def test_the_command(tmp_path, visit):
    """From the shell to the page: the address that is printed, probabilities, a mistake, Ctrl-C."""
    from playwright.sync_api import expect

    pipe = opened(tmp_path / "film reviews", "text-classification")
    command = [sys.executable, "-c", MAIN, "demo", "--model", pipe.name]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    )
    try:
        said = ""
        while "http" not in said:
            line = server.stdout.readline()
            assert line, said
            said += line.strip()
        page = visit(re.search(r"http://127\.0\.0\.1:\d+/", said)[0])
        expect(page).to_have_title("film reviews · text-classification")
        expect(page.get_by_role("heading", level=1)).to_have_text("film reviews")
        press(page, "Classify", TEXT)
        expected = {answer["label"]: answer["score"] for answer in pipe(TEXT, top_k=None)}
        assert meters(page, 3) == pytest.approx(expected, abs=1e-6)
        press(page, "Classify", " ")
        expect(page.get_by_test_id("toast-text")).to_have_text("the text is empty, expected a text")
        assert page.get_by_text("Gradio").count() == 0
    finally:
        server.send_signal(signal.SIGINT)
        rest = server.communicate(timeout=30)[0]
    assert server.returncode == 0 and "Traceback" not in rest


def test_a_port_that_is_taken(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run("demo", ["--model", "anything", "--port", str(port)]) == 2
    assert re.match(rf"error: 127\.0\.0\.1:{port} is not available .*; leave out --port", capsys.readouterr().err)


def test_entities_are_marked(tmp_path, visit, serve):
    pipe = opened(tmp_path / "tags", "token-classification")
    page = visit(serve(pipe))
    press(page, "Find entities", TEXT)
    rows = table(page)
    found = pipe(TEXT, aggregation_strategy="simple")
    expected = [[TEXT[e["start"] : e["end"]], e["entity_group"]] for e in found]
    assert [row[:2] for row in rows] == expected
    assert [float(row[2]) for row in rows] == pytest.approx([e["score"] for e in found], abs=1e-4)
    assert marks(page) == expected


def test_masks_and_classes(tmp_path, visit, serve):
    fill = opened(tmp_path / "words", "fill-mask")
    page = visit(serve(fill))
    press(page, "Fill", "the old [MASK] stood by a river.")
    expected = {answer["sequence"]: answer["score"] for answer in fill("the old [MASK] stood by a river.")}
    assert meters(page, len(expected)) == pytest.approx(expected, abs=1e-6)
    judge = opened(tmp_path / "nli", "zero-shot-classification")
    page = visit(serve(judge))
    page.get_by_label("Several labels may be right").check()
    press(page, "Classify", TEXT, "rain, river, Ann")
    found = judge(TEXT, ["rain", "river", "Ann"], multi_label=True)
    assert meters(page, 3) == pytest.approx(dict(zip(found["labels"], found["scores"], strict=True)), abs=1e-6)


def test_sentences_and_summaries(tmp_path, visit, serve):
    features = opened(tmp_path / "states", "feature-extraction")
    page = visit(serve(features))
    press(page, "Compare", "rain fell", "the old mill\nbad")
    vectors = {text: features(text, pooling="mean", normalize=True) for text in ("rain fell", "the old mill", "bad")}
    cosines = {text: float(np.dot(vectors["rain fell"], vectors[text])) for text in ("the old mill", "bad")}
    assert {row[0]: float(row[1]) for row in table(page)} == pytest.approx(cosines, abs=1e-4)
    rewrite = opened(tmp_path / "rewrites", "summarization", max_new_tokens=10)
    page = visit(serve(rewrite))
    press(page, "Summarize", TEXT)
    expected = rewrite(TEXT)[0]["summary_text"]
    page.wait_for_function("text => document.querySelectorAll('textarea')[1].value == text", arg=expected)


RECORD = """() => {
    window.seen = [];
    setInterval(() => {
        const value = document.querySelectorAll('textarea')[1].value;
        if (value !== window.seen.at(-1)) window.seen.push(value);
    }, 5);
}"""


def slowed(pipe, seconds):
    """The pipeline, with a rest after each piece, and a list of what was written each time when it ended."""
    pieces, ended = pipe.pieces, []

    def slow(*arguments, **options):
        text = ""
        try:
            for piece in pieces(*arguments, **options):
                text += piece.text
                yield piece
                time.sleep(seconds)
        finally:
            ended.append(text)

    pipe.pieces = slow
    return ended


def test_text_is_streamed_and_can_be_stopped(tmp_path, visit, serve):
    pipe = opened(tmp_path / "writes", "text-generation", max_new_tokens=30, seed=2)
    expected = pipe("the old mill ")[0]["generated_text"]
    ended = slowed(pipe, 0.05)
    page = visit(serve(pipe))
    page.evaluate(RECORD)
    press(page, "Write", "the old mill ")
    page.wait_for_function("text => window.seen.at(-1) == text", arg=expected)
    seen = page.evaluate("window.seen")
    assert len(seen) > 5 and all(b.startswith(a) for a, b in itertools.pairwise(seen))
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Seed").fill("3")
    press(page, "Write", "the old mill ")
    page.wait_for_function(
        "text => window.seen.at(-1).length > 15 && !text.startsWith(window.seen.at(-1))", arg=expected
    )
    page.get_by_role("button", name="Stop").click()
    deadline = time.monotonic() + 10
    while len(ended) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    del pipe.pieces
    other = pipe("the old mill ", seed=3, return_full_text=False)[0]["generated_text"]
    assert len(ended) == 2 and other.startswith(ended[1]) and len(ended[1]) < len(other)


def test_a_conversation(tmp_path, visit, serve):
    pipe = opened(tmp_path / "chat", "text-generation", chat=True, max_new_tokens=16)
    page = visit(serve(pipe))
    said = []
    for number, message in enumerate(["rain?", "why"]):
        said = pipe([*said, {"role": "user", "content": message}])[0]["generated_text"]
        box = page.get_by_test_id("textbox").last
        box.fill(message)
        box.press("Enter")
        reply = page.get_by_test_id("bot").nth(number)
        reply.wait_for()
        page.wait_for_function(
            "([number, text]) => document.querySelectorAll('[data-testid=bot]')[number].innerText.trim() == text",
            arg=[number, said[-1]["content"].strip()],
        )
    assert len(said) == 4 and said[1] != said[3]
