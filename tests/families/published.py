"""One published model of each family, a line each in ``published.jsonl``: its ``config.json`` and its size."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.families.format import RESOLVED
from jaxformer.models.config import SIDES, TransformerConfig


class Published(NamedTuple):
    """A published model.

    Attributes:
        family: ours.
        hub: its name on the Hugging Face Hub.
        parameters: number of parameters of the PyTorch model, a tied head counted once; a parity test checks it.
        hf: its ``config.json``, without keys that are not about the model.
        differs: our keys in which the family's defaults differ from this model.
        model_class: the class of transformers with this number of parameters.
        untied: parameters of an output layer that transformers 5 unties only when it reads a checkpoint.
    """

    family: str
    hub: str
    parameters: int
    hf: dict[str, Any]
    differs: dict[str, Any] = {}
    model_class: str = "AutoModelForCausalLM"
    untied: int = 0


LINES = (Path(__file__).parent / "published.jsonl").read_text().splitlines()
PUBLISHED = [Published(**json.loads(line)) for line in LINES]


def resolved(config: TransformerConfig, exclude: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The keys of a configuration, and of its sides, with what follows from others worked out."""
    keys = config.model_dump(exclude=set(exclude)) | {key: getattr(config, name) for key, name in RESOLVED.items()}
    return keys | {side: resolved(getattr(config, side), exclude) for side in SIDES if getattr(config, side)}
