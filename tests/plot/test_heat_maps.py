import warnings
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer import plot
from jaxformer.plot import figures, heat_maps
from jaxformer.schema import UserError

TOKENS = ["The", "Ġcat", "Ġsat", "."]


def weights(heads, queries, keys=None, seed=0):
    scores = np.random.default_rng(seed).normal(size=(heads, queries, keys or queries))
    return np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)


def shown(figure):
    """The axes of the pictures, without that of the colour bar."""
    return [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]


def ticks(axes, side):
    return [label.get_text() for label in getattr(axes, f"get_{side}ticklabels")()]


def titles(figure):
    return [axes.get_title() for axes in shown(figure)]


def test_a_head_each_with_its_weights_and_tokens():
    array = weights(3, 4)
    figure = plot.attention(array, TOKENS, title="Layer 1")
    assert titles(figure) == ["head 0", "head 1", "head 2"]
    assert figure.get_suptitle() == "Layer 1"
    for axes, head in zip(shown(figure), array, strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), head, rtol=1e-6)
        assert axes.images[0].get_clim() == (0.0, pytest.approx(array.max()))
        assert ticks(axes, "x") == ["The", "·cat", "·sat", "."]
    assert [ticks(axes, "y") for axes in shown(figure)] == [["The", "·cat", "·sat", "."], [], []]
    assert (figure.get_supylabel(), figure.get_supxlabel()) == ("query", "key")


def test_heads_are_picked_and_another_text_has_its_own_tokens():
    array = jnp.asarray(weights(6, 2, 3))
    figure = plot.attention(array, ["a", "b"], ["x", "y", "z"], heads=[4, 1])
    assert titles(figure) == ["head 4", "head 1"]
    np.testing.assert_allclose(shown(figure)[0].images[0].get_array(), array[4], rtol=1e-6)
    assert ticks(shown(figure)[0], "x") == ["x", "y", "z"] and ticks(shown(figure)[0], "y") == ["a", "b"]


def test_the_lowest_head_of_each_column_names_the_keys():
    figure = plot.attention(weights(7, 2), ["a", "b"])
    assert [bool(ticks(axes, "x")) for axes in shown(figure)] == [False, False, False, True, True, True, True]
    assert [bool(ticks(axes, "y")) for axes in shown(figure)] == [True, False, False, False, True, False, False]


def test_long_texts_have_as_many_labels_as_fit():
    figure = plot.attention(weights(1, 120), [f"t{i}" for i in range(120)])
    names = ticks(shown(figure)[0], "y")
    assert names[:2] == ["t0", "t2"] and len(names) == 60
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in shown(figure)[0].get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes)), "labels overlap"


@pytest.mark.parametrize(
    ("array", "tokens", "heads", "message"),
    [
        (weights(1, 4)[0], TOKENS, None, r"the shape \(4, 4\), expected \[N, T, S\]"),
        (weights(2, 4), TOKENS[:3], None, "4 queries and 3 tokens are given, expected as many"),
        (weights(2, 4, 5), TOKENS, None, "5 keys and 4 tokens are given, expected as many"),
        (weights(2, 4), TOKENS, [2], r"heads is \[2\], expected numbers from 0 to 1"),
        (weights(2, 4), TOKENS, [], r"heads is \[\]"),
    ],
)
def test_what_does_not_fit_is_said(array, tokens, heads, message):
    with pytest.raises(UserError, match=message):
        plot.attention(array, tokens, heads=heads)


def test_lines_are_as_dark_as_weights():
    array = weights(1, 2, 3)[0]
    axes = plot.attention_lines(array, ["a", "b"], ["x", "y", "z"]).axes[0]
    lines = axes.collections[0]
    np.testing.assert_allclose(lines.get_alpha(), array.reshape(-1), rtol=1e-6)
    ends = np.array(lines.get_segments())
    assert ends.shape == (6, 2, 2) and ends[5].tolist() == [[0, 1], [1, 2]]
    assert [text.get_text() for text in axes.texts] == ["a", "b", "x", "y", "z"]


