"""The book: every chapter runs from top to bottom, and the notebooks of both languages hold its code."""

import importlib.util
import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BOOK = Path(__file__).parents[2] / "docs" / "book"
NAMES = sorted(path.stem for path in (BOOK / "chapters").glob("*.py"))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A chapter trains for a minute, and so compiles as a reader's does."""
    for name in ("XLA_FLAGS", "JAX_ENABLE_COMPILATION_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def book():
    spec = importlib.util.spec_from_file_location("book_build", BOOK / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_chapter_has_its_prose_and_nothing_else():
    assert NAMES == sorted(path.stem for path in (BOOK / "messages").glob("*.yaml")) != []
    for language in ("en", "ko"):
        assert sorted(path.stem for path in (BOOK / language).glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_runs_and_its_notebooks_are_its_own(book, name):
    import nbformat

    messages = book.read_messages(name)
    executed = book.execute(name)
    assert any(cell.get("outputs") for cell in executed.cells)
    for language in book.LANGUAGES:
        committed = nbformat.read(BOOK / language / f"{name}.ipynb", as_version=4)
        expected = book.in_language(executed, messages, language)
        assert [(c.cell_type, c.source) for c in committed.cells] == [(c.cell_type, c.source) for c in expected.cells]
        # Numbers may differ in their last digits on another machine; what is said around them may not.
        for ours, theirs in zip(expected.cells, committed.cells, strict=True):
            texts = ["".join(o.get("text", "") for o in cell.get("outputs", [])) for cell in (ours, theirs)]
            assert len({re.sub(r"[-\d.e+%]+", "#", text.split("\n")[0])[:20] for text in texts}) == 1, texts


def test_prose_that_is_missing_or_idle_is_named(book, tmp_path, monkeypatch):
    monkeypatch.setattr(book, "CHAPTERS", tmp_path)
    monkeypatch.setattr(book, "MESSAGES", tmp_path)
    (tmp_path / "a.py").write_text("# %% [markdown]\n# title\n\n# %%\nprint(1)\n")
    (tmp_path / "a.yaml").write_text("title: {en: Title}\n")
    with pytest.raises(ValueError, match=r"lacks title\.ko"):
        book.read_messages("a")
    (tmp_path / "a.yaml").write_text("title: {en: Title, ko: 제목}\nother: {en: a, ko: b}\n")
    with pytest.raises(ValueError, match="has other, which"):
        book.read_messages("a")
    (tmp_path / "a.yaml").write_text("title: {en: Title, ko: 제목}\n")
    notebook = book.execute("a")
    korean = book.in_language(notebook, book.read_messages("a"), "ko")
    assert korean.cells[0].source == "제목" and korean.cells[1].outputs[0].text == "1\n"


def test_a_chapter_that_does_not_exist(book, capsys):
    assert book.main(["99_nothing"]) == 2
    assert "there is no chapter '99_nothing'" in capsys.readouterr().err
