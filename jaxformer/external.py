"""Libraries that are imported when they are first used: ``transformers``, and those of extras."""

import os
from importlib import import_module
from typing import Any

from jaxformer.schema import UserError


def need(module: str, extra: str = "metrics") -> Any:
    """Imports a module of an extra, or raises a ``UserError`` that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise UserError(f'{name} is needed here and is not installed: pip install "jaxformer[{extra}]"') from error


def import_transformers() -> Any:
    """The library, imported without its advice to install PyTorch."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return transformers


def class_defaults(model_type: str) -> dict[str, Any]:
    """The keys of a ``config.json`` as ``transformers.AutoConfig`` fills them where a file leaves them out."""
    defaults: dict[str, Any] = import_transformers().AutoConfig.for_model(model_type).to_dict()
    return defaults
