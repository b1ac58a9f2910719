"""Accelerators that are only described: enough to compile for them, with what the data sheets say of a chip."""

import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from jaxformer.libtpu import has_libtpu
from jaxformer.schema import UserError


class Chip(NamedTuple):
    """Data sheet of one chip, except its peak FLOP/s (``training/flops.py``)."""

    device_kind: str  # JAX's name of it
    hbm: int  # capacity of its main memory, bytes
    hbm_bandwidth: float  # to and from its main memory, bytes/s
    ici_bandwidth: float  # to its neighbours over all links together, one way, bytes/s


# cloud.google.com/tpu/docs/v5e, .../v5p and .../v6e, read in November 2026. The pages give the bandwidth between chips
# as 400 GB/s in both directions, 4,800 Gbit/s in one, and 800 GB/s in both.
CHIPS = {
    "v5e": Chip("TPU v5 lite", 16 * 2**30, 819e9, 200e9),
    "v5p": Chip("TPU v5", 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip("TPU v6 lite", 32 * 2**30, 1638e9, 400e9),
}
_FORM = "CHIP:TOPOLOGY, for instance v5e:16x16, v5p:4x4x4 or v6e:16x16"


def described_devices(name: str) -> tuple[Chip, list[jax.Device]]:
    """The chip and the described devices of a topology such as ``v5e:16x16``, if libtpu is installed and knows it."""
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    chip = CHIPS.get(found.group(1)) if found else None
    if chip is None:
        raise UserError(f"--compile-for {name}: expected {_FORM}; chips: {', '.join(CHIPS)}")
    if not has_libtpu():
        raise UserError(
            "--compile-for needs libtpu, the TPU's compiler, expected it installed: pip install 'jaxformer[tpu]'"
        )
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        reason = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"--compile-for {name}: libtpu knows no such topology ({reason}); give {_FORM}") from None
    return chip, list(topology.devices)
