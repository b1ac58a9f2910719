"""Memory: how much was in use, and on a CPU keep what was freed."""

import ctypes
import sys
import time
from collections.abc import Sequence

import jax

# mallopt's parameters (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory in the process; False where that is not glibc.

    XLA on a CPU allocates and frees its buffers at every step. glibc returns large ones to the kernel, and the page
    faults of getting them back took a third of a training step (28 -> 16.7 ms at 4 layers, width 128). Must be called
    before JAX allocates. It holds for the whole process, so only the command line calls it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One arena: buffers freed by one thread are then reused by the others, which helped large models.
    wanted = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in wanted)


class Settling:
    """Called between steps, returns freed memory to the system: at each of the first, then once in a while.

    A large buffer that was freed may lose a little of its place to what lasts, so that the next does not fit there.
    ``gpt_nano`` grew so from 1.2 to 2.8 GB. The pages that the next step takes anew cost it a fifth of
    its time, which is little where it is seldom.
    """

    def __init__(self, steps: int = 10, seconds: float = 20.0) -> None:
        self._steps, self._seconds, self._next = steps, seconds, 0.0

    def __call__(self) -> None:
        """One step has ended."""
        self._steps -= 1
        now = time.monotonic()
        if self._steps >= 0 or now >= self._next:
            self._next = now + self._seconds
            return_freed_memory()


def return_freed_memory() -> bool:
    """Returns memory that was freed to the system, once; False where the C library is not glibc.

    For where much was used that the next steps do not fit into: what the compiler leaves is in pieces.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and trim(0) == 1


def peak_memory_used(devices: Sequence[jax.Device]) -> int | None:
    """Most bytes that the fullest of these devices had in use since the process began; on a CPU, that the process had.

    None where neither the device nor the operating system says it.
    """
    if devices[0].platform != "cpu":
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
        return max((peak for peak in peaks if peak is not None), default=None)
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
