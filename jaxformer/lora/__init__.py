"""LoRA: low-rank factors beside the kernels of a frozen model."""

from jaxformer.lora.factors import LoraConfig, adapt, find_targets, init_factors, merge, unmerge
from jaxformer.lora.peft import read_adapter, untie, write_adapter
