"""Compiled programs: kept for the next run, and written out to be read."""

from pathlib import Path

import jax

from jaxformer.parallel.hosts import is_first
from jaxformer.training.config import RunConfig
from jaxformer.training.run import Run

HLO = "hlo"


def keep_compiled(config: RunConfig) -> None:
    """Keeps what takes a second or more to compile in ``training.compilation_cache``, where the next process finds it.

    JAX's own setting (``JAX_COMPILATION_CACHE_DIR``) wins over ``auto``.
    """
    if config.training.compilation_cache == "auto" and jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = config.compilation_folder
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))


def write_hlo(run: Run) -> list[Path]:
    """Writes the train step as JAX hands it to XLA (StableHLO) and as XLA compiled it (HLO); returns the files.

    Of several processes all compile, since a compiler may ask the others, and the first writes.
    """
    lowered = run.lowered()
    texts = {"train_step.stablehlo.txt": lowered.as_text(), "train_step.hlo.txt": lowered.compile().as_text()}
    folder = run.folder / HLO
    if not is_first():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
