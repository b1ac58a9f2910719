"""Where compiled programs are kept."""

from pathlib import Path

import jax
import pytest

from jaxformer.training.compilation import keep_compiled
from jaxformer.training.sources import resolve_config
from tests.training.helpers import tiny_keys


@pytest.fixture
def folder():
    """The folder that JAX uses, set back afterwards."""
    before = jax.config.values["jax_compilation_cache_dir"]
    yield lambda: jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("own", "key", "expected"),
    [(None, "auto", "cache/compiled"), ("own", "auto", "own"), ("own", "named", "named"), ("own", None, None)],
)
def test_a_named_folder_wins_over_jax_s_and_that_over_auto(tmp_path, folder, own, key, expected):
    keys = tiny_keys(tmp_path)
    keys["data"]["cache_dir"] = "cache"
    keys["training"]["compilation_cache"] = key
    jax.config.update("jax_compilation_cache_dir", own)
    keep_compiled(resolve_config(keys, "this test"))
    assert folder() == (None if expected is None else str(Path(expected)))
