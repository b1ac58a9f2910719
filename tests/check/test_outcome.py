"""The run of checks: what passes, fails, does not apply, or raises."""

import io
import threading

import numpy as np
import pytest
from rich.console import Console

from jaxformer.check import Checks, DoesNotApplyError, Measured, failures, outcomes, report
from jaxformer.check.compare import difference, unequal_bits
from jaxformer.check.outcome import side_by_side


def checks():
    declared = Checks("model")

    @declared.add("close", cause="a cause", bug="library #1")
    def close(subject):
        return Measured("a | b", subject, 0.5, "at x", ("a note",))

    @declared.add("absent", cause="")
    def absent(subject):
        raise DoesNotApplyError("nothing is there")

    @declared.add("broken", cause="")
    def broken(subject):
        raise KeyError("name")

    return declared


def test_a_difference_within_the_tolerance_passes_and_names_no_cause():
    found = next(outcomes(checks(), 0.5))
    assert found.passed is True
    assert (found.place, found.cause, found.bug) == ("", "", "")


@pytest.mark.parametrize("value", [0.51, float("nan"), float("inf")])
def test_a_larger_difference_or_nan_fails_with_place_cause_and_bug(value):
    found = next(outcomes(checks(), value))
    assert found.passed is False
    assert (found.place, found.cause, found.bug) == ("at x", "a cause", "library #1")


def test_an_error_is_a_failure_that_says_where_and_the_others_run():
    found = list(outcomes(checks(), 0.0))
    assert [outcome.passed for outcome in found] == [True, None, False]
    assert found[1].compared == "nothing is there"
    assert found[2].place.startswith("KeyError: 'name' (broken, ")
    assert failures(found) == [found[2]]


def test_lines_and_json_say_the_same():
    found = list(outcomes(checks(), 1.0))
    console = Console(file=io.StringIO(), width=200)
    for outcome in found:
        report.show(outcome, console)
    text = console.file.getvalue()
    assert "FAILED model     close: a | b: 1 of 0.5" in text
    assert "likely: a cause" in text
    assert "known: library #1" in text
    assert '"passed": false' in report.as_json(found)
    assert report.summary(found, 3.2) == "0 passed, 2 failed, 1 do not apply; 3 s"


def test_lists_side_by_side_come_in_their_order():
    lanes = [(iter(["a", "b"]), iter(["e"])), (iter("cd"), iter([]), iter("f"))]
    assert "".join(side_by_side(*lanes)) == "abcdef"


def test_the_second_lane_runs_while_the_first_waits():
    begun = threading.Event()

    def waits():
        assert begun.wait(10)
        yield "a"

    def begins():
        begun.set()
        yield "b"

    assert list(side_by_side((waits(),), (begins(),))) == ["a", "b"]


def test_what_ends_a_lane_is_raised():
    def breaks():
        yield "a"
        raise KeyError("lane")

    with pytest.raises(KeyError, match="lane"):
        list(side_by_side((breaks(), iter("b")), (iter("c"),)))


def test_a_reader_that_stops_ends_the_lanes():
    seen = []

    def endless():
        while True:
            seen.append(len(seen))
            yield "a"

    found = side_by_side((endless(),))
    assert next(found) == "a"
    found.close()  # as Ctrl-C does; would not return if the lane went on


def test_differences_are_relative_to_the_leaf_and_name_the_place():
    expected = {"large": np.array([100.0, 50.0]), "small": np.array([1.0, 2.0])}
    got = {"large": np.array([100.0, 50.1]), "small": np.array([1.0, 2.1])}
    found = difference(got, expected)
    assert found.value == pytest.approx(0.05)
    assert found.place == "small[1]: 2.1, expected 2"


def test_rounding_beside_zero_counts_as_a_share_of_the_tree():
    found = difference({"a": np.array([1.0]), "b": np.array([1e-9])}, {"a": np.array([1.0]), "b": np.array([0.0])})
    assert found.value == pytest.approx(1e-6)


def test_nan_on_one_side_and_other_shapes_are_infinite():
    assert difference({"a": np.array([np.nan])}, {"a": np.array([1.0])}).value == np.inf
    assert difference({"a": np.array([np.nan])}, {"a": np.array([np.nan])}).value == 0
    assert "shape [2], expected [1]" in difference({"a": np.zeros(2)}, {"a": np.zeros(1)}).place


def test_bits_are_counted():
    a = np.array([1.0, 2.0, 3.0], np.float32)
    b = np.nextafter(a, 4).astype(np.float32)
    assert unequal_bits({"x": a}, {"x": a}).value == 0
    assert unequal_bits({"x": b}, {"x": a}) == (3.0, "x")
