"""A run as it lies in its folder: its configuration, tokenizer and model, without its data."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.tasks import Bound, build_task
from jaxformer.tokenizers import Tokenizer, load_tokenizer
from jaxformer.training.config import RunConfig, parse_config, read_yaml
from jaxformer.training.pretrained import CONFIG_FILE, TOKENIZER_FILE, check_run


class StoredRun(NamedTuple):
    """What a run was made of.

    Attributes:
        config: of the run, ``model.pretrained`` included.
        tokenizer: that it was trained with.
        model: with the head of the objective.
    """

    config: RunConfig
    tokenizer: Tokenizer
    model: Any


def open_run(folder: Path) -> StoredRun:
    """Opens the folder of a run; its data and what it started from are not read.

    Raises:
        UserError: if the folder holds no run, or one that has not saved yet.
    """
    check_run(folder)
    keys = read_yaml(folder / CONFIG_FILE)
    source = keys["model"].pop("pretrained", None)  # it may be gone, and its keys are all in the file
    config = parse_config({**keys, "lora": None}, str(folder / CONFIG_FILE))
    model = config.model.model_copy(update={"pretrained": source})
    if keys.get("lora") is not None:
        from jaxformer.lora.factors import LoraConfig

        config = config.model_copy(update={"lora": LoraConfig(**keys["lora"])})
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    task = build_task(config.task, Bound(tokenizer, config.model, config.sequence_length, config.data.layout, ()))
    return StoredRun(config.model_copy(update={"model": model}), tokenizer, task.model(config.model))
