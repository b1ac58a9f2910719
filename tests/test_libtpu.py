import subprocess
import sys

import pytest

from jaxformer import libtpu


def test_what_libtpu_is_told(monkeypatch):
    environment = {"TPU_WORKER_HOSTNAMES": "mine"}
    monkeypatch.setattr(libtpu.os, "environ", environment)
    monkeypatch.setattr(libtpu, "has_libtpu", lambda: True)
    monkeypatch.setattr(libtpu, "tpu_chips", lambda: True)
    libtpu.tell_libtpu_without_tpu()
    assert environment == {"TPU_WORKER_HOSTNAMES": "mine"}
    monkeypatch.setattr(libtpu, "tpu_chips", lambda: False)
    libtpu.tell_libtpu_without_tpu()
    assert environment["TPU_SKIP_MDS_QUERY"] == "1" and environment["TPU_WORKER_HOSTNAMES"] == "mine"


@pytest.mark.slow  # with what compiles for TPUs, for which libtpu is installed
@pytest.mark.skipif(not libtpu.has_libtpu() or libtpu.tpu_chips(), reason="needs jax[tpu] on a machine without a TPU")
def test_the_library_prints_nothing_of_it():
    program = "import jaxformer.functional, jax; assert jax.devices()"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == found.stderr == ""
