"""The mathematics of the Transformer as pure functions on arrays: no Flax, no configuration objects."""

from jaxformer.functional.attention import (
    cached_attention,
    dot_product_attention,
    merge_heads,
    multi_head_attention,
    project_heads,
)
from jaxformer.functional.cache import KeyValue, append_key_value, empty_key_value
from jaxformer.functional.dropout import dropout, example_keys
from jaxformer.functional.feed_forward import ACTIVATIONS, feed_forward, gelu, gelu_tanh, linear, relu, silu, tanh
from jaxformer.functional.int8 import Quantized, quantize
from jaxformer.functional.losses import (
    IGNORE,
    HeadWeights,
    LossSum,
    TokenLoss,
    binary_cross_entropy,
    chunked_cross_entropy,
    class_weighted_cross_entropy,
    cross_entropy,
    head_logits,
    squared_error,
)
from jaxformer.functional.mask import MASKED, Mask, position_ids_from_mask, position_ids_from_segments
from jaxformer.functional.norm import layer_norm, rms_norm
from jaxformer.functional.packed import Packed, pack, pack_table, take_rows
from jaxformer.functional.penalties import ban_sequences, count_penalties, no_repeat_ngram, repetition_penalty
from jaxformer.functional.positions import (
    Rotary,
    RotaryScaling,
    alibi_bias,
    alibi_slopes,
    apply_rotary,
    learned_positions,
    relative_bias,
    relative_buckets,
    rotary_angles,
    rotary_frequencies,
    sinusoidal_positions,
)
from jaxformer.functional.product import matrix_product
from jaxformer.functional.random import purpose_key
from jaxformer.functional.sampling import (
    min_p_logits,
    sample_token,
    shape_logits,
    top_k_logits,
    top_p_logits,
    typical_logits,
)
from jaxformer.functional.splash import Split

__all__ = [
    "ACTIVATIONS",
    "IGNORE",
    "MASKED",
    "HeadWeights",
    "KeyValue",
    "LossSum",
    "Mask",
    "Packed",
    "Quantized",
    "Rotary",
    "RotaryScaling",
    "Split",
    "TokenLoss",
    "alibi_bias",
    "alibi_slopes",
    "append_key_value",
    "apply_rotary",
    "ban_sequences",
    "binary_cross_entropy",
    "cached_attention",
    "chunked_cross_entropy",
    "class_weighted_cross_entropy",
    "count_penalties",
    "cross_entropy",
    "dot_product_attention",
    "dropout",
    "empty_key_value",
    "example_keys",
    "feed_forward",
    "gelu",
    "gelu_tanh",
    "head_logits",
    "layer_norm",
    "learned_positions",
    "linear",
    "matrix_product",
    "merge_heads",
    "min_p_logits",
    "multi_head_attention",
    "no_repeat_ngram",
    "pack",
    "pack_table",
    "position_ids_from_mask",
    "position_ids_from_segments",
    "project_heads",
    "purpose_key",
    "quantize",
    "relative_bias",
    "relative_buckets",
    "relu",
    "repetition_penalty",
    "rms_norm",
    "rotary_angles",
    "rotary_frequencies",
    "sample_token",
    "shape_logits",
    "silu",
    "sinusoidal_positions",
    "squared_error",
    "take_rows",
    "tanh",
    "top_k_logits",
    "top_p_logits",
    "typical_logits",
]
