"""Training, the pipeline on a run and the pipeline on its export predict what PyTorch predicted with that export."""

import json

import pytest

from tests.golden import contract

EXPECTED = json.loads(contract.GOLDEN.read_text())


@pytest.mark.parametrize(("family", "task"), contract.KEPT)
@pytest.mark.default_cases("bert-single", "t5-rewrites")
def test_predictions_are_those_of_pytorch(family, task, tmp_path):
    run, exported, evaluated = contract.evaluated(family, task, tmp_path)
    for found in (evaluated, contract.ours(run, task), contract.ours(exported, task)):
        if found is not None:  # an objective with a loss alone, a head without a pipeline
            contract.check(task, found, EXPECTED[f"{family}-{task}"])
