"""A trace of some steps by JAX's profiler, for TensorBoard, XProf or Perfetto."""

from pathlib import Path
from typing import Any

import jax

PROFILE = "profile"


class Profile:
    """Traces the steps from ``first`` to ``last``, both included, into ``folder/profile``."""

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        self.folder = folder / PROFILE
        self._first, self._last = steps or (0, 0)
        self._running = False

    def before(self, step: int) -> None:
        """Begins the trace where ``step`` is the first; a run that goes on behind it traces nothing."""
        if step == self._first:
            jax.profiler.start_trace(str(self.folder))
            self._running = True

    def after(self, step: int, outputs: Any) -> bool:
        """Ends the trace where ``step`` was the last, once its outputs are there; whether it did."""
        if not self._running or step < self._last:
            return False
        jax.block_until_ready(outputs)
        self.close()
        return True

    def close(self) -> None:
        """Ends the trace, also of a run that stopped before the last step."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
