"""Each axis sends what the textbook says, read from the compiled step; no array travels that need not."""

import pytest

from benchmarks import scaling


@pytest.fixture(scope="module")
def alone():
    return scaling.measure({"data": 1}, 1)


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor", "sequence"])
@pytest.mark.slow
def test_an_axis_sends_what_the_textbook_says(alone, axis):
    sent = scaling.measure({axis: 8}, 8).sent
    # A few scalars come on top: the loss, the norm of the gradient.
    assert sum(sent.values()) == pytest.approx(scaling.textbook(axis, 8, alone.parameters)[1], rel=2e-3)
    kinds = {"data": {"all-reduce"}, "tensor": {"all-reduce"}}.get(axis, {"all-reduce", "all-gather"})
    assert {kind for kind, size in sent.items() if size > 1e4} == kinds


@pytest.mark.slow
def test_state_falls_as_one_over_n(alone):
    assert alone.sent == {}
    four = scaling.measure({"fsdp": 4}, 4)
    assert four.parameters * 4 == alone.parameters
    assert four.optimizer * 4 == pytest.approx(alone.optimizer, rel=1e-5)
