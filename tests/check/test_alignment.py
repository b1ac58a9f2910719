"""The loss of each objective that generates, against the formula by which it is checked."""

import importlib
from pathlib import Path

import pytest
import yaml

from jaxformer.check.subjects import check_config
from jaxformer.training.console import Display
from jaxformer.training.sources import load_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHORT = {"max_new_tokens": 6, "epochs": 1, "minibatches": 1}
OBJECTIVES = {
    "ppo": {"type": "ppo", "value_clip": None, "clip": 0.05},
    "grpo": {"type": "grpo", "group_size": 2, "kl_coefficient": 0.3},
    "grpo of tokens": {"type": "grpo", "group_size": 2, "mean_over": "tokens", "clip_above": 0.5},
    "rloo": {"type": "rloo", "group_size": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        module = importlib.import_module("_check_configs")
        folder = tmp_path_factory.mktemp("check")
        module.write(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_policys_loss_is_its_formula(folder, name):
    keys = yaml.safe_load((folder / "ppo.yaml").read_text(encoding="utf-8"))
    keys["task"] = {"reward": keys["task"]["reward"], **SHORT, **OBJECTIVES[name]}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    (found,) = check_config(load_config(path), Display(), {"policy loss by hand"})
    assert found.passed, found.place
    assert found.compared == f"loss {keys['task']['type']} | float64, by hand"
