import numpy as np
import pytest

from jaxformer.tasks import confusion_matrix


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a picture and gives the figure, whose texts can be read."""
    figures = []
    original = confusion_matrix.need

    def need(module):
        found = original(module)
        if module != "matplotlib.figure":
            return found

        class Kept:
            @staticmethod
            def Figure(**settings):  # noqa: N802
                figures.append(found.Figure(**settings))
                return figures[-1]

        return Kept

    monkeypatch.setattr(confusion_matrix, "need", need)

    def draw(labels, matrix):
        confusion_matrix.confusion_matrix_plot(labels, matrix, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        return figures[-1].axes[0]

    return draw


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_names_and_counts(drawn):
    axes = drawn(["spam", "ham"], np.array([[3, 1], [0, 0]]))
    assert names(axes) == ["spam", "ham"]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0", "0"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])


def test_names_that_no_font_has_are_numbers(drawn, monkeypatch):
    monkeypatch.setattr(confusion_matrix, "_font_for", lambda text: None)
    axes = drawn(["정치", "경제"], np.eye(2, dtype=int))
    assert names(axes) == ["0", "1"]
    assert axes.get_title() == "classes are numbered in the order of the labels"


def test_a_font_is_found_only_if_it_has_every_character():
    assert confusion_matrix._font_for("entailment é") is not None
    assert confusion_matrix._font_for("\U000e0fff") is None, "not a character; only the fallback font has a box for it"


def test_many_classes_have_fewer_names(drawn):
    axes = drawn([str(i) for i in range(130)], np.eye(130, dtype=int))
    assert names(axes) == [str(i) for i in range(0, 130, 3)]
    assert len(axes.texts) == 0
