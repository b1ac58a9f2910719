"""Every test runs on 8 simulated CPU devices, with the shapes written on public functions checked at run time.

With ``JAXFORMER_TEST_PLATFORM=cuda`` what needs no second device runs on a GPU, with products in full float32.
"""

import fnmatch
import gc
import os

# Reading a compiled program takes longer than compiling a small one does with the flags below, and a pipeline keeps all
# that its process compiles later. JAX reads the variable when it is imported, also in the programs that tests start.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

# One process of pytest runs on each core, so that PyTorch's threads would only wait for each other: the parity tests
# took twice as long with two. PyTorch reads the variable when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import pytest
from jaxtyping import install_import_hook

PLATFORM = os.environ.get("JAXFORMER_TEST_PLATFORM", "cpu")
jax.config.update("jax_platforms", PLATFORM if PLATFORM == "cpu" else f"{PLATFORM},cpu")
if PLATFORM != "cpu":  # whose products are otherwise rounded to 10 bits, below what the tests ask for
    jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_num_cpu_devices", 8)

# Tracing makes many small objects beside the many that all tests keep; looking through these less often saves a
# fifteenth of the time.
gc.set_threshold(50_000, 20, 50)

# The hook only reaches modules that are imported while it is installed, so it goes before the first of them.
install_import_hook("jaxformer.functional", "beartype.beartype")

from jaxformer.parallel.compiler_flags import FAST_COMPILATION  # noqa: E402 - the package is imported under the hook

# JAX reads them when it looks for devices. Flags that are set outside win, since the last of a kind counts.
os.environ["XLA_FLAGS"] = f"{FAST_COMPILATION} {os.environ.get('XLA_FLAGS', '')}"


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    """Makes the cases of a test that its ``default_cases`` do not name slow."""
    found = {}
    for item in items:
        if (marker := item.get_closest_marker("default_cases")) is not None:
            kept = [pattern for pattern in marker.args if fnmatch.fnmatchcase(item.callspec.id, pattern)]
            found.setdefault(item.nodeid.partition("[")[0], set(marker.args)).difference_update(kept)
            if not kept:
                item.add_marker(pytest.mark.slow)
    if any("::" in argument for argument in config.args):
        return  # of one test a few cases may be chosen
    for test, idle in found.items():
        if idle:
            raise pytest.UsageError(f"{test}: default_cases names {', '.join(sorted(idle))}, which is no case of it")


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium without a window and with a fresh profile, asking for nothing of its own."""
    from playwright.sync_api import sync_playwright

    flags = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    with sync_playwright() as browsers:
        found = browsers.chromium.launch(executable_path="/usr/bin/chromium", args=flags.split())
        yield found
        found.close()
