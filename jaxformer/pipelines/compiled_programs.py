"""Compiled programs of pipelines, kept on disk for the next process."""

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxformer.data.config import DataConfig

# Programs that take less are compiled as fast as they are read.
LEAST_SECONDS = 0.1


def keep_programs() -> None:
    """Keeps what is compiled in ``compiled`` in the cache folder, where training keeps its programs.

    Only if JAX has no cache of its own: its settings (``JAX_COMPILATION_CACHE_DIR``, and
    ``JAX_ENABLE_COMPILATION_CACHE=false`` for none) win.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None or not settings["jax_enable_compilation_cache"]:
        return
    jax.config.update("jax_compilation_cache_dir", str(DataConfig().cache_folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    # JAX decides once in a process, when it first compiles, if there is a cache.
    compilation_cache.reset_cache()
