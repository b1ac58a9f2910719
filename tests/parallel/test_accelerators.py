from jaxformer.libtpu import tpu_chips
from jaxformer.parallel.accelerators import idle_accelerator


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
