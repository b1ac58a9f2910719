"""From a language model to an assistant: factors of low rank."""

from jaxformer.lora.factors import LoraConfig, adapt, find_targets, init_factors, merge, unmerge
from jaxformer.lora.peft_read import read_adapter
from jaxformer.lora.peft_write import write_adapter

__all__ = [
    "LoraConfig",
    "adapt",
    "find_targets",
    "init_factors",
    "merge",
    "read_adapter",
    "unmerge",
    "write_adapter",
]
