"""Pipelines: a task and a model, with the results of ``transformers.pipeline``."""

from typing import TYPE_CHECKING

from jaxformer.lazy import importer

if TYPE_CHECKING:
    from jaxformer.pipelines.base_pipeline import Pipeline, PipelineWarning
    from jaxformer.pipelines.make import pipeline
    from jaxformer.pipelines.opened_model import Opened, open_model
    from jaxformer.pipelines.task_names import ALIASES, TASKS

__all__ = ["ALIASES", "TASKS", "Opened", "Pipeline", "PipelineWarning", "open_model", "pipeline"]

# The names of the tasks, which the help of a command lists, need no JAX.
__getattr__ = importer(
    __name__,
    {
        "ALIASES": "task_names",
        "TASKS": "task_names",
        "Opened": "opened_model",
        "open_model": "opened_model",
        "Pipeline": "base_pipeline",
        "PipelineWarning": "base_pipeline",
        "pipeline": "make",
    },
)
