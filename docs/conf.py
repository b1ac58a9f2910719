"""The documentation site: ``pip install -e ".[docs]" && python -m sphinx -W --keep-going docs build/site``."""

from importlib.metadata import version as version_of
from typing import Any

project = "jaxformer"
author = "the authors of jaxformer"
release = version = version_of("jaxformer")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme = "furo"
html_title = "jaxformer"

exclude_patterns = ["**/.ipynb_checkpoints"]

# Links to headings, as GitHub makes them.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "substitution"]
# The notebooks are executed when they are made, and their outputs are committed.
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
maximum_signature_line_length = 88
add_module_names = False
viewcode_follow_imported_members = False
suppress_warnings = ["ref.python"]  # several configurations have a field `type`
# Nothing of another site is fetched: the pages must open without a network.
html_copy_source = False
# The summary of a result would be fetched, which a browser refuses to a file.
html_show_search_summary = False


def _shown(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings name arrays ``[B, T]`` and may hold single stars and bars, which are no markup here."""
    for number, line in enumerate(lines):
        if "``" not in line and ("*" in line or "|" in line):
            lines[number] = line.replace("*", r"\*").replace("|", r"\|")


def _short(app: Any, what: str, name: str, obj: Any, options: Any, signature: Any, returned: Any) -> tuple[Any, Any]:
    """Signatures call JAX's arrays ``Array``, as the code does."""
    return tuple(text and text.replace("jaxlib._jax.Array", "Array") for text in (signature, returned))


def setup(app: Any) -> None:
    """Connects to Sphinx."""
    app.connect("autodoc-process-docstring", _shown)
    app.connect("autodoc-process-signature", _short)
