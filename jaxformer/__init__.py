"""jaxformer: the Transformer family as pure functions in JAX."""

from importlib import import_module
from typing import Any

from jaxformer.libtpu import tell_libtpu_without_tpu

__version__ = "0.1.0"

# Packages and names at the top level, imported when they are first used, so that ``import jaxformer`` is fast.
_PACKAGES = (
    "check",
    "data",
    "families",
    "functional",
    "generation",
    "hub",
    "lora",
    "models",
    "plot",
    "tasks",
    "tokenizers",
    "training",
)
_MODELS = (
    *("", "ForCausalLM", "ForMaskedLM", "ForMultipleChoice", "ForPreTraining", "ForQuestionAnswering", "ForSeq2SeqLM"),
    *("ForSequenceClassification", "ForTokenClassification"),
)
_PLACES = {
    **{f"AutoModel{name}": "hub" for name in _MODELS},
    **dict.fromkeys(("AutoConfig", "AutoTokenizer", "AutoSentenceEncoder", "push_to_hub", "save_pretrained"), "hub"),
    **dict.fromkeys(("generate", "stream", "prepare"), "generation"),
    "EncoderDecoderModel": "hub",
    "pipeline": "pipelines",
    "load_run": "training.export",
}
__all__ = [*_PACKAGES, *_PLACES, "__version__"]


tell_libtpu_without_tpu()  # before JAX looks for devices


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"jaxformer.{name}")
    if name in _PLACES:
        return getattr(import_module(f"jaxformer.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'jaxformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
