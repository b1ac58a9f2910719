"""The objectives, one file each."""

from jaxformer.data.config import DataConfig
from jaxformer.tasks.base import Batch, LossSums, Report, ReportingTask, Task, TaskSchema
from jaxformer.tasks.causal_lm import CausalLM, CausalLMConfig
from jaxformer.tokenizers import Tokenizer

TaskConfig = CausalLMConfig


def build_task(config: TaskConfig, tokenizer: Tokenizer, sequence_length: int, data: DataConfig) -> Task:
    """The objective a configuration describes, bound to what it needs to know of the run."""
    return CausalLM(config, sequence_length, data.layout)


__all__ = [
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
]
