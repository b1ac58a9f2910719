"""Mistral (Jiang et al. 2023): LLaMA with a sliding window."""

from dataclasses import replace

from jaxformer.families import llama
from jaxformer.families.format import Family, Key

# The shape is that of Mistral 7B v0.1.
DEFAULTS = {
    **llama.DEFAULTS,
    "hidden_size": 4096,
    "num_layers": 32,
    "head_size": None,
    "intermediate_size": 14336,
    "max_length": 32768,
    "rope_theta": 10_000.0,
    "window": 4096,
    "tie_embeddings": False,
}


FORMAT = replace(
    llama.FORMAT,
    model_type="mistral",
    # Their window counts the token itself, as ours does.
    keys=(*llama.KEYS, Key("window", "sliding_window", None)),
    heads=llama.heads("Mistral", qa_prefix="model."),
    constants={},
)
FAMILY = Family("mistral", DEFAULTS, FORMAT)
