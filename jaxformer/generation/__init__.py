"""Text from models."""

from jaxformer.generation.decode import search
from jaxformer.generation.engine import GenerateOutput, Piece, generate, stream
from jaxformer.generation.options import GenerationConfig, compile_options, parse_options, read_generation_config
from jaxformer.generation.prepare import prepare

__all__ = [
    "GenerateOutput",
    "GenerationConfig",
    "Piece",
    "compile_options",
    "generate",
    "parse_options",
    "prepare",
    "read_generation_config",
    "search",
    "stream",
]
