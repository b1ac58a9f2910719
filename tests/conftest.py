"""Every test runs on 8 simulated CPU devices, with the shapes written on public functions checked at run time."""

import os

# Compiling dominates the tests; LLVM's optimizations would double it and change no result beyond rounding.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# The hook only reaches modules that are imported while it is installed, so it goes before the first of them.
install_import_hook("jaxformer.functional", "beartype.beartype")
