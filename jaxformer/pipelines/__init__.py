"""Pipelines: a task and a model, with the results of ``transformers.pipeline``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxformer.pipelines.base_pipeline import Pipeline, PipelineWarning
    from jaxformer.pipelines.make import pipeline
    from jaxformer.pipelines.opened_model import Opened, open_model
    from jaxformer.pipelines.task_names import ALIASES, TASKS

# Imported when they are first used: the names of the tasks, which the help of a command lists, need no JAX.
_PLACES = {
    "ALIASES": "task_names",
    "TASKS": "task_names",
    "Opened": "opened_model",
    "open_model": "opened_model",
    "Pipeline": "base_pipeline",
    "PipelineWarning": "base_pipeline",
    "pipeline": "make",
}
__all__ = ["ALIASES", "TASKS", "Opened", "Pipeline", "PipelineWarning", "open_model", "pipeline"]


def __getattr__(name: str) -> Any:
    """Imports the module that has a public name."""
    if name not in _PLACES:
        raise AttributeError(f"module 'jaxformer.pipelines' has no attribute {name!r}")
    return getattr(import_module(f"jaxformer.pipelines.{_PLACES[name]}"), name)
