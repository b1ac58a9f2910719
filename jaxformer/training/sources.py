"""Sources of a configuration: a YAML file, and the earlier model of ``model.pretrained`` or ``task.teacher``.

An earlier model is the folder of a run, or one in the Hugging Face format: a folder or a name on the Hub.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from jaxformer.families import over
from jaxformer.hub.pretrained import read_config
from jaxformer.hub.repository import Repository
from jaxformer.models.config import SIDES
from jaxformer.schema import UserError, local_path
from jaxformer.training.config import RunConfig, apply_override, parse_config, read_yaml

CONFIG_FILE, TOKENIZER_FILE, CHECKPOINTS = "config.yaml", "tokenizer_config.json", "checkpoints"


def load_config(path: str | Path | None, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a YAML file, applies ``key.path=value`` overrides and resolves the earlier model that the keys name.

    Raises:
        UserError: one line that names the file (or the command line), the key, what was got and what was expected.
    """
    keys = {} if path is None else read_yaml(local_path(path))
    if path is not None:
        keys.setdefault("output_dir", f"runs/{Path(path).stem}")
    overridden = {apply_override(keys, override) for override in overrides}
    return resolve_config(keys, str(path) if path is not None else "the defaults", overridden)


def resolve_config(keys: Mapping[str, Any], origin: str, overridden: Iterable[str] = ()) -> RunConfig:
    """``parse_config`` of keys whose earlier model is still to be read; a ``UserError`` if there is no such model."""
    overridden = set(overridden)
    try:
        keys = resolve(keys)
    except UserError as error:
        named = {"model.pretrained", "model.type", "task.teacher"} & overridden
        raise UserError(f"{'the command line' if named else origin}: {error}") from error
    return parse_config(keys, origin, overridden)


def resolve(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with the sizes and the tokenizer of the earlier model that they name; the only step that reads it.

    Raises ``UserError`` if there is no such model, or ``model.type`` is another.
    """
    keys = dict(keys)
    model, task = (keys.get(section) for section in ("model", "task"))
    if isinstance(model, dict):
        model = keys["model"] = {**model, **_sides(model)}
        sides = [own["pretrained"] for own in map(model.get, SIDES) if _begins(own)]
        if sides and keys.get("tokenizer") is None:
            keys["tokenizer"] = tokenizer_keys(str(sides[0]))
    if _begins(model):
        source = str(model["pretrained"])
        earlier = model_keys(source)
        if model.get("type", earlier["type"]) != earlier["type"]:
            raise UserError(
                f"model.type is {model['type']!r} and model.pretrained a {earlier['type']!r}, expected the same; leave "
                "out model.type"
            )
        keys["model"] = over(earlier, model)
        keys["tokenizer"] = keys.get("tokenizer") or tokenizer_keys(source)
    if isinstance(task, dict) and "teacher" in task and keys.get("tokenizer") is None:
        # A student reads what its teacher reads.
        keys["tokenizer"] = tokenizer_keys(str(task["teacher"]), "task.teacher")
    return keys


def _begins(model: Any) -> TypeGuard[dict[str, Any]]:
    """True of keys of a model, or of a side, that name an earlier one."""
    return isinstance(model, dict) and model.get("pretrained") is not None


def _sides(model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sides that name an earlier model, with its keys; whether it encodes or decodes is the side's to say."""
    found: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        own = model.get(side)
        if _begins(own):
            earlier = {**model_keys(str(own["pretrained"])), "architecture": side}
            if own.get("type", earlier["type"]) != earlier["type"]:
                raise UserError(
                    f"model.{side}.type is {own['type']!r} and model.{side}.pretrained a {earlier['type']!r}, expected "
                    f"the same; leave out model.{side}.type"
                )
            found[side] = {**earlier, **own}
    return found


def model_keys(source: str) -> dict[str, Any]:
    """The keys of ``model`` of an earlier model, without those of its training; no weights are read or downloaded."""
    if not is_run(source):
        config = read_config(Repository(source)).config
        return config.model_dump(
            exclude={"pretrained", "dtype", "numerics", "remat", "unroll", "attention_implementation"}
        )
    folder = local_path(source)
    check_run(folder)
    found = read_yaml(folder / CONFIG_FILE)["model"]
    # The tokenizer may grow by the special tokens of another objective, and the vocabulary with it.
    left = ("vocab_size", "pretrained")
    sides = {side: found[side] for side in SIDES if found.get(side)}
    within = {name: {key: value for key, value in side.items() if key not in left} for name, side in sides.items()}
    return {key: value for key, value in found.items() if key not in left} | within


def tokenizer_keys(source: str, key: str = "model.pretrained") -> dict[str, str]:
    """The keys of ``tokenizer`` for the tokenizer of an earlier model, named by ``key`` of the configuration."""
    if is_run(source):
        check_run(local_path(source), key)
    return {"type": "pretrained", "path": source}


def is_run(source: str) -> bool:
    """True if a source names a run's folder, rather than a model in the Hugging Face format.

    A folder with neither is taken for a run that has not saved yet, and ``check_run`` says what it lacks.
    """
    folder = local_path(source)
    return folder.is_dir() and not (folder / "config.json").exists()


def check_run(folder: Path, key: str = "model.pretrained") -> None:
    """Refuses a folder, named in the configuration's ``key``, that no run was trained in; says what is missing."""
    for name in (CONFIG_FILE, TOKENIZER_FILE, CHECKPOINTS):
        if not (folder / name).exists():
            raise UserError(f"{key} is {folder}, which has no {name}; expected the output_dir of a run")
