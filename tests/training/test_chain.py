"""The stages of an assistant, each killed in the middle and started again: it ends as if it had never been killed.

Best-of-n, which is no run, is killed in ``tests/pipelines/test_best_of_n.py``.
"""

import json
import time

import pytest
import yaml

from tests.processes import end, records, start_one
from tests.training.helpers import tiny_keys

pytestmark = pytest.mark.slow

WORDS = ("cat", "dog", "mat", "hat", "bat", "rat", "cap", "map")
REWARD = "def short(prompts, completions, **columns):\n    return [-float(len(text)) for text in completions]\n"
FROM_SFT = {"model": {"pretrained": "{folder}/sft"}}
# A stage, those that it needs, and its keys.
STAGES = {
    "base": ((), {}),
    "sft": (("base",), {"model": {"pretrained": "{folder}/base"}, "task": {"type": "instruction", "packed": False}}),
    "reward": (("sft",), {**FROM_SFT, "task": {"type": "reward"}}),
    "dpo": (("sft",), {**FROM_SFT, "task": {"type": "dpo"}}),
    "ppo": (
        ("sft", "reward"),
        {
            **FROM_SFT,
            "task": {"type": "ppo", "reward": "{folder}/reward", "max_new_tokens": 8, "kl_target": 1.0},
        },
    ),
    "grpo": (
        ("sft",),
        {
            **FROM_SFT,
            "task": {"type": "grpo", "reward": "{folder}/short.py:short", "max_new_tokens": 8, "group_size": 4},
            "lora": {"rank": 2},
        },
    ),
    "distil": (
        ("base",),
        {"task": {"type": "distillation", "teacher": "{folder}/base", "of": {"type": "instruction", "packed": False}}},
    ),
}
STEPS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    rows = [
        {"prompt": f"{a} {b}?", "completion": " yes", "chosen": " yes", "rejected": " no"} for a in WORDS for b in WORDS
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "short.py").write_text(REWARD, encoding="utf-8")
    return folder


def trained(folder, name):
    """The stage's run that nothing interrupted, and before it those that it needs."""
    for earlier in STAGES[name][0]:
        trained(folder, earlier)
    if not (folder / name).exists():
        code, _, errors = end([start_one(1, "--config", config_of(folder, name, name))])[0]
        assert code == 0, errors
    return folder / name


def config_of(folder, name, output):
    """The stage's configuration as a file."""
    needed, more = STAGES[name]
    keys = tiny_keys(folder, steps=STEPS, save_every=2) | json.loads(json.dumps(more).replace("{folder}", str(folder)))
    if needed:
        keys["data"] = {**keys["data"], "path": str(folder / "rows.jsonl")}
        keys.pop("tokenizer")
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump({**keys, "output_dir": str(folder / output)}), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_ends_as_if_it_had_not_been(folder, name):
    never_killed = trained(folder, name)
    config = config_of(folder, name, f"{name}_killed")
    killed = folder / f"{name}_killed"
    process = start_one(1, "--config", config)
    deadline = time.monotonic() + 200
    while len(records(killed)) < 5:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert len(records(killed)) < STEPS
    code, out, errors = end([start_one(1, "--config", config)])[0]
    assert code == 0 and "resuming at step" in out, out + errors
    drawn = ("loss", "score", "kl", "kl_coefficient", "length", "pair_accuracy", "divergence", "gradient_norm")
    for split in ("train", "eval"):
        whole, again = records(never_killed, split), records(killed, split)
        assert [r["step"] for r in whole] == [r["step"] for r in again]
        assert [[r.get(key) for key in drawn] for r in whole] == [[r.get(key) for key in drawn] for r in again]
