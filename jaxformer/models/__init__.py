"""Transformer modules: declared parameters around the pure functions."""

from jaxformer.models.cache import KVCache, init_cache
from jaxformer.models.config import RopeScaling, TransformerConfig
from jaxformer.models.stack import Block, Context, Stack, stacked_blocks
from jaxformer.models.transformer import (
    CausalLMOutput,
    Decoder,
    Encoder,
    EncoderDecoder,
    EncoderOutput,
    Seq2SeqOutput,
)

__all__ = [
    "Block",
    "CausalLMOutput",
    "Context",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "EncoderOutput",
    "KVCache",
    "RopeScaling",
    "Seq2SeqOutput",
    "Stack",
    "TransformerConfig",
    "init_cache",
    "stacked_blocks",
]
