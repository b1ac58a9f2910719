import subprocess
import sys

import numpy as np
import pytest

from jaxformer import plot
from jaxformer.plot import figures
from jaxformer.schema import UserError

PNG = b"\x89PNG"


def test_a_figure_shows_itself_in_a_notebook_and_is_written_like_any_other(tmp_path):
    from matplotlib.figure import Figure

    figure = plot.mask(np.tri(3, dtype=bool))
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(PNG)
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_pyplot_is_not_touched():
    code = (
        "import sys, numpy; from jaxformer import plot; plot.mask(numpy.ones((2, 2), bool))._repr_png_(); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_legend_of_a_small_mask_is_clear_of_a_long_title():
    figure = plot.mask(np.tri(3, dtype=bool), title="each token sees itself and those before")
    figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(figure._suptitle.get_window_extent())


def test_matplotlib_that_is_not_installed(monkeypatch):
    figures._figure_class.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r'matplotlib is needed here and is not installed: pip install "jaxformer\['):
        plot.attention_lines(np.ones((1, 1)), ["a"])
    figures._figure_class.cache_clear()


def test_fonts_together_have_every_character():
    families, missing = figures.fonts_for("entailment é")
    assert len(families) == 1 and missing == []
    assert figures.fonts_for("a\U000e0fff")[1] == [], "not a character that is printed"
    families, missing = figures.fonts_for("a\u0378가")  # not assigned; only the fallback font has a box for it
    assert "\u0378" not in missing, "not printable"


def test_a_character_that_no_font_has_is_told(monkeypatch):
    monkeypatch.setattr(figures, "_characters", lambda file: frozenset(map(ord, "abcdefghijklmnopqrstuvwxyzMAQ")))
    with pytest.warns(
        UserWarning, match="no installed font has ア 한; install one, such as the package fonts-noto-cjk"
    ):
        plot.attention_lines(np.ones((1, 2)), ["한"], ["a", "ア"])


def test_korean_beside_signs_that_a_korean_font_lacks(monkeypatch):
    files = {"default": "abc↵·", "NanumGothic": "한글abc", "NanumMyeongjo": "한글abc", "Noto Sans JP": "語abc"}

    class Entry:
        style, weight = "normal", 400

        def __init__(self, name):
            self.name = self.fname = name

    class Manager:
        class FontProperties:
            @staticmethod
            def get_family():
                return ["default"]

        class fontManager:  # noqa: N801
            ttflist = [Entry(name) for name in files]

        findSystemFonts = staticmethod(list)  # noqa: N815
        findfont = staticmethod(lambda properties: "default")

    monkeypatch.setattr(figures, "need", lambda module: Manager)
    monkeypatch.setattr(figures, "_characters", lambda file: frozenset(map(ord, files[file])))
    assert figures.fonts_for("a↵") == (["default"], [])
    assert figures.fonts_for("a↵ 한") == (["default", "NanumGothic"], [])
    assert figures.fonts_for("한글語ع") == (["default", "NanumGothic", "Noto Sans JP"], ["ع"])


def test_a_dollar_is_no_mathematics(tmp_path):
    figure = plot.attention_lines(np.ones((1, 2)), ["$x$"], ["$", "a_b$c^2$"], title="$5 and $6")
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_parse_math")) if text.get_text()]
    assert {text.get_text() for text in texts} == {"$x$", "$", "a_b$c^2$", "$5 and $6"}
    assert not any(text.get_parse_math() for text in texts)
