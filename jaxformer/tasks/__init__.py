"""The objectives, one file each."""

from jaxformer.tasks.base import Batch, LossSums, Task
from jaxformer.tasks.causal_lm import CausalLM, CausalLMConfig

TaskConfig = CausalLMConfig


def build_task(config: TaskConfig) -> Task:
    """The objective a configuration describes."""
    return CausalLM(config)


__all__ = ["Batch", "CausalLM", "CausalLMConfig", "LossSums", "Task", "TaskConfig", "build_task"]
