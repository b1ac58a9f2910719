"""jaxformer: the Transformer family as pure functions in JAX."""

from importlib import import_module
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
_PLACES = {
    **dict.fromkeys(_HUB, "hub"),
    **dict.fromkeys(("generate", "stream", "prepare"), "generation"),
    "pipeline": "pipelines",
}
__all__ = [*_PLACES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"jaxformer.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'jaxformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
