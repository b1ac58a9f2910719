"""Detects the accelerators of this machine."""

from pathlib import Path

import jax

from jaxformer.libtpu import has_libtpu, tpu_chips


def has_tpu(root: Path = Path("/")) -> bool:
    """Returns whether this machine has TPU chips and the library for them."""
    return tpu_chips(root) and has_libtpu()


def idle_accelerator(root: Path = Path("/")) -> str | None:
    """The accelerator that this machine has while JAX runs on the CPU; None if there is none."""
    if jax.default_backend() != "cpu":
        return None
    if any(root.glob("dev/nvidia[0-9]*")):
        return "an NVIDIA GPU (install with: pip install 'jaxformer[cuda]')"
    if tpu_chips(root):
        return "a TPU (install with: pip install 'jaxformer[tpu]')"
    return None
