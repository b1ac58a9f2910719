"""Parameters laid out for decoding: separate layers, packed kernels, fewer bits if asked."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer import functional as F
from jaxformer.models.kernel_layout import has_experts, kernel_axes
from jaxformer.models.layers import PACKED
from jaxformer.models.partition import platform
from jaxformer.schema import UserError

WEIGHTS = ("float32", "bfloat16", "int8")


def is_prepared(params: Any) -> bool:
    """True if ``prepare`` made these parameters."""
    return "0" in params.get("decoder", params)["layers"]


def _is_spread(leaf: Any) -> bool:
    """True if an array is, or in a program may be, on several devices."""
    if isinstance(leaf, jax.core.Tracer):
        return True
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


def prepare(model: nn.Module, params: Any, weights: str | None = None) -> Any:
    """Lays parameters out as ``generate`` reads them fastest. The model computes the same, up to rounding.

    A kernel becomes a matrix with its outputs first (``functional.Packed``) and layers are separate, so that decoding
    reads every weight once, in place. Parameters that are sharded over several devices keep their shards and kernels,
    those of exact numerics their kernels, so that the products are those of training.

    ``generate`` does this in each call if parameters are not prepared; it takes about as long as a few tokens.

    Args:
        model: a decoder or encoder-decoder.
        params: its parameters.
        weights: ``float32``, ``bfloat16`` or ``int8``, which stores kernels and token embedding with a scale for each
            output channel and computes in the model's dtype; default: unchanged.

    Returns:
        A tree for ``generate``, and for ``model.apply``.

    Raises:
        UserError: if ``weights`` is unknown, or given with prepared or sharded parameters or exact numerics.
    """
    if weights is not None and weights not in WEIGHTS:
        raise UserError(f"weights is {weights!r}, expected one of {', '.join(WEIGHTS)}")
    if is_prepared(params):
        if weights is not None:
            raise UserError(
                f"the parameters are prepared already, and weights is {weights!r}; prepare the original ones"
            )
        return params
    params = nn.unbox(params)  # as ``init`` returns them
    spread = any(map(_is_spread, jax.tree.leaves(params)))
    if spread and weights is not None:
        raise UserError(
            f"weights is {weights!r} for parameters that are sharded over several devices, expected None: leave it out"
        )
    exact = model.config.exact
    if exact and weights is not None:
        raise UserError(f"weights is {weights!r} and numerics is exact, expected None: every weight keeps its bits")
    sides = (model.config.encoder_side.share_layers, model.config.decoder_side.share_layers)
    return _prepare(params, sides, not (spread or exact), weights)


@partial(jax.jit, static_argnames=("shared", "pack", "weights"))
def _prepare(params: Any, shared: tuple[bool, bool], pack: bool, weights: str | None) -> Any:
    """Lays them out; ``shared`` says of either side whether all its blocks are one."""
    laid: dict[tuple[str, ...], Any] = {}
    for path, leaf in flatten_dict(params).items():
        parts = {path: leaf}
        if "layers" in path:
            start = path.index("layers") + 1
            layers = [leaf] if shared[path[0] == "decoder"] else [leaf[i] for i in range(len(leaf))]
            parts = {(*path[:start], str(i), *path[start:]): layer for i, layer in enumerate(layers)}
        for place, part in parts.items():
            found = _packed(weights, path, part) if pack else part
            laid[(*place[:-1], PACKED) if isinstance(found, F.Packed) else place] = found
    return unflatten_dict(laid)


def _packed(weights: str | None, path: tuple[str, ...], value: Any) -> Any:
    """Packs a kernel or token table; anything else stays, in bfloat16 if asked."""
    owner, name = ("", *path)[-2:]
    if has_experts("/".join(path)):
        # A token reads the kernels of its experts alone.
        return F.quantize(value, -2) if weights == "int8" else value if weights is None else value.astype(weights)
    if name == "kernel" and value.ndim > 1:
        return F.pack(value, kernel_axes("/".join(path)).outputs, weights, platform=platform())
    if name == "embedding" and owner in ("token", "shared"):
        return F.pack_table(value, weights, platform=platform())
    return value.astype(jnp.bfloat16) if weights == "bfloat16" else value
