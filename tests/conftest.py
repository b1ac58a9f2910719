"""Every test runs on 8 simulated CPU devices, with the shapes written on public functions checked at run time."""

import gc
import os
from importlib.metadata import version

# Compiling dominates the tests. LLVM's optimizations would double it; emitting fused loops through MLIR takes two and a
# half times as long as doing it directly, and cutting small programs into parts a third longer than not. None of it
# changes a result beyond rounding. Flags that are set outside win, since the last of a kind counts.
# XLA ends the process at a flag that it does not know, under pytest without a word: from jaxlib 0.11 on, which Python
# 3.12 and later get, the one for fused loops.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    + ("--xla_cpu_use_fusion_emitters=false " if version("jaxlib").startswith("0.10.") else "")
    + os.environ.get("XLA_FLAGS", "")
)

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Tracing makes many small objects beside the many that all tests keep; looking through these less often saves a
# fifteenth of the time.
gc.set_threshold(50_000, 20, 50)

# The hook only reaches modules that are imported while it is installed, so it goes before the first of them.
install_import_hook("jaxformer.functional", "beartype.beartype")
