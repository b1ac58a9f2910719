"""Parameters stored with fewer bits for models that read whole texts at once, where products are what takes time."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer import functional as F
from jaxformer.generation.prepare import WEIGHTS
from jaxformer.models.exact import with_numerics
from jaxformer.models.kernel_layout import has_experts, kernel_axes, layer_ndim
from jaxformer.models.layers import PACKED
from jaxformer.schema import UserError


def with_weights(model: nn.Module, params: Any, weights: str) -> tuple[Any, Any]:
    """Returns the model and its parameters with kernels stored in a type, in which they are multiplied too.

    Args:
        model: any, whose numerics are fast.
        params: its parameters.
        weights: ``float32``; ``bfloat16``, products of numbers rounded to it with sums in float32; or ``int8``, where
            the kernels of the layers have a scale for each output and activations one for each token.

    Raises:
        UserError: if ``weights`` is unknown, or the numerics do not suit.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights is {weights!r}, expected one of {', '.join(WEIGHTS)}")
    if weights == "float32":
        return model, params
    config = model.config
    if config.exact:
        raise UserError(f"weights is {weights!r} and numerics is exact, expected None: every weight keeps its bits")
    laid: dict[tuple[str, ...], Any] = {}
    for path, leaf in flatten_dict(nn.unbox(params)).items():
        name = "/".join(path)
        if path[-1] != "kernel" or has_experts(name):
            laid[path] = leaf
        elif weights == "bfloat16":
            laid[path] = leaf.astype(jnp.bfloat16)
        elif "layers" in path:
            first = leaf.ndim - layer_ndim(name)  # 1 where layers are stacked
            inputs = tuple(range(first, first + kernel_axes(name).inputs))
            laid[(*path[:-1], PACKED)] = F.IntegerKernel(F.quantize(leaf, inputs))
        else:
            laid[path] = leaf
    if weights == "bfloat16" and config.dtype == "float32":
        model = model.clone(config=with_numerics(config, "bfloat16"))
    return model, unflatten_dict(laid)
