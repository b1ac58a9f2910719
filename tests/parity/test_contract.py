"""Predictions are the same in training, in the pipeline on a run and on its export, and in PyTorch on the export."""

import pytest

from tests.golden import contract

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("family", "task"), contract.CASES)
def test_predictions_are_the_same_everywhere(family, task, tmp_path):
    run, exported, evaluated = contract.evaluated(family, task, tmp_path)
    expected = contract.theirs(exported, task)
    for found in (evaluated, contract.ours(run, task), contract.ours(exported, task)):
        if found is not None:  # an objective with a loss alone, a head without a pipeline
            contract.check(task, found, expected)
