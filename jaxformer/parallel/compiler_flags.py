"""Flags of XLA's compiler for programs that run a few times, so that compiling them takes most of the time."""

from importlib.metadata import version

# LLVM's optimizations would double the time of compiling, fused loops emitted through MLIR take two and a half times as
# long as those emitted directly, and cutting small programs into parts a third longer than not. None of it changes a
# result beyond rounding. XLA ends the process at a flag that it does not know: from jaxlib 0.11 on, which Python 3.12
# and later get, the one for fused loops.
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1" + (
    " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
)
