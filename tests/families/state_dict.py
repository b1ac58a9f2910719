"""A state dict in memory, read as the product reads a checkpoint."""

from flax.traverse_util import unflatten_dict

from jaxformer.families.checkpoint import ArrayWeights, read_params


def params_from_hf(format, config, kind, state_dict, shapes):
    """Our whole parameter tree, float32; nothing may be missing."""
    loaded = read_params(format, config, kind, ArrayWeights(state_dict), shapes)
    assert loaded.missing == []
    return unflatten_dict(loaded.params, sep="/")
