"""jaxformer: the Transformer family as pure functions in JAX."""

from typing import Any

__version__ = "0.1.0"

# What stands at the top, and where it is; imported when it is asked for, so that ``import jaxformer`` is fast.
_HUB = (
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "push_to_hub",
    "save_pretrained",
)
_PIPELINES = ("pipeline",)
__all__ = [*_HUB, *_PIPELINES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HUB:
        from jaxformer import hub

        return getattr(hub, name)
    if name in _PIPELINES:
        from jaxformer import pipelines

        return getattr(pipelines, name)
    raise AttributeError(f"module 'jaxformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
