"""A sequence-to-sequence model whose encoder and decoder come from a checkpoint each (Rothe et al. 2020)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from jaxformer.families import encoder_decoder, get_family, model_config
from jaxformer.families.checkpoint import Loaded, read_params
from jaxformer.hub.kinds import abstract_params, build
from jaxformer.hub.pretrained import Pretrained, completed, read_config, untie, warn
from jaxformer.hub.repository import Repository
from jaxformer.hub.weights import open_weights
from jaxformer.models.config import OF_THE_WHOLE, SIDES, TransformerConfig, check_dtype
from jaxformer.models.transformer import BODIES
from jaxformer.parallel.mesh import parameter_shardings

# What is read of either checkpoint.
KINDS_OF_SIDES = {"encoder": "body", "decoder": "causal_lm"}


def split_overrides(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Keys of the whole, and of each side: ``encoder_dropout`` is its encoder's, ``dropout`` that of both."""
    whole: dict[str, Any] = {}
    sides: dict[str, dict[str, Any]] = {side: {} for side in SIDES}
    for key, value in overrides.items():
        side, _, name = key.partition("_")
        if key in OF_THE_WHOLE:
            whole[key] = value
        elif side in sides and name in TransformerConfig.model_fields:
            sides[side][name] = value
        else:
            for of_side in sides.values():
                of_side.setdefault(key, value)
    return whole, sides


def load_sides(
    encoder: Repository,
    decoder: Repository,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any],
) -> Pretrained:
    """The model and its parameters; see ``EncoderDecoderModel.from_encoder_decoder_pretrained``."""
    check_dtype(dtype)
    whole, of_sides = split_overrides(overrides)
    repositories = dict(zip(SIDES, (encoder, decoder), strict=True))
    described = {
        side: read_config(repository, {"architecture": side, **of_sides[side]})
        for side, repository in repositories.items()
    }
    keys: dict[str, Any] = {side: found.config.model_dump() for side, found in described.items()}
    ids = encoder_decoder.token_ids({}, keys["decoder"])
    keys = model_config({"type": encoder_decoder.NAME, **keys, **ids, **whole, "dtype": dtype})
    weights = {side: open_weights(repository) for side, repository in repositories.items()}
    untied = untie(described["decoder"], "causal_lm", weights["decoder"], decoder.name)
    if "tie_embeddings" not in whole:
        keys["tie_embeddings"] = untied.tie_embeddings
    config = TransformerConfig(**keys)
    model = build(config, "seq2seq_lm")
    loaded = Loaded()
    for side, kind in KINDS_OF_SIDES.items():
        own = getattr(config, f"{side}_side")
        boxed = abstract_params(BODIES[side](own))
        shardings = None if mesh is None else parameter_shardings(boxed, mesh)
        options: dict[str, Any] = {"shardings": shardings, "dtype": jnp.dtype(dtype), "may_differ": True}
        found = read_params(get_family(own.type).hub, own, kind, weights[side], nn.unbox(boxed), **options)
        loaded.params |= {f"{side}/{name}": array for name, array in found.params.items()}
        warn(repositories[side].name, Loaded(left=found.left))
    boxed, key = abstract_params(model), jax.random.key(seed)
    loaded.missing = [name for name in flatten_dict(nn.unbox(boxed), sep="/") if name not in loaded.params]
    return completed(f"{encoder.name} with {decoder.name}", model, boxed, loaded, key, dtype, mesh)
