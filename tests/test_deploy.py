"""The files under deploy/ are valid, and the training commands in them are commands of this program."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from jaxformer.cli import parse_arguments
from jaxformer.parallel.hosts import find_cluster
from jaxformer.training.sources import load_config

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize("path", [DEPLOY / "tpu_vm.sh", DEPLOY / "slurm.sbatch"], ids=lambda path: path.name)
def test_scripts_are_valid(path):
    subprocess.run(["bash", "-n", path], check=True)


def commands():
    """The arguments of every training command that a file shows or runs."""
    job = yaml.safe_load((DEPLOY / "jobset.yaml").read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
    yield job["template"]["spec"]["containers"][0]["args"]
    for path in (*sorted(DEPLOY.iterdir()), ROOT / "README.md", ROOT / "docs" / "scaling.md"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if found := re.search(r"(?:train\.py|sbatch|train) (--config .*)", line):
                yield shlex.split(re.split(r"[#`|]", found[1])[0].rstrip('\\"'))


@pytest.mark.parametrize("arguments", list(commands()), ids=" ".join)
def test_commands_are_understood(arguments):
    options = parse_arguments("train", arguments)
    if "..." not in arguments and (ROOT / options.config).exists():
        started = [override for override in options.overrides if not override.startswith("model.pretrained")]
        load_config(ROOT / options.config, started)  # raises if a key is unknown


def test_every_pod_knows_its_number_and_the_first_ones_address():
    jobset = yaml.safe_load((DEPLOY / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    variables = {v["name"]: v.get("value", "0") for v in spec["template"]["spec"]["containers"][0]["env"]}
    name = jobset["metadata"]["name"]
    assert find_cluster(variables) == {
        "coordinator_address": f"{name}-{job['name']}-0-0.{name}:1234",
        "num_processes": spec["parallelism"],
        "process_id": 0,
    }


def test_every_machine_knows_its_number_and_the_first_ones_address():
    script = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())["run"].rsplit("\n", 2)[0]
    machine = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    shell = subprocess.run(
        ["bash", "-c", f"{script}\nenv"], env={"PATH": "/usr/bin:/bin", **machine}, capture_output=True, text=True
    )
    found = find_cluster(dict(line.split("=", 1) for line in shell.stdout.splitlines() if "=" in line))
    assert found == {"coordinator_address": "10.0.0.1:1234", "num_processes": 2, "process_id": 1}
