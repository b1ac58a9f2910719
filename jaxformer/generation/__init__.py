"""Text from models."""

from jaxformer.generation.decode import search
from jaxformer.generation.engine import Piece, generate, stream
from jaxformer.generation.inside import generate_inside, is_inside
from jaxformer.generation.options import (
    GenerationConfig,
    SettingsWarning,
    compile_options,
    parse_options,
    read_settings,
)
from jaxformer.generation.prepare import prepare
from jaxformer.generation.request import GenerateOutput
from jaxformer.generation.speculative import SpeculativeOutput, speculative_generate