def test_a_mask_and_a_boolean_array_are_the_same_picture():
    expected = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]])
    for figure in (
        plot.mask(F.Mask(causal=True, window=2), length=3),
        plot.mask(F.Mask(causal=True, window=2), ["a", "b", "c"]),
        plot.mask(expected.astype(bool)),
    ):
        np.testing.assert_array_equal(shown(figure)[0].images[0].get_array(), expected)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["may attend", "may not"]
    assert ticks(shown(plot.mask(expected == 1))[0], "x") == ["0", "1", "2"]
    np.testing.assert_array_equal(shown(plot.mask(F.Mask(), length=2))[0].images[0].get_array(), np.ones((2, 2)))


def test_a_mask_of_a_batch_has_a_picture_for_each_row():
    segments = jnp.array([[1, 1, 2], [1, 1, 0]])
    figure = plot.mask(F.Mask(query_segments=segments, key_segments=segments), list("abc"))
    assert titles(figure) == ["row 0", "row 1"]
    np.testing.assert_array_equal(shown(figure)[1].images[0].get_array(), [[1, 1, 0], [1, 1, 0], [0, 0, 0]])


def test_a_mask_without_a_length():
    with pytest.raises(UserError, match="a Mask has no length of its own, expected length or tokens"):
        plot.mask(F.Mask(causal=True))
    with pytest.raises(UserError, match=r"the mask has the shape \(3,\), expected"):
        plot.mask(np.ones(3, bool))


def test_positions_of_every_kind():
    table = F.sinusoidal_positions(jnp.arange(5), 6)
    figure = plot.positions(table)
    np.testing.assert_allclose(shown(figure)[0].images[0].get_array(), table)
    assert (figure.get_supylabel(), figure.get_supxlabel()) == ("position", "dimension")

    angles = F.rotary_angles(jnp.arange(5)[None], F.rotary_frequencies(8))
    figure = plot.positions(angles)
    assert titles(figure) == ["cos of the angle", "sin of the angle"]
    first = shown(figure)[0].images[0].get_array()
    np.testing.assert_allclose(first, np.cos(np.arange(5)[:, None] * 10_000.0 ** (-np.arange(0, 8, 2) / 8)), atol=1e-6)

    bias = F.alibi_bias(F.Mask().distance(4, 4), 3)
    figure = plot.positions(bias)
    assert titles(figure) == ["head 0", "head 1", "head 2"]
    np.testing.assert_allclose(shown(figure)[1].images[0].get_array(), bias[0, 1])
    assert shown(figure)[1].images[0].get_clim() == pytest.approx((float(bias.min()), -float(bias.min())))

    with pytest.raises(UserError, match=r"the shape \(2, 3, 4, 4\), expected \[T, D\]"):
        plot.positions(np.ones((2, 3, 4, 4)))


def test_counts_and_shares_of_a_confusion_matrix():
    figure = plot.confusion_matrix(["spam", "ham"], np.array([[3, 1], [0, 0]]))
    axes = figure.axes[0]
    assert ticks(axes, "y") == ticks(axes, "x") == ["spam", "ham"]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0", "0"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    with pytest.raises(UserError, match=r"the shape \(2, 2\), expected \(3, 3\) for 3 labels"):
        plot.confusion_matrix(["a", "b", "c"], np.eye(2))


def test_classes_that_no_font_has_are_numbers(monkeypatch):
    monkeypatch.setattr(heat_maps, "fonts_for", lambda text: (["DejaVu Sans"], ["정"]))
    axes = plot.confusion_matrix(["정치", "경제"], np.eye(2, dtype=int)).axes[0]
    assert ticks(axes, "y") == ["0", "1"]
    assert axes.get_title() == "classes are numbered in the order of the labels"


def test_many_classes_have_fewer_names():
    axes = plot.confusion_matrix([str(i) for i in range(130)], np.eye(130, dtype=int)).axes[0]
    assert ticks(axes, "y") == [str(i) for i in range(0, 130, 3)]
    assert len(axes.texts) == 0


def test_korean_is_drawn_without_a_box_for_a_letter(tmp_path):
    names = ["나는", "책을", "읽었다", "."]
    lacking = figures.fonts_for("".join(names))[1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure = plot.attention(weights(2, 4), names, title="주의")
        figure.savefig(tmp_path / "a.png")
    # Where no font is installed the characters are named; else nothing is said, by matplotlib neither.
    assert [str(w.message)[:21] for w in said][:1] == (["no installed font has"] if lacking else [])
    assert ticks(shown(figure)[0], "y") == names
