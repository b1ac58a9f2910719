"""Every test runs on 8 simulated CPU devices, with the shapes written on public functions checked at run time."""

import gc
import os

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Tracing makes many small objects beside the many that all tests keep; looking through these less often saves a
# fifteenth of the time.
gc.set_threshold(50_000, 20, 50)

# The hook only reaches modules that are imported while it is installed, so it goes before the first of them.
install_import_hook("jaxformer.functional", "beartype.beartype")

from jaxformer.parallel.compiler_flags import FAST_COMPILATION  # noqa: E402 - the package is imported under the hook

# JAX reads them when it looks for devices. Flags that are set outside win, since the last of a kind counts.
os.environ["XLA_FLAGS"] = f"{FAST_COMPILATION} {os.environ.get('XLA_FLAGS', '')}"
