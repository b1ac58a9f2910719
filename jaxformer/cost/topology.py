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
    dcn_bandwidth: float  # its share of its pod's bandwidth to the data center's network, bytes/s


# cloud.google.com/tpu/docs/v5e, .../v5p and .../v6e, read in November 2026. The pages give the bandwidth between chips
# as 400 GB/s in both directions, 4,800 Gbit/s in one, and 800 GB/s in both; that to the data center as 6.4 Tbit/s of a
# pod of 256, 50 Gbit/s of a chip, and 25.6 Tbit/s of a pod of 256.
CHIPS = {
    "v5e": Chip("TPU v5 lite", 16 * 2**30, 819e9, 200e9, 6.4e12 / 256 / 8),
    "v5p": Chip("TPU v5", 95 * 2**30, 2765e9, 600e9, 50e9 / 8),
    "v6e": Chip("TPU v6 lite", 32 * 2**30, 1638e9, 400e9, 25.6e12 / 256 / 8),
}
# Chips of which slices are a torus of three dimensions; those of the others have two.
_THREE_DIMENSIONS = ("v5p",)
_FORM = "CHIP:TOPOLOGY, for instance v5e:16x16, v5p:4x4x4 or v6e:16x16"


def topology_name(name: str) -> str:
    """``name``, or the topology of a number of chips, a power of two, that is nearest to a square or a cube.

    >>> topology_name("v5e:256"), topology_name("v6e:8"), topology_name("2xv5p:64"), topology_name("v5e:2x4")
    ('v5e:16x16', 'v6e:2x4', '2xv5p:4x4x4', 'v5e:2x4')
    """
    chip, _, number = name.partition(":")
    if not number.isdecimal() or int(number) < 1 or int(number).bit_count() != 1:
        return name
    power, dimensions = int(number).bit_length() - 1, 3 if chip.endswith(_THREE_DIMENSIONS) else 2
    return f"{chip}:{'x'.join(str(2 ** ((power + axis) // dimensions)) for axis in range(dimensions))}"


def described_devices(name: str, option: str = "--compile-for") -> tuple[Chip, list[jax.Device]]:
    """The chip and the described devices of a topology, such as ``v5e:16x16``, or of a number of chips.

    ``2xv5e:16x16`` are two such slices, which only the data center's network joins.

    Raises:
        UserError: if libtpu is not installed or knows no such topology; names the command's ``option``.
    """
    topology_of = topology_name(name)
    found = re.fullmatch(r"(?:([1-9]\d*)x)?((\w+):\d+(?:x\d+)+)", topology_of)
    chip = CHIPS.get(found.group(3)) if found else None
    if found is None or chip is None:
        raise UserError(
            f"{option} {name}: expected {_FORM}, or v5e:256, or 2xv5e:256 for two slices; chips: {', '.join(CHIPS)}"
        )
    if not has_libtpu():
        raise UserError(
            f"{option} needs libtpu, the TPU's compiler, expected it installed: pip install 'jaxformer[tpu]'"
        )
    try:
        slices = int(found.group(1) or 1)
        topology = topologies.get_topology_desc(platform="tpu", topology_name=found.group(2), num_slices=slices)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        reason = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"{option} {name}: libtpu knows no such topology ({reason}); give {_FORM}") from None
    return chip, list(topology.devices)
