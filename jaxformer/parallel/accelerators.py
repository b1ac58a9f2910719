"""Detects the accelerators of this machine, and configures libtpu where there is no TPU."""

import importlib.util
import os
from pathlib import Path

import jax


def tpu_chips(root: Path = Path("/")) -> bool:
    """Returns whether this machine has TPU chips: accel devices, or PCI devices with Google's vendor id.

    Args:
        root: where the machine's ``/dev`` and ``/sys`` are.
    """
    vendors = root.glob("sys/bus/pci/devices/*/vendor")
    return any(root.glob("dev/accel[0-9]*")) or any(vendor.read_text().strip() == "0x1ae0" for vendor in vendors)


def has_tpu(root: Path = Path("/")) -> bool:
    """Returns whether this machine has TPU chips and the library for them."""
    return tpu_chips(root) and importlib.util.find_spec("libtpu") is not None


def idle_accelerator(root: Path = Path("/")) -> str | None:
    """The accelerator that this machine has while JAX runs on the CPU; None if there is none."""
    if jax.default_backend() != "cpu":
        return None
    if any(root.glob("dev/nvidia[0-9]*")):
        return "an NVIDIA GPU (install with: pip install 'jaxformer[cuda]')"
    if tpu_chips(root):
        return "a TPU (install with: pip install 'jaxformer[tpu]')"
    return None


def tell_libtpu_without_tpu() -> None:
    """Answers libtpu's questions on a machine without a TPU, so that loading it neither waits nor complains.

    Otherwise libtpu asks the cloud's metadata server which TPU this machine has and prints the failure. The answers
    only have to be well formed. Variables that the user has set are kept.
    """
    if tpu_chips():
        return
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # libtpu locks the chips for one process; without chips there is nothing to lock.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(key, value)
