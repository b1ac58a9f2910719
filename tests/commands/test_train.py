"""The help of ``jaxformer train``: every key, without importing JAX."""

import subprocess
import sys
from importlib.resources import files

from jaxformer.commands.key_help import key_help
from jaxformer.commands.train import KEYS


def test_the_help_lists_the_keys_there_are():
    """If not: ``python -m jaxformer.commands.key_help``."""
    assert files("jaxformer.commands").joinpath(KEYS).read_text(encoding="utf-8") == key_help() + "\n"


def test_the_help_of_every_command_needs_no_jax():
    code = """
import contextlib, io, sys
from jaxformer import cli
for name in cli.COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        cli.run(name, ["--help"])
    assert "usage: " in said.getvalue(), name
    assert "jax" not in sys.modules, name
    assert ("model.hidden_size" in said.getvalue()) == (name == "train")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
