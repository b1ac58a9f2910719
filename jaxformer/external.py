"""The library ``transformers``, for its tokenizers and its configurations; imported when first used."""

import os
from typing import Any


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
