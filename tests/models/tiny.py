"""Tiny models with odd sizes, one for every combination of switches the contract must hold for."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig

V = 29
SIZES = {
    "vocab_size": V,
    "hidden_size": 18,
    "num_layers": 2,
    "num_heads": 3,
    "intermediate_size": 22,
    "max_length": 20,
    "unroll": 1,
}
GROUPED = {"num_heads": 6, "num_kv_heads": 3, "head_size": 4}
CONFIGS = {
    "gpt2": {"type": "gpt2"},
    "llama": {
        "type": "llama",
        "tie_embeddings": False,
        "rope_scaling": {"type": "llama3", "factor": 4.0, "original_max_length": 8},
        **GROUPED,
    },
    "post_norm": {"type": "gpt2", "norm_place": "post", "positions": "sinusoidal"},
    "parallel": {"type": "gpt_neox", "rotary_fraction": 0.7},  # 4 of 6
    "window": {"type": "mistral", "window": 3, "num_kv_heads": 1, "head_size": 6, "tie_embeddings": True},
    "offset": {"type": "opt"},
    "alibi": {"type": "bloom"},
    "head_norms": {"type": "gemma", "qk_norm": True, **GROUPED},  # Gemma and Qwen3 in one
}


def config_of(name, **switches):
    return TransformerConfig(**model_config({**SIZES, **CONFIGS[name], **switches}))


@functools.cache
def shapes(config):
    return nn.unbox(jax.eval_shape(build_model(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]


@functools.cache
def random_params(config):
    """The same for the same shapes, and far larger than an initialisation, norms and biases too, so that nothing hides
    behind being small or zero.
    """
    random = np.random.default_rng(0)

    def draw(path, shape):
        value = 0.4 * random.standard_normal(shape.shape)
        return jnp.asarray(value + (1.0 if path[-1].key == "scale" else 0.0), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(config))


def tiny(name, **switches):
    """The model and random parameters of it."""
    config = config_of(name, **switches)
    return build_model(config), random_params(config)


def tokens(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(1, V, shape))
