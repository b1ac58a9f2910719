"""Makes the notebooks of the book: one code, executed once, with prose in every language.

    python docs/book/build.py                 # all chapters
    python docs/book/build.py 03_attention    # one

A chapter is ``chapters/NAME.py`` in jupytext's percent format; each of its Markdown cells holds a key. The prose of the
key, in every language, is in ``messages/NAME.yaml``. The outputs are those of the one execution, so that the code of
two languages cannot drift apart.
"""

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient

BOOK = Path(__file__).parent
CHAPTERS, MESSAGES = BOOK / "chapters", BOOK / "messages"
LANGUAGES = ("en", "ko")
TIMEOUT_S = 1200
# What JAX says of plugins that are not there, and bars that are drawn anew, are no part of a chapter.
HIDDEN_OUTPUTS = ("stderr",)
LARGEST_OUTPUT = 200_000


def chapter_names() -> list[str]:
    """The names of the chapters, in order."""
    return sorted(path.stem for path in CHAPTERS.glob("*.py"))


def read_code(name: str) -> Any:
    """The notebook of a chapter, whose Markdown cells hold keys."""
    return jupytext.read(CHAPTERS / f"{name}.py", fmt="py:percent")


def read_messages(name: str) -> dict[str, dict[str, str]]:
    """The prose of a chapter: key, language, text.

    Raises:
        ValueError: if a key of the code has no prose in a language, or prose has no place in the code.
    """
    messages = yaml.safe_load((MESSAGES / f"{name}.yaml").read_text(encoding="utf-8"))
    keys = [cell.source.strip() for cell in read_code(name).cells if cell.cell_type == "markdown"]
    if missing := [f"{key}.{lang}" for key in keys for lang in LANGUAGES if not messages.get(key, {}).get(lang)]:
        raise ValueError(f"messages/{name}.yaml lacks {', '.join(missing)}; give each key a text in each language")
    if idle := sorted(messages.keys() - set(keys)):
        raise ValueError(f"messages/{name}.yaml has {', '.join(idle)}, which chapters/{name}.py does not name")
    return dict(messages)


def execute(name: str) -> Any:
    """The notebook of a chapter with the outputs of its code, run from top to bottom."""
    notebook = read_code(name)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": str(BOOK)}}).execute()
    for number, cell in enumerate(notebook.cells):
        # An id that stays, so that a notebook that is made again is the same file.
        cell["id"] = f"cell-{number}"
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") not in HIDDEN_OUTPUTS]
            size = sum(len(str(output)) for output in cell.outputs)
            if size > LARGEST_OUTPUT:
                raise ValueError(f"the output of cell {number} of {name} has {size:,} characters; make it smaller")
    notebook.metadata = nbformat.from_dict({"kernelspec": notebook.metadata["kernelspec"]})
    return notebook


def in_language(notebook: Any, messages: dict[str, dict[str, str]], language: str) -> Any:
    """The notebook with the prose of a language."""
    translated = copy.deepcopy(notebook)
    for cell in translated.cells:
        if cell.cell_type == "markdown":
            cell.source = messages[cell.source.strip()][language].strip()
    return translated


def build(name: str) -> float:
    """Executes a chapter and writes its notebooks; returns the seconds of the execution."""
    messages = read_messages(name)
    start = time.perf_counter()
    notebook = execute(name)
    seconds = time.perf_counter() - start
    for language in LANGUAGES:
        path = BOOK / language / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(in_language(notebook, messages, language), path)
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the chapters that are named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", metavar="NAME", help=f"of {', '.join(chapter_names())}")
    chosen = parser.parse_args(arguments).chapters or chapter_names()
    for name in chosen:
        if name not in chapter_names():
            print(f"error: there is no chapter {name!r}, expected one of {', '.join(chapter_names())}", file=sys.stderr)
            return 2
        print(f"{name}: {build(name) / 60:.1f} min", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
