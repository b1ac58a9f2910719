"""Transformer modules: declared parameters around the pure functions."""

from jaxformer.models.config import RopeScaling, TransformerConfig
from jaxformer.models.inputs import Inputs
from jaxformer.models.kv_cache import KVCache, init_cache
from jaxformer.models.outputs import CausalLMOutput, EncoderOutput, Seq2SeqOutput
from jaxformer.models.stack import Block, Context, Stack, stacked_blocks
from jaxformer.models.transformer import Decoder, Encoder, EncoderDecoder
