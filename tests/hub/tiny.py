"""Tiny models in the Hugging Face format, in a folder."""

import json

import jax
import jax.numpy as jnp

from jaxformer.families import model_config
from jaxformer.hub import save_pretrained
from jaxformer.hub.kinds import build
from jaxformer.models import TransformerConfig

SIZES = {"vocab_size": 17, "hidden_size": 8, "num_heads": 2, "num_layers": 3, "intermediate_size": 12, "max_length": 16}


def make(family="bert", kind="masked_lm", labels=(), **keys):
    """A model and random parameters, none of them at a neutral value."""
    config = TransformerConfig(**model_config({"type": family, **SIZES, **keys}))
    model = build(config, kind, num_labels=len(labels) or 2, labels=labels)
    shape = getattr(model, "init_shape", (1, 2))
    import flax.linen as nn

    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape, jnp.int32)))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return model, jax.tree.unflatten(
        tree, [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    )


def save(folder, *args, **kwargs):
    """The folder of such a model."""
    model, params = make(*args, **kwargs)
    return save_pretrained(folder, model, params)


def edit(folder, **keys):
    """Changes keys of ``config.json``; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
