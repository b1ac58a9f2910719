"""The model card: README.md of a model's repository."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from jaxformer.hub.kinds import KINDS, kind_of
from jaxformer.models.sentence_encoder import SentenceEncoder

OF_MODEL = """model, params = jaxformer.{opener}.from_pretrained("{name}")
tokenizer = jaxformer.AutoTokenizer.from_pretrained("{name}")
output = model.apply({{"params": params}}, **tokenizer(["a text"], padding=True, return_tensors="np"))"""
OF_SENTENCES = """vectors = jaxformer.pipeline("feature-extraction", "{name}")(["a text", "another"])"""


def model_card(name: str, model: Any, metrics: Mapping[str, float], card: Mapping[str, Any]) -> str:
    """The card's text, with its head of metadata.

    Args:
        name: of the model.
        model: the model.
        metrics: results by name.
        card: further keys of the head, such as ``license`` or ``datasets``.
    """
    config, sentences = model.config, isinstance(model, SentenceEncoder)
    task, opener = KINDS[kind_of(model)].task, KINDS[kind_of(model)].opener
    theirs = "sentence_transformers.SentenceTransformer" if sentences else f"transformers.{opener}.from_pretrained"
    results = [
        EvalResult(task or "other", "validation", str(card.get("datasets", "validation")), metric, float(value))
        for metric, value in metrics.items()
    ]
    head = ModelCardData(
        library_name="sentence-transformers" if sentences else "transformers",
        pipeline_tag="sentence-similarity" if sentences else task,
        tags=["jax", "jaxformer", config.type],
        model_name=name,
        eval_results=results or None,
        **card,
    )
    rows = "".join(f"| {metric} | {value:.4g} |\n" for metric, value in metrics.items())
    table = f"\n| metric (validation) | value |\n|---|---|\n{rows}" if rows else ""
    return f"""---
{head.to_yaml()}
---

# {name}

A {config.type} model ({config.num_layers} layers, {config.hidden_size} wide), trained with jaxformer.
{table}
```python
import jaxformer

{(OF_SENTENCES if sentences else OF_MODEL).format(opener=opener, name=name)}
```

PyTorch's `{theirs}` opens it too.
"""
