"""The objectives, one file each."""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import Field

from jaxformer.data.config import DataConfig
from jaxformer.families import FAMILIES
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError
from jaxformer.tasks.base import Batch, LossSums, Report, ReportingTask, Task, TaskSchema
from jaxformer.tasks.causal_lm import CausalLM, CausalLMConfig
from jaxformer.tasks.denoising import Denoising, DenoisingConfig
from jaxformer.tasks.masked_lm import MaskedLanguageModelling, MaskedLMConfig
from jaxformer.tasks.prefix_lm import PrefixLM, PrefixLMConfig
from jaxformer.tasks.replaced_token_detection import ReplacedTokenDetection, ReplacedTokenDetectionConfig
from jaxformer.tasks.span_corruption import SpanCorruption, SpanCorruptionConfig
from jaxformer.tokenizers import Tokenizer

TaskConfig = Annotated[
    CausalLMConfig
    | PrefixLMConfig
    | MaskedLMConfig
    | ReplacedTokenDetectionConfig
    | SpanCorruptionConfig
    | DenoisingConfig,
    Field(discriminator="type"),
]
TASKS: dict[str, type[TaskSchema]] = {
    config.model_fields["type"].default: config for config in get_args(get_args(TaskConfig)[0])
}


def task_config(keys: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The task's keys; without a ``type`` the objective that the model's family was made for."""
    return {"type": FAMILIES[model["type"]].objective, **keys}


def check_fit(task: TaskSchema, model: TransformerConfig) -> None:
    """Refuses an objective that cannot train such a model.

    Raises:
        UserError: naming the model types that fit the objective and the objectives that fit the model.
    """
    if model.architecture in task.architectures:
        return
    models = [n for n, f in FAMILIES.items() if f.defaults.get("architecture", "decoder") in task.architectures]
    tasks = [n for n, t in TASKS.items() if model.architecture in t.architectures]
    wanted = " or ".join(architecture.replace("_", "-") for architecture in task.architectures)
    raise UserError(
        f"task.type {name_of(task)} does not go with model.type {model.type} ({model.architecture.replace('_', '-')}), "
        f"expected {wanted}: set model.type to one of {', '.join(models)}, or task.type to one of {', '.join(tasks)}"
    )


def name_of(task: TaskSchema) -> str:
    """The ``task.type`` of a configuration."""
    return str(type(task).model_fields["type"].default)


def build_task(config: TaskSchema, tokenizer: Tokenizer, model: TransformerConfig, T: int, data: DataConfig) -> Task:
    """The objective a configuration describes, bound to what it needs to know of the run.

    Raises:
        UserError: if the data's layout does not go with it.
    """
    if not isinstance(config, CausalLMConfig) and data.layout != "packed":
        raise UserError(f"data.layout is {data.layout!r}, expected packed for {name_of(config)}; leave it out")
    match config:
        case CausalLMConfig():
            return CausalLM(config, T, data.layout)
        case PrefixLMConfig():
            return PrefixLM(config, tokenizer, T, model.architecture)
        case MaskedLMConfig():
            return MaskedLanguageModelling(config, tokenizer, T)
        case ReplacedTokenDetectionConfig():
            return ReplacedTokenDetection(config, tokenizer, T)
        case SpanCorruptionConfig():
            return SpanCorruption(config, tokenizer, T)
        case DenoisingConfig():
            return Denoising(config, tokenizer, T)
    raise AssertionError(f"{config} has no objective")


__all__ = [
    "TASKS",
    "Batch",
    "CausalLM",
    "CausalLMConfig",
    "LossSums",
    "Report",
    "ReportingTask",
    "Task",
    "TaskConfig",
    "TaskSchema",
    "build_task",
    "check_fit",
    "name_of",
    "task_config",
]
