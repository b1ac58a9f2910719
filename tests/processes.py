"""Runs of several processes on this machine, over the loopback address, each with simulated devices."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TRAIN = (str(ROOT / "train.py"),)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(count, devices, *arguments):
    """One command as ``count`` processes of ``devices`` devices each; with one process there is no address."""
    address = f"127.0.0.1:{free_port()}"
    processes = []
    for index in range(count):
        more = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        processes.append(start_one(devices, *arguments, **(more if count > 1 else {})))
    return processes


def start_one(devices, *arguments, program=TRAIN, folder=ROOT, **more):
    """One process, started in a folder, with more variables in its environment."""
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), **more},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(processes, timeout=240):
    """(exit code, standard output, standard error) of each."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, outputs, strict=True)]


def run(count, devices, *arguments):
    """Like ``start``, to its good end; what the first printed."""
    ends = end(start(count, devices, *arguments))
    assert [code for code, _, _ in ends] == [0] * count, ends
    return ends[0][1]


def records(folder, split="train"):
    """What a run wrote down of its steps."""
    path = Path(folder) / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if record["split"] == split]


def losses(folder):
    return {record["step"]: record["loss"] for record in records(folder)}


def wait_for_step(folder, step, processes, timeout=200):
    """Until a run has come so far."""
    limit = time.monotonic() + timeout
    while not any(record["step"] >= step for record in records(folder)):
        assert all(process.poll() is None for process in processes), end(processes)
        assert time.monotonic() < limit, "the run does not come this far"
        time.sleep(0.05)
