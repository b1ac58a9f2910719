"""The models that a server has, each opened for what its head can do."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxformer.generation import GenerationConfig
from jaxformer.generation.scheduler import Scheduler
from jaxformer.pipelines import pipeline
from jaxformer.pipelines.base_pipeline import Pipeline
from jaxformer.pipelines.features import FeatureExtraction
from jaxformer.schema import UserError, local_path
from jaxformer.serving.batcher import Batcher
from jaxformer.serving.guide import Guides
from jaxformer.serving.tools import Form, form_of

# Settings of a model's generation_config.json that requests follow, or that say nothing here.
KNOWN = {
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("eos_token_id", "pad_token_id", "bos_token_id", "suppress_tokens", "do_sample", "max_new_tokens", "max_length"),
}


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        slots: texts that a model writes at once.
        waiting: requests that may wait for each model.
        seconds: that a request may take.
        context: most tokens of prompt and text; None: the model's.
        body: most bytes of a request.
    """

    slots: int = 8
    waiting: int = 256
    seconds: float = 600.0
    context: int | None = None
    body: int = 8 * 2**20


@dataclass
class Served:
    """One model.

    Attributes:
        name: by which requests ask for it.
        pipe: its pipeline.
        uses: what it is asked for: ``completions``, ``chat``, ``embeddings``, ``rerank``, ``classifications``.
        scheduler: of a decoder.
        batcher: of another model.
        guides: of a decoder.
        tool_form: how it writes calls of functions, by its chat template.
        created: seconds since 1970.
    """

    name: str
    pipe: Any
    uses: tuple[str, ...]
    scheduler: Scheduler | None = None
    batcher: Batcher | None = None
    guides: Guides | None = None
    tool_form: Form | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its text, or of a text."""
        return self.scheduler.context if self.scheduler is not None else self.pipe.longest

    def close(self, *, finish: bool) -> None:
        """Stops its thread, with ``finish`` after what was asked."""
        if self.scheduler is not None:
            self.scheduler.close(finish=finish)
        if self.batcher is not None:
            self.batcher.close()


def uses_of(pipe: Pipeline) -> tuple[str, ...]:
    """The uses that a server has for a pipeline.

    Raises:
        UserError: nothing.
    """
    if pipe.task == "text-generation":
        return ("completions", "chat") if pipe.tokenizer.chat_template else ("completions",)
    if pipe.task in ("text2text-generation", "summarization", "translation"):
        return ("completions",)
    if isinstance(pipe, FeatureExtraction) and pipe.format(pipe.options) is not None:
        return ("embeddings",)
    if pipe.task == "text-classification":
        return ("classifications", "rerank") if pipe.model.num_labels == 1 else ("classifications",)
    raise UserError(
        f"{pipe.name} is a model for {pipe.task}, expected one that generates text, a sentence encoder (or pooling=mean"
        " for another encoder), a classifier or a cross-encoder"
    )


def serve_pipeline(name: str, pipe: Any, limits: Limits, **options: Any) -> Served:
    """A model ready for requests; ``options`` are those of the scheduler."""
    uses = uses_of(pipe)
    if pipe.task != "text-generation":
        return Served(name, pipe, uses, batcher=Batcher(pipe, limits.waiting))
    unknown = sorted(pipe.opened.generation.keys() - KNOWN)
    if unknown:
        pipe.say_once("settings", f"{name}: the server leaves out {', '.join(unknown)} of {pipe.opened.settings_from}")
    given = {key: pipe.opened.generation.get(key) for key in ("eos_token_id", "suppress_tokens")}
    config = GenerationConfig(**{key: value for key, value in given.items() if value is not None})
    scheduler = Scheduler(
        pipe.model,
        pipe.params,
        slots=limits.slots,
        context=limits.context,
        waiting=limits.waiting,
        config=config,
        **options,
    )
    guides = Guides(pipe.tokenizer, pipe.model.config.vocabulary, scheduler.rules.end_ids)
    template = pipe.tokenizer.chat_template
    form = form_of(template) if isinstance(template, str) else None
    return Served(name, pipe, uses, scheduler=scheduler, guides=guides, tool_form=form)


def name_of(model: str) -> str:
    """The name under which requests ask for a model: of a folder the last part of its path.

    >>> name_of("owner/encoder"), name_of("runs/dpo/")
    ('owner/encoder', 'dpo')
    """
    folder = local_path(model)
    return folder.resolve().name if folder.exists() or model.count("/") != 1 or model.endswith("/") else model


def open_served(
    models: Sequence[str],
    limits: Limits,
    say: Callable[[str], None] = lambda line: None,
    *,
    dtype: str | None = None,
    numerics: str | None = None,
    cache_dtype: str | None = None,
    **options: Any,
) -> dict[str, Served]:
    """Opens models and compiles what requests will need.

    Args:
        models: run folders, folders in the Hugging Face format, or names on the Hub; also ``NAME=MODEL``.
        limits: of requests.
        say: called with lines about the progress.
        dtype: of ``pipeline``.
        numerics: likewise.
        cache_dtype: of keys and values.
        **options: of the pipelines, such as ``weights``; each model takes those that its task has.

    Raises:
        UserError: there is no such model, it cannot be served, two have one name, or no task has an option.
    """
    found: dict[str, Served] = {}
    stored = {"weights": options.pop("weights")} if "weights" in options else {}
    for given in models:
        own, equals, path = given.partition("=")
        name, path = (own, path) if equals else (name_of(given), given)
        if name in found:
            raise UserError(f"two models are called {name!r}; name one of them: --model NAME={path}")
        pipe = pipeline(None, path, dtype=dtype, numerics=numerics, **stored)
        pipe.given |= {key: value for key, value in options.items() if key in pipe.Options.model_fields}
        pipe.options = pipe.parse({})
        cached = {"cache_dtype": cache_dtype} if pipe.task == "text-generation" else {}
        served = found[name] = serve_pipeline(name, pipe, limits, **cached)
        if served.scheduler is not None:
            served.scheduler.warm(lambda line, name=name: say(f"{name}: compiling for {line}"))  # type: ignore[misc]
    unknown = [key for key in options if not any(key in one.pipe.Options.model_fields for one in found.values())]
    if unknown:
        raise UserError(f"no model has the option {unknown[0]!r}, expected one of its task")
    return found
