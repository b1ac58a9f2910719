"""The documentation site: built without a warning, links lead somewhere, a real browser asks for nothing else."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "start": ("index.html", "From nothing to a trained model"),
    "notebook": ("book/en/01_language_model.html", "What a language model is"),
    "korean": ("book/ko/03_attention.html", "어텐션"),
    "reference": ("api/functional.html", "dot_product_attention"),
    "report": ("report.html", "Look at a run"),
}
SIZES = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}


class _Links(HTMLParser):
    """The addresses and the anchors of a page."""

    def __init__(self):
        super().__init__()
        self.links, self.anchors = [], set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src") if found.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stderr
    return folder


def read(path):
    parser = _Links()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def test_every_link_leads_somewhere(site):
    pages = {path: read(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) > 40
    broken = []
    for path, page in pages.items():
        for link in page.links:
            address, anchor = urldefrag(link)
            address = address.partition("?")[0]
            if address.startswith(("http:", "https:", "mailto:", "data:")) or link == "#":
                continue
            target = (path.parent / unquote(address)).resolve() if address else path
            known = pages[target].anchors if target in pages else set()
            if not target.exists() or (anchor and target in pages and unquote(anchor) not in known):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


@pytest.fixture(params=SIZES)
def visit(browser, request):
    context = browser.new_context(**SIZES[request.param])
    asked, said = [], []
    context.on("request", lambda found: asked.append(found.url))

    def opener(path):
        page = context.new_page()
        page.on("console", lambda message: said.append((message.type, message.text)))
        page.on("pageerror", lambda error: said.append(("error", str(error))))
        page.goto(path.as_uri())
        return page

    yield opener
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert [entry for entry in said if entry[0] == "error"] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_shown_and_fits(site, visit, name):
    file, text = PAGES[name]
    page = visit(site / file)
    assert text in page.locator("article").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    pictures = page.locator("article img").all()
    assert all(picture.evaluate("(image) => image.complete && image.naturalWidth > 0") for picture in pictures)


def test_a_signature_has_its_shapes(site, visit):
    page = visit(site / "api" / "functional.html")
    signature = page.locator("#jaxformer\\.functional\\.attention\\.dot_product_attention").inner_text()
    assert "query: Float[Array, 'B T N H']" in signature


def test_search_finds_without_a_server(site, visit):
    page = visit(site / "search.html")
    page.goto((site / "search.html").as_uri() + "?q=dropout")
    page.wait_for_selector("#search-results li", timeout=20_000)
    assert page.locator("#search-results li").count() > 1
