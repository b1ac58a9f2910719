"""Several processes are one run: the same losses, one end for all, and a start that never hangs without a word."""

import signal
import time

import numpy as np
import pytest
import yaml

from jaxformer.parallel.hosts import find_cluster
from jaxformer.schema import UserError
from tests import processes
from tests.training.helpers import tiny_keys


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    keys = tiny_keys(tmp_path, steps=12, save_every=4, eval_every=6)
    # SGD, since Adam's normalisation would hide a gradient that is off by a factor.
    keys["optimizer"] = {"type": "sgd", "learning_rate": 0.5}
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return path


def assert_same_losses(folder, expected, tolerance=1e-5):
    a, b = processes.losses(folder), processes.losses(expected)
    assert a.keys() == b.keys()
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=tolerance)


@pytest.mark.slow
def test_two_processes_train_like_one(config, tmp_path):
    processes.run(1, 4, "--config", config)
    printed = processes.run(2, 2, "--config", config, f"output_dir={tmp_path / 'two'}", "parallel.fsdp=2")
    assert "12 steps of 8 x 16 tokens on 4 cpu device(s)" in printed
    assert_same_losses(tmp_path / "two", tmp_path / "run")
    one, two = (processes.records(tmp_path / name, "eval")[-1]["loss"] for name in ("run", "two"))
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys", [["parallel.fsdp=2", "parallel.tensor=2"], ["parallel.strategy=pmap"]], ids=["fsdp and tensor", "pmap"]
)
def test_four_processes_train_like_one(config, tmp_path, keys):
    command = ("--config", config, "model.vocab_size=258")
    processes.run(1, 8, *command)
    ends = processes.end(processes.start(4, 2, *command, f"output_dir={tmp_path / 'four'}", *keys))
    assert [code for code, _, _ in ends] == [0] * 4, ends
    assert all("step" not in printed for _, printed, _ in ends[1:]), "only the first process prints"
    assert_same_losses(tmp_path / "four", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_killed_process_ends_the_others_and_another_number_of_them_goes_on(config, tmp_path, killed):
    processes.run(1, 2, "--config", config)
    folder = tmp_path / "killed"
    command = ("--config", config, f"output_dir={folder}")
    started = processes.start(2, 1, *command, "training.save_every=2")
    processes.wait_for_step(folder, 7, started)
    started[killed].kill()
    begin = time.monotonic()
    ends = processes.end(started, timeout=60)
    assert time.monotonic() - begin < 30
    code, _, error = ends[1 - killed]
    assert code != 0
    assert f"process {killed} of 2 ended without a word (killed, or out of memory?); start all processes again" in error
    # Another number of processes goes on, with the batches of the run that was never interrupted.
    assert "resuming at step" in processes.run(4, 1, *command)
    assert_same_losses(folder, tmp_path / "run")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(config, tmp_path):
    folder = tmp_path / "stopped"
    command = ("--config", config, f"output_dir={folder}", "training.steps=100000", "training.save_every=null")
    started = processes.start(2, 1, *command)
    processes.wait_for_step(folder, 3, started)
    started[1].send_signal(signal.SIGTERM)
    ends = processes.end(started)
    assert [code for code, _, _ in ends] == [143, 143], ends
    (step,) = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert f"SIGTERM: saved step {step} in {folder}" in ends[0][1]
    assert max(processes.losses(folder)) == step


@pytest.mark.slow
def test_processes_with_other_data_are_refused(config, tmp_path):
    keys = yaml.safe_load(config.read_text())
    keys["data"]["path"] = "corpus.jsonl"  # of the folder that each is started in
    config.write_text(yaml.safe_dump(keys), encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    text = (tmp_path / "corpus.jsonl").read_text()
    (elsewhere / "corpus.jsonl").write_text(text.replace("cat", "cow"), encoding="utf-8")
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{processes.free_port()}", "JAX_NUM_PROCESSES": "2"}
    started = [
        processes.start_one(1, "--config", config, folder=folder, **address, JAX_PROCESS_ID=str(index))
        for index, folder in enumerate((tmp_path, elsewhere))
    ]
    ends = processes.end(started, timeout=100)
    assert all(code != 0 for code, _, _ in ends)
    assert "the data of process 1 is not that of process 0, expected the same in all" in ends[0][2]


WAITING = "from jaxformer.parallel import hosts; hosts.start({limit}, notice_s=1)"


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.default_cases("0")
def test_a_process_that_waits_says_so_and_gives_up(index):
    code = WAITING.format(limit=3)
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{processes.free_port()}", "JAX_NUM_PROCESSES": "2"}
    process = processes.start_one(1, code, program=("-c",), **address, JAX_PROCESS_ID=str(index))
    ((code, printed, error),) = processes.end([process], timeout=60)
    assert code == 2 and printed == ""
    assert f"process {index} of 2 waits for the others at 127.0.0.1:" in error and ": 1 s of 3 s" in error
    last = error.strip().splitlines()[-1]
    assert last.startswith(f"error: process {index} of 2 waited 3 s for the others") and "start_timeout" in last


def test_where_the_other_processes_are():
    address = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:99", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
    given = {"coordinator_address": "10.0.0.1:99", "num_processes": 4, "process_id": 2}
    assert find_cluster(address) == given
    assert find_cluster({**address, "SLURM_STEP_NUM_TASKS": "8"}) == given, "what is given is not guessed"
    assert find_cluster({**address, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    assert find_cluster({}) is None
    assert find_cluster({"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert find_cluster({"SLURM_STEP_NUM_TASKS": "2"}) == {}
    assert find_cluster({"OMPI_COMM_WORLD_SIZE": "16"}) == {}
    assert find_cluster({"TPU_WORKER_HOSTNAMES": "t1k-w0,t1k-w1"}) == {}
    assert find_cluster({"TPU_WORKER_HOSTNAMES": "localhost"}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is not, expected all three"),
        (
            {"JAX_PROCESS_ID": "4"},
            "JAX_NUM_PROCESSES is '4' and JAX_PROCESS_ID '4', expected a number and a smaller one",
        ),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "is '10.0.0.1', expected host:port, for instance"),
    ],
)
def test_a_wrong_address_is_one_line(change, message):
    address = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:99", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
    with pytest.raises(UserError, match=message):
        find_cluster({**address, **change})
