"""Transformer modules: declared parameters around the pure functions."""

from jaxformer.models.config import RopeScaling, TransformerConfig
from jaxformer.models.transformer import Block, CausalLMOutput, Decoder, KVCache, init_cache, stacked_blocks

__all__ = [
    "Block",
    "CausalLMOutput",
    "Decoder",
    "KVCache",
    "RopeScaling",
    "TransformerConfig",
    "init_cache",
    "stacked_blocks",
]
