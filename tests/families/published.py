"""One published model of each family, a line each in ``published.jsonl``: its ``config.json`` and its size."""

import json
from pathlib import Path
from typing import Any, NamedTuple


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
