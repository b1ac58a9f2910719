"""Every family with every head against PyTorch ``transformers``, by the golden file."""

import functools

import pytest

from tests.golden import heads
from tests.hub.compare import differences

golden = functools.cache(heads.load)


def test_the_golden_file_has_every_family_and_head():
    assert list(golden()) == heads.cases()


@pytest.mark.parametrize("case", heads.cases())
def test_outputs_loss_and_gradients_of_pytorch(case):
    outputs, loss, gradients = differences(case, golden()[case])
    assert outputs < 1e-4 and loss < 1e-4 and gradients < 1e-3
