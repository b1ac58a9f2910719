"""Makes docs/pictures/report_NAME.png from the pages of runs, opened in a real browser.

python docs/pictures/make_reports.py gpt=runs/gpt_nano korean=runs/korean_topics ner=runs/klue_ner ppo=runs/ppo

Prints for each page its size, the requests it made and what the browser's console said of errors. Needs playwright and
Debian's chromium.
"""

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

PICTURES = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
DESKTOP = {"viewport": {"width": 1180, "height": 1240}}
PHONE = {"viewport": {"width": 390, "height": 1240}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}


def photograph(browser: Browser, path: Path, options: dict[str, Any]) -> tuple[Image.Image, list[str], list[str]]:
    """Opens a page; returns what is seen, the addresses it asked for, and the errors on the console."""
    page = browser.new_context(**options).new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda m: said.append(m.text) if m.type in ("warning", "error") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_function("Bokeh.documents.every((d) => d.is_idle)")
    page.wait_for_timeout(500)
    return Image.open(io.BytesIO(page.screenshot())), [url for url in asked if not url.startswith("file://")], said


def main() -> None:
    """Opens each page on a desktop and, in the dark, on a phone; writes both beside each other."""
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for argument in sys.argv[1:]:
            name, _, folder = argument.partition("=")
            path = (Path(folder) / "report.html").resolve()
            found = [photograph(browser, path, options) for options in (DESKTOP, PHONE)]
            wide, narrow = (shot for shot, _, _ in found)
            both = Image.new("RGB", (wide.width + narrow.width + 20, max(wide.height, narrow.height)), "#c8ccd2")
            both.paste(wide, (0, 0))
            both.paste(narrow, (wide.width + 20, 0))
            both.quantize(96).save(PICTURES / f"report_{name}.png", optimize=True)
            asked, said = ([text for shot in found for text in shot[place]] for place in (1, 2))
            print(f"{name}: {path.stat().st_size / 1e6:.2f} MB, {len(asked)} requests, {len(said)} errors {said or ''}")


if __name__ == "__main__":
    main()
