"""Answers for libtpu on a machine without a TPU; needs no JAX, so that they are given before JAX looks for devices."""

import importlib.util
import os
from pathlib import Path


def tpu_chips(root: Path = Path("/")) -> bool:
    """Returns whether this machine has TPU chips: accel devices, or PCI devices with Google's vendor id.

    Args:
        root: where the machine's ``/dev`` and ``/sys`` are.
    """
    vendors = root.glob("sys/bus/pci/devices/*/vendor")
    return any(root.glob("dev/accel[0-9]*")) or any(vendor.read_text().strip() == "0x1ae0" for vendor in vendors)


def has_libtpu() -> bool:
    """Returns whether the library for TPUs is installed."""
    return importlib.util.find_spec("libtpu") is not None


def tell_libtpu_without_tpu() -> None:
    """Answers libtpu's questions on a machine without a TPU, so that loading it neither waits nor complains.

    Otherwise libtpu asks the cloud's metadata server which TPU this machine has and prints the failure. The answers
    only have to be well formed. Variables that the user has set are kept.
    """
    if not has_libtpu() or tpu_chips():
        return
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # libtpu locks the chips for one process; without chips there is nothing to lock.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(key, value)
