"""Tiny models in the Hugging Face format, in a folder."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.families import model_config
from jaxformer.hub import save_pretrained
from jaxformer.hub.kinds import abstract_params, build
from jaxformer.models import TransformerConfig

SIZES = {"vocab_size": 17, "hidden_size": 8, "num_heads": 2, "num_layers": 3, "intermediate_size": 12, "max_length": 16}


def make(family="bert", kind="masked_lm", labels=(), **keys):
    """A model and random parameters, none of them at a neutral value."""
    config = TransformerConfig(**model_config({"type": family, **SIZES, **keys}))
    model = build(config, kind, num_labels=len(labels) or 2, labels=labels)
    random = np.random.default_rng(0)

    def draw(path, leaf):
        # Scales of norms are around 1, all else around 0.
        return jnp.asarray(random.normal(path[-1].key == "scale", 0.3, leaf.shape), jnp.float32)

    return model, jax.tree_util.tree_map_with_path(draw, nn.unbox(abstract_params(model)))


def save(folder, *args, **kwargs):
    """The folder of such a model."""
    model, params = make(*args, **kwargs)
    return save_pretrained(folder, model, params)


def edit(folder, **keys):
    """Changes keys of ``config.json``; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
