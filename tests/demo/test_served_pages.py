"""The demo's pages on a server, in a real browser: what is typed is written in the server's slots."""

import httpx
import pytest

from tests.pipelines import tiny
from tests.serving.test_clients import Server

pytestmark = pytest.mark.demo


def test_a_conversation_goes_through_the_server(tmp_path, browser):
    started = Server("--model", f"writer={tiny.save(tmp_path / 'writer', 'writes')}", "--demo")
    try:
        page = browser.new_context().new_page()
        page.goto(f"{started.url}/demo/writer")
        box = page.get_by_test_id("textbox").last
        box.fill("rain?")
        box.press("Enter")
        page.get_by_test_id("bot").first.wait_for()
        counted = 'jaxformer_tokens_total{kind="written",model="writer"}'
        for _ in range(100):
            lines = httpx.get(f"{started.url}/metrics").text.splitlines()
            written = next(float(line.split()[-1]) for line in lines if line.startswith(counted))
            if written:
                break
            page.wait_for_timeout(100)
        assert written > 0
        assert httpx.get(f"{started.url}/v1/models").json()["data"][0]["id"] == "writer"
    finally:
        code, said = started.stop()
    assert code == 0, said
