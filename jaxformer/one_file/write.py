"""Writes a model as one file, and its parameters beside it."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxformer.atomic import replacing, write_atomically
from jaxformer.one_file.render import MARK, render
from jaxformer.one_file.source import Source
from jaxformer.schema import UserError, local_path


def write_one_file(source: Source, target: str | Path) -> list[str]:
    """Writes ``target``, and with parameters a safetensors file of the same name beside it.

    Args:
        source: the model.
        target: a path that ends in ``.py``; a file of an earlier call is replaced.

    Returns:
        The files written.

    Raises:
        UserError: if ``target`` is no ``.py`` file, or is one that this function did not write.
    """
    path = check_target(target)
    text = render(source.model, source.name, weights=source.params is not None)
    written = [path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.params is not None:
            written.append(path.with_suffix(".safetensors"))
            arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in source.params.items()}
            with replacing(written[1]) as temporary:
                save_file(arrays, temporary)
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another place") from None
    return [str(file) for file in written]


def check_target(target: str | Path) -> Path:
    """The path of a target; a ``UserError`` if no file of this kind may be written there."""
    path = local_path(target)
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file to write, for instance {path / 'model.py'}")
    if path.suffix != ".py":
        raise UserError(f"{path} does not end in .py, expected a Python file, for instance {path.with_suffix('.py')}")
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{path} exists and is no file of jaxformer export --one-file; choose another name")
    return path
