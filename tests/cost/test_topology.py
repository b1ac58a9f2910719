import importlib.util

import pytest

from jaxformer.cost.topology import CHIPS, described_devices
from jaxformer.schema import UserError
from jaxformer.training.flops import PEAK_FLOPS


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:12", "v9:2x2", "16x16", "v5e:16x16x"])
def test_what_is_not_known_names_the_form_and_the_chips(name):
    with pytest.raises(UserError, match=r"expected CHIP:TOPOLOGY, for instance v5e:16x16, .*; chips: v5e, v5p, v6e"):
        described_devices(name)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs libtpu.*pip install 'jaxformer\[tpu\]'"):
        described_devices("v5e:16x16")


def test_every_chip_has_a_peak():
    assert {chip.device_kind for chip in CHIPS.values()} <= PEAK_FLOPS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "count"), [("v5e:2x4", "v5e", 8), ("v5p:4x4x4", "v5p", 64)])
def test_described(name, kind, count):
    """Needs the tpu extra."""
    chip, devices = described_devices(name)
    assert chip == CHIPS[kind] and len(devices) == count
    assert {device.device_kind for device in devices} == {chip.device_kind}


@pytest.mark.slow
def test_a_topology_that_libtpu_does_not_know():
    with pytest.raises(UserError, match="v5e:3x5: libtpu knows no such topology"):
        described_devices("v5e:3x5")
