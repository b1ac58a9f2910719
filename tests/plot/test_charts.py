import numpy as np
import pytest

from jaxformer import plot
from jaxformer.schema import UserError
from jaxformer.tokenizers import TokenizerConfig, encode, train_tokenizer, vocabulary_size


def bars(figure):
    """Names and lengths of the bars from the top."""
    axes = figure.axes[0]
    assert axes.yaxis_inverted()
    return [label.get_text() for label in axes.get_yticklabels()], [bar.get_width() for bar in axes.patches]


def test_bars_of_probabilities_and_of_logits():
    probabilities = np.array([0.1, 0.6, 0.05, 0.25])
    for values in (probabilities, np.log(probabilities) + 3, np.log(probabilities)):
        names, lengths = bars(plot.next_token_probabilities(values, list("abcd"), top=3))
        assert names == ["b", "d", "a"]
        np.testing.assert_allclose(lengths, [0.6, 0.25, 0.1])
    figure = plot.next_token_probabilities(probabilities, list("abcd"))
    assert [text.get_text() for text in figure.axes[0].texts] == ["60.0%", "25.0%", "10.0%", "5.0%"]


def test_logits_that_are_forbidden_have_no_probability():
    names, lengths = bars(plot.next_token_probabilities([0.0, -np.inf, 0.0], ["a", "b", "c"]))
    assert names == ["a", "c", "b"] and lengths == [0.5, 0.5, 0.0]


def test_tokens_of_a_tokenizer_are_texts():
    tokenizer = train_tokenizer(TokenizerConfig(type="bpe", vocab_size=300), ["안녕 하세요 안녕 하세요 the the"] * 9)
    size = vocabulary_size(tokenizer)
    chosen = [encode(tokenizer, " the")[0], encode(tokenizer, "안녕")[-1], size]
    logits = np.full(size + 1, -9.0)
    logits[chosen] = [3.0, 2.0, 1.0]
    names, _ = bars(plot.next_token_probabilities(logits, tokenizer, top=3))
    assert names[0] == "·the" and "Ġ" not in names[1] and names[2] == f"#{size}", "a spare row has no token"


def test_not_one_place():
    with pytest.raises(UserError, match=r"the shape \(2, 3\), expected \[V\]"):
        plot.next_token_probabilities(np.zeros((2, 3)), ["a", "b", "c"])
    with pytest.raises(UserError, match="without nan"):
        plot.next_token_probabilities([np.nan, 1.0], ["a", "b"])


def test_embeddings_are_in_the_plane_of_their_largest_differences():
    random = np.random.default_rng(0)
    plane = np.linalg.qr(random.normal(size=(9, 2)))[0]
    flat = random.normal(size=(12, 2)) * [5.0, 2.0]
    vectors = flat @ plane.T + 3.0 + 1e-6 * random.normal(size=(12, 9))
    figure = plot.embeddings(vectors, [f"w{i}" for i in range(12)])
    axes = figure.axes[0]
    points = np.asarray(axes.collections[0].get_offsets())
    distances = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)  # noqa: E731
    np.testing.assert_allclose(distances(points), distances(flat), atol=1e-4)
    assert np.var(points[:, 0]) > np.var(points[:, 1])
    assert [text.get_text() for text in axes.texts] == [f"w{i}" for i in range(12)]
    share = np.var(points[:, 0]) / np.var(points, axis=0).sum()
    assert axes.get_xlabel() == f"first principal component ({share:.0%} of the variance)"


def test_names_do_not_cover_each_other():
    """Three points so near to each other that names on one side would."""
    vectors = np.array([[0.0, 0.0], [0.06, 0.01], [0.03, 0.0], [9.0, 1.0], [-9.0, 1.0], [0.0, 9.0]])
    figure = plot.embeddings(vectors, ["first name", "second name", "third name", "d", "e", "f"])
    texts = figure.axes[0].texts
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert len({text.get_position() for text in texts[:3]}) == 3


def test_names_that_repeat_are_classes():
    figure = plot.embeddings(np.random.default_rng(0).normal(size=(6, 4)), ["cat", "dog", "cat", "cat", "dog", "cat"])
    axes = figure.axes[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "dog"]
    assert [len(part.get_offsets()) for part in axes.collections] == [4, 2]
    assert len(axes.texts) == 0


@pytest.mark.parametrize("shape", [(1, 4), (3,), (3, 4)])
def test_too_few_vectors_or_labels(shape):
    with pytest.raises(UserError, match=r"expected \[K, D\] and K labels"):
        plot.embeddings(np.ones(shape), ["a"])


def test_curves_of_records_and_of_arrays():
    records = [
        {"step": 10, "split": "train", "loss": 3.0, "learning_rate": 0.1},
        {"step": 10, "split": "validation", "loss": 3.5},
        {"step": 20, "split": "train", "loss": None, "learning_rate": 0.2},
        {"step": 30, "split": "train", "loss": 1.0, "learning_rate": 0.3},
    ]
    figure = plot.learning_curves({"nano": records, "other": ([1, 2], np.array([5.0, 4.0]))})
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["nano, train", "nano, validation", "other"]
    np.testing.assert_array_equal(lines[0].get_xydata(), [[10, 3], [20, np.nan], [30, 1]])
    np.testing.assert_array_equal(lines[1].get_xydata(), [[10, 3.5]])
    np.testing.assert_array_equal(lines[2].get_xydata(), [[1, 5], [2, 4]])
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert lines[1].get_linestyle() == "--"
    rates = plot.learning_curves({"nano": records}, key="learning_rate").axes[0]
    assert rates.get_ylabel() == "learning_rate" and rates.get_lines()[0].get_label() == "nano"


def test_a_run_without_the_value():
    with pytest.raises(UserError, match=r"run 'a' has no 'accuracy', expected one of its keys: loss"):
        plot.learning_curves({"a": [{"step": 1, "split": "train", "loss": 1.0}]}, key="accuracy")
    with pytest.raises(UserError, match=r"steps \(2,\) and values \(3,\), expected as many"):
        plot.learning_curves({"a": ([1, 2], [1, 2, 3])})
    with pytest.raises(UserError, match="no runs are given"):
        plot.learning_curves({})
