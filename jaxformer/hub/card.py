"""The model card: README.md of a model's repository."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from jaxformer.hub.kinds import KINDS
from jaxformer.models.config import TransformerConfig


def model_card(
    name: str, kind: str, config: TransformerConfig, metrics: Mapping[str, float], card: Mapping[str, Any]
) -> str:
    """The card's text, with its head of metadata.

    Args:
        name: of the model.
        kind: of the model.
        config: of the model.
        metrics: results by name.
        card: further keys of the head, such as ``license`` or ``datasets``.
    """
    task, opener = KINDS[kind].task, KINDS[kind].opener
    results = [
        EvalResult(task or "other", "validation", str(card.get("datasets", "validation")), metric, float(value))
        for metric, value in metrics.items()
    ]
    head = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
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

model, params = jaxformer.{opener}.from_pretrained("{name}")
tokenizer = jaxformer.AutoTokenizer.from_pretrained("{name}")
output = model.apply({{"params": params}}, **tokenizer(["a text"], padding=True, return_tensors="np"))
```

PyTorch's `transformers.{opener}.from_pretrained` opens it too.
"""
