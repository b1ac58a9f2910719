"""Tiny models with odd sizes, one for every combination of switches the contract must hold for."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.families import FAMILIES, build_model, model_config
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
    "mamba": {"type": "mamba", "state_size": 5, "time_step_rank": 4, "conv_size": 3},
    "mamba2": {"type": "mamba2", "intermediate_size": 24, "num_heads": 6, "state_size": 5, "state_groups": 2},
    "experts": {"type": "olmoe", "qkv_clip": 2.0, "num_experts": 5, "experts_per_token": 2, **GROUPED},
}

ENCODERS = {
    "bert": {"type": "bert"},
    "albert": {"type": "albert", "embedding_size": 10},
    "modernbert": {"type": "modernbert", "num_layers": 3, "window": 3, "global_every": 2},
}
ENCODER_DECODERS = {
    "t5": {"type": "t5", "head_size": 4, "relative_buckets": 8, "relative_max_distance": 10},
    "bart": {"type": "bart", "num_decoder_layers": 1},
    "transformer": {"type": "transformer"},
}
# Every family, as small as that.
FAMILY_CONFIGS = {name: {"type": name} for name in FAMILIES}
FAMILY_CONFIGS |= {name: CONFIGS["experts"] | {"type": name} for name in ("mixtral", "qwen3_moe", "olmoe")}
FAMILY_CONFIGS |= {name: CONFIGS[name] for name in ("mamba", "mamba2")}
FAMILY_CONFIGS |= {"modernbert": ENCODERS["modernbert"], "gpt_neox": CONFIGS["parallel"]}
FAMILY_CONFIGS |= {
    "gemma2": {"type": "gemma2", "window": 3, **GROUPED},
    "gemma3": {"type": "gemma3", "num_layers": 3, "window": 3, "global_every": 3, "global_first": 2, **GROUPED},
    "embedding_gemma": {"type": "embedding_gemma", "window": 3, **GROUPED},
    "phi3": {"type": "phi3", "window": 3},
    "gpt_neo": {"type": "gpt_neo", "window": 3},
    "gptj": {"type": "gptj", "rotary_fraction": 0.7},
    "phi": {"type": "phi", "rotary_fraction": 0.7},
    "olmo": {"type": "olmo", "qkv_clip": 0.7},
    "deberta_v3": {"type": "deberta_v3", "relative_buckets": 4, "relative_max_distance": 7},
    "umt5": {"type": "umt5", "head_size": 4, "relative_buckets": 8, "relative_max_distance": 10},
    "longt5": {
        "type": "longt5",
        "head_size": 4,
        "relative_buckets": 8,
        "relative_max_distance": 10,
        "encoder_window": 2,
        "summary_size": 3,
    },
    "blenderbot": {"type": "blenderbot", "num_decoder_layers": 1},
    "m2m100": {"type": "m2m100", "num_decoder_heads": 2, "decoder_intermediate_size": 10},
    "t5gemma": {
        "type": "t5gemma",
        "window": 3,
        **GROUPED,
        "encoder": {"hidden_size": 12},
        "decoder": {"num_layers": 1},
    },
    "encoder_decoder": {
        "type": "encoder_decoder",
        "encoder": {"type": "albert", "hidden_size": 12, "embedding_size": 10, "num_layers": 3},
    },
}
EVERY_CONFIG = FAMILY_CONFIGS | CONFIGS | ENCODERS | ENCODER_DECODERS


def config_of(name, **switches):
    """Without dropout, which is asked for where it is meant."""
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    return TransformerConfig(**model_config({**SIZES, **still, **EVERY_CONFIG[name], **switches}))


def _distinct():
    """The families whose models differ at these sizes by more than what only training and files read."""
    ignored = ("type", "initializer", "initializer_range", "rope_theta", "norm_epsilon", "pooler", "pooling", "unroll")
    found = {}
    for name in FAMILIES:
        switches = config_of(name).model_dump(exclude={*ignored, "choice_pooler", "token_pooler", "decoder_start"})
        found.setdefault(str(sorted(switches.items(), key=lambda item: item[0])), name)
    return list(found.values())


DISTINCT = _distinct()


@functools.cache
def shapes(config, model=None):
    model = model or build_model(config)
    inputs = jnp.zeros(getattr(model, "init_shape", (1, 2)), jnp.int32)
    return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), inputs))["params"]


@functools.cache
def random_params(config, model=None):
    """The same for the same shapes, and far larger than an initialisation, norms and biases too, so that nothing hides
    behind being small or zero.
    """
    random = np.random.default_rng(0)

    def draw(path, shape):
        value = 0.4 * random.standard_normal(shape.shape)
        return jnp.asarray(value + (1.0 if path[-1].key == "scale" else 0.0), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(config, model))


def tiny(name, **switches):
    """The model and random parameters of it."""
    config = config_of(name, **switches)
    return build_model(config), random_params(config)


def tokens(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(1, V, shape))
