"""Scores of the lm-evaluation-harness by its own ``hf`` model in PyTorch and by the adapter, on the same models."""

import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager

from jaxformer.evaluation.harness import JaxformerLM
from tests.evaluation import tasks
from tests.pipelines import tiny

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    return TaskManager(include_path=tasks.write(tmp_path_factory.mktemp("tasks")), include_defaults=False)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("shots", [0, 2])
def test_scores_are_those_of_the_model_in_pytorch(family, shots, manager, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Sharper models multiply the rounding of float32.
    monkeypatch.setattr(tiny, "SHARPER", 1.5)
    folder = str(tiny.save(tmp_path / "model", "writes", family))
    options = {"tasks": list(tasks.NAMES), "num_fewshot": shots, "task_manager": manager, "bootstrap_iters": 0}
    theirs = lm_eval.simple_evaluate("hf", {"pretrained": folder, "device": "cpu", "batch_size": 1}, **options)
    ours = lm_eval.simple_evaluate(JaxformerLM(folder), **options)
    for name in tasks.NAMES:
        samples = zip(theirs["samples"][name], ours["samples"][name], strict=True)
        for expected, found in samples:
            assert found["arguments"] == expected["arguments"]
            if name == "tiny_written":
                assert found["resps"] == expected["resps"]
            elif name == "tiny_text":
                np.testing.assert_allclose(found["resps"], expected["resps"], rtol=1e-5, atol=1e-4)
            else:
                for (likelihood, greedy), (other, theirs_greedy) in zip(
                    [one[0] for one in found["resps"]], [one[0] for one in expected["resps"]], strict=True
                ):
                    assert likelihood == pytest.approx(other, abs=1e-4) and greedy == theirs_greedy
        measured = {key: value for key, value in theirs["results"][name].items() if isinstance(value, float)}
        assert measured, "nothing was measured"
        for key, value in measured.items():
            assert ours["results"][name][key] == pytest.approx(value, rel=1e-5)
