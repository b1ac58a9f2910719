"""The keys of a configuration, as the help of ``jaxformer train`` lists them.

python -m jaxformer.commands.key_help      # after a change of keys; a test says when
"""

from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from jaxformer.commands.train import KEYS
from jaxformer.tasks import TASKS
from jaxformer.training.config import RunConfig, config_keys


def key_help() -> str:
    """Every key of the configuration: path, type, default, meaning."""
    lines = []
    section = None
    for path, field in config_keys(RunConfig):
        if path == "task.type":
            meaning = str(TASKS[field.default].__doc__).splitlines()[0]
            lines.append(f"\n  task.type: {field.default}  {meaning}")
            section = "task"
            continue
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            lines.append("")
        default = "required" if field.default is PydanticUndefined else field.default
        if field.default_factory is not None:
            default = field.default_factory()
            default = f"{{type: {default.type}}}" if hasattr(default, "type") else default
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        lines.append(f"  {path}  ({_type_name(field.annotation)}, {shown})\n      {field.description or ''}")
    return "\n".join(lines[1:])


def _type_name(annotation: Any) -> str:
    """A type as a user would write it.

    >>> _type_name(int | None), _type_name(str)
    ('int or null', 'str')
    """
    if annotation is NoneType:
        return "null"
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if origin in (Union, UnionType):
        return " or ".join(_type_name(part) for part in get_args(annotation))
    if origin is Annotated:
        return _type_name(get_args(annotation)[0])
    if origin is list:
        return f"list of {_type_name(get_args(annotation)[0])}"
    if "type" in getattr(annotation, "model_fields", ()):
        return f"{{type: {annotation.model_fields['type'].default}, ...}}"
    return getattr(annotation, "__name__", str(annotation))


if __name__ == "__main__":
    Path(__file__).with_name(KEYS).write_text(key_help() + "\n", encoding="utf-8")
