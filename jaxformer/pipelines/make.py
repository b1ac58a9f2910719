"""``pipeline``: a task and a model become a function from texts to results."""

from pathlib import Path
from typing import Any

from jaxformer.hub.kinds import kind_of
from jaxformer.pipelines.base_pipeline import Pipeline
from jaxformer.pipelines.compiled_programs import keep_programs
from jaxformer.pipelines.opened_model import open_model, use_of
from jaxformer.pipelines.task_names import TASKS, find_task, languages, pipeline_class, tasks_of
from jaxformer.schema import UserError


def pipeline(
    task: str | None = None,
    model: Any = None,
    tokenizer: Any = None,
    params: Any = None,
    *,
    batch_size: int = 8,
    dtype: str | None = None,
    numerics: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> Pipeline:
    """A function from texts to results, with the inputs and results of ``transformers.pipeline``.

    Args:
        task: ``text-classification``, ``token-classification``, ...; default: what the model was trained for.
        model: the output folder of a run, a folder in the Hugging Face format, a name on the Hub, a pair of a model and
            its parameters, or a model.
        tokenizer: default: the model's own.
        params: the parameters of a model given as such.
        batch_size: rows of a batch of texts of 64 tokens and more; of shorter ones as many as have no more tokens.
        dtype: of parameters and computation, ``float32`` or ``bfloat16``; default: the run's, else float32.
        numerics: ``fast``, ``exact``, with which a row's bits do not depend on its batch, or ``bfloat16``, whose
            products are of numbers rounded to it; default: the run's, else fast.
        revision: branch, tag or commit on the Hub.
        token: access token of the Hub.
        cache_dir: where downloads are kept.
        local_files_only: use the cache only, without network access.
        **options: of the task, such as ``top_k=3``; the options of a call override them. Of every task ``weights``:
            ``float32``, ``bfloat16`` or ``int8``, in which kernels are stored and, except in generation, multiplied.

    Raises:
        UserError: there is no such task, model or option, or the model has no trained head for the task.
    """
    keep_programs()
    if model is None:
        raise UserError("no model was given, expected model= a run's folder, a folder, or a name on the Hub")
    name = None if task is None else find_task(task)
    if name == "translation" and (pair := languages(str(task))) is not None:
        options = {"src_lang": pair[0], "tgt_lang": pair[1], **options}
    opened = open_model(
        model,
        None if name is None else TASKS[name].kind,
        params=params,
        tokenizer=tokenizer,
        dtype=dtype,
        numerics=numerics,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    if name is None:
        kind = use_of(kind_of(opened.model), opened.model.config.type)
        name = next((task for task in TASKS if TASKS[task].kind == kind), None)
        if name is None:
            raise UserError(
                f"task was not given and {opened.name} has none of its own: its head is {kind}, expected another model "
                f"or a task; this one can do: {', '.join(tasks_of(kind))}"
            )
    return pipeline_class(name)(name, opened, batch_size, **options)
