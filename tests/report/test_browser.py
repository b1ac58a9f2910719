"""The pages in a real browser, Debian's chromium without a window: drawn, readable, and asking for nothing."""

import pytest

from jaxformer import report
from tests.report.test_page import PICTURES, RECORDS

pytestmark = pytest.mark.demo

VISITORS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}


@pytest.fixture(params=VISITORS)
def visit(browser, request):
    """Opens a file; at the end nothing else was asked for, and the console has no warning and no error."""
    context = browser.new_context(**VISITORS[request.param])
    asked, said = [], []
    context.on("request", lambda found: asked.append(found.url))

    def opener(path):
        page = context.new_page()
        page.on("console", lambda message: said.append((message.type, message.text)))
        page.on("pageerror", lambda error: said.append(("error", str(error))))
        page.goto(path.as_uri())
        page.wait_for_function("Bokeh.documents.length > 0 && Bokeh.documents.every((d) => d.is_idle)")
        return page

    yield opener
    context.close()
    assert len(asked) == 1 and asked[0].startswith("file://")
    assert [entry for entry in said if entry[0] in ("warning", "error")] == []


def write(tmp_path):
    merged = {name: value for pictures in PICTURES.values() for name, value in pictures.items()}
    pieces = [{"text": "한국어 " * 40, "loss": 2.0}, {"text": "x" * 400, "trained": True}]
    row = {"passages": [{"title": "text", "pieces": pieces}]}
    contents = report.Contents.model_validate(
        {"pictures": {"step": 2, **merged}, "losses": [row], "losses_step": 2, "examples": [row]}
        | {"answers": [{"step": 2, "values": {"text": "y" * 400}}], "facts": {"command": "z" * 400}}
    )
    records = RECORDS + [{"step": step, "split": "train", "loss": 3.0 / step} for step in range(3, 40)]
    records += [{"step": step, "split": "eval", "score": 0.5, "kl": float(step)} for step in (1, 2)]
    path = tmp_path / "report.html"
    path.write_text(report.run_page("한국어", "training", records, contents, "seed: 0\n"), encoding="utf-8")
    return path


def test_the_page_is_drawn_and_fits(visit, tmp_path):
    page = visit(write(tmp_path))
    assert page.locator("h1").inner_text() == "한국어"
    figures = page.evaluate("Bokeh.documents.flatMap((d) => d.roots()).length")
    assert figures == page.locator(".grid > div").count() > 6
    for place in page.locator(".grid > div").all():
        box = place.bounding_box()
        assert box["width"] > 200 and box["height"] > 200
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    text = page.evaluate("Bokeh.documents[0].roots()[0].title.text_color")
    assert text == ("#e6e9ed" if dark else "#1b1f24")


def test_the_slider_smooths(visit, tmp_path):
    """An exponential mean without the bias of its beginning, by hand."""
    page = visit(write(tmp_path))
    page.locator("#smoothing").fill("0.5")
    line = "Bokeh.documents[0].roots()[0].renderers.find((r) => r.glyph.y.field === 'smooth')"
    smooth = page.evaluate(f"Array.from({line}.data_source.data.smooth)")
    first, third = 3.0, 1.0  # the second was not finite, and is a gap
    assert smooth[0] == pytest.approx(first) and smooth[2] == pytest.approx((0.5 * first * 0.5 + 0.5 * third) / 0.75)


def test_runs_beside_each_other(visit, tmp_path):
    path = tmp_path / "comparison.html"
    rows = [{"run": name, "best loss": "1.0"} for name in ("a", "b")]
    runs = {"a": RECORDS, "b": [{**record, "loss": 1.0} for record in RECORDS]}
    path.write_text(report.comparison_page(runs, rows, {"seed": {"a": 0, "b": 1}}), encoding="utf-8")
    page = visit(path)
    assert page.locator("h1").inner_text() == "2 runs"
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
