from jaxformer.parallel import accelerators
from jaxformer.parallel.accelerators import idle_accelerator, tell_libtpu_without_tpu, tpu_chips


def test_an_accelerator_that_jax_does_not_use_is_named(tmp_path):
    assert idle_accelerator(tmp_path) is None and not tpu_chips(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert "NVIDIA GPU" in idle_accelerator(tmp_path)
    device = tmp_path / "tpu" / "sys" / "bus" / "pci" / "devices" / "0000:00:05.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x8086\n")
    assert idle_accelerator(tmp_path / "tpu") is None
    (device / "vendor").write_text("0x1ae0\n")
    assert "a TPU" in idle_accelerator(tmp_path / "tpu")
    (tmp_path / "dev" / "accel0").touch()
    assert tpu_chips(tmp_path)


def test_what_libtpu_is_told(monkeypatch):
    environment = {"TPU_WORKER_HOSTNAMES": "mine"}
    monkeypatch.setattr(accelerators.os, "environ", environment)
    monkeypatch.setattr(accelerators, "tpu_chips", lambda: True)
    tell_libtpu_without_tpu()
    assert environment == {"TPU_WORKER_HOSTNAMES": "mine"}
    monkeypatch.setattr(accelerators, "tpu_chips", lambda: False)
    tell_libtpu_without_tpu()
    assert environment["TPU_SKIP_MDS_QUERY"] == "1" and environment["TPU_WORKER_HOSTNAMES"] == "mine"
