"""LoRA: low-rank factors beside the kernels of a frozen model, as functions over pytrees.

The factors of a kernel are in a separate tree under the same path: ``{"layers": {"attention": {"query": {"kernel":
{"a": [L, D, r], "b": [L, r, N, H]}}}}}``; where layers are stacked, so are their factors.
"""

import math
import zlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from pydantic import Field, model_validator

from jaxformer import functional as F
from jaxformer.models.kernel_layout import has_experts, kernel_axes, layer_ndim
from jaxformer.schema import Schema, UserError

Params = Mapping[str, Any]
# Chunked losses read these heads whole, so that their factors are merged first.
WHOLE = ("lm_head", "generator_head")


class LoraConfig(Schema):
    """Kernels that get factors, and the kind of factors."""

    rank: int = Field(8, ge=1, description="columns of A and rows of B")
    alpha: float = Field(16.0, gt=0, description="the update is alpha / rank times A B")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the input of A, in training")
    targets: list[str] = Field(
        ["*attention", "feed_forward"],
        min_length=1,
        description="kernels that get factors: names of a part of their path (query, feed_forward), or patterns of the "
        "whole path (decoder/layers/attention/*)",
    )
    also_train: list[str] = Field(
        ["*classifier*", "*value_head*"],
        description="further parameters that are trained whole, by the same rules: new heads",
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead, for large ranks")
    base: Literal["float32", "int8"] = Field(
        "float32",
        description="format of the frozen kernels; int8: with a scale for each output, a quarter of the memory",
    )
    dora: bool = Field(False, description="train the length of each output's weights separately from their direction")

    @model_validator(mode="after")
    def _lengths_are_of_float_kernels(self) -> "LoraConfig":
        if self.dora and self.base == "int8":
            raise ValueError(
                "dora is given with base int8, expected float32: it adds kernel and factors in every step, which would "
                "need every kernel in float32"
            )
        return self

    @model_validator(mode="after")
    def _dropout_goes_with_sums(self) -> "LoraConfig":
        if self.dora and self.dropout:
            raise ValueError(
                f"dora is given with dropout {self.dropout}, expected 0: its lengths are those of the summed kernel, "
                "to which dropout of an input does not apply"
            )
        return self

    @property
    def scale(self) -> float:
        """Factor of ``A B``: Hu et al. 2022, section 4.1; rsLoRA: Kalajdzievski 2023, eq. 3."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Target(NamedTuple):
    """A kernel that gets factors.

    Attributes:
        path: its names, ``/`` between them.
        stacked: whether its first axis is the layer axis.
        each: number of axes before the inputs, each entry of which has factors of its own: layers, experts.
        inputs: number of its input axes.
        shape: of the kernel.
    """

    path: str
    stacked: bool
    each: int
    inputs: int
    shape: tuple[int, ...]

    @property
    def split(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Sizes of the axes before the inputs, of the inputs and of the outputs."""
        first = self.each
        return self.shape[:first], self.shape[first : first + self.inputs], self.shape[first + self.inputs :]


def fits(path: str, patterns: list[str]) -> str | None:
    """The first pattern that matches: one without ``/`` a part of the path, one with ``/`` the whole path.

    >>> fits("decoder/layers/cross_attention/query/kernel", ["value", "*attention"])
    '*attention'
    """
    names = path.removesuffix("/kernel")
    for pattern in patterns:
        parts = [names] if "/" in pattern else names.split("/")
        if any(fnmatchcase(part, pattern) for part in parts):
            return pattern
    return None


def _target(path: str, shape: tuple[int, ...]) -> Target:
    stacked = len(shape) > layer_ndim(path)
    return Target(path, stacked, stacked + has_experts(path), kernel_axes(path).inputs, tuple(shape))


def find_targets(params: Params, config: LoraConfig) -> list[Target]:
    """The kernels that get factors, in the order of their paths.

    Args:
        params: parameters or their shapes.
        config: their patterns.

    Raises:
        UserError: if a pattern matches no kernel.
    """
    shapes = {path: leaf.shape for path, leaf in flatten_dict(dict(params), sep="/").items()}
    kernels = sorted(path for path in shapes if path.endswith("/kernel"))
    for pattern in config.targets:
        if not any(fits(path, [pattern]) for path in kernels):
            names = ", ".join(path.removesuffix("/kernel") for path in kernels[:4])
            raise UserError(f"lora.targets has {pattern!r}, which matches no kernel; their names are like {names}")
    found = [_target(path, shapes[path]) for path in kernels if fits(path, config.targets)]
    if config.dropout:
        for target in found:
            shared = "layers" in target.path.split("/") and not target.stacked
            if target.path.startswith(WHOLE) or shared or has_experts(target.path):
                why = "which all layers share" if shared else "which the loss reads as a whole"
                raise UserError(
                    f"lora.dropout is {config.dropout} and lora.targets names {target.path}, "
                    + ("whose inputs are sorted by expert" if has_experts(target.path) else why)
                    + ": its input cannot be dropped; set lora.dropout to 0 or leave it out of the targets"
                )
    return found


def init_factors(key: jax.Array, params: Params, config: LoraConfig) -> dict[str, Any]:
    """Initial factors: ``A`` uniform in ``[-1/sqrt(inputs), 1/sqrt(inputs)]``, ``B`` zero, so that nothing changes.

    Hu et al. 2022, section 4.1; the range is that of PEFT. With ``dora`` also ``magnitude``, the length of each
    output's weights: Liu et al. 2024, "DoRA", eq. 5.

    Args:
        key: of the draws; that of a kernel is a function of it and of the kernel's path.
        params: of the frozen model.
        config: which kernels, and the rank.
    """
    flat, factors = flatten_dict(dict(params), sep="/"), {}
    for target in find_targets(params, config):
        layers, inputs, outputs = target.split
        bound = 1.0 / math.sqrt(math.prod(inputs))
        draw = jax.random.fold_in(key, zlib.crc32(target.path.encode()))
        factors[f"{target.path}/a"] = jax.random.uniform(
            draw, (*layers, *inputs, config.rank), jnp.float32, -bound, bound
        )
        factors[f"{target.path}/b"] = jnp.zeros((*layers, config.rank, *outputs), jnp.float32)
        if config.dora:
            factors[f"{target.path}/magnitude"] = kernel_lengths(flat[target.path], target)
    return unflatten_dict(factors, sep="/")


def int8_kernels(params: Params, config: LoraConfig) -> list[Target]:
    """The kernels that ``base: int8`` stores as int8: all frozen ones but the heads that losses read whole.

    Dettmers et al. 2023, "QLoRA", with 8 bits for its 4.

    Args:
        params: of the model, or their shapes.
        config: names the parameters that are trained whole.
    """
    if config.base != "int8":
        return []
    shapes = {path: leaf.shape for path, leaf in flatten_dict(dict(params), sep="/").items()}
    targets = {target.path for target in find_targets(params, config)}
    return [
        _target(path, shape)
        for path, shape in sorted(shapes.items())
        if path.endswith("/kernel")
        and not path.startswith(WHOLE)
        and (path in targets or not fits(path, config.also_train))
    ]


def to_int8(kernel: jax.Array, target: Target) -> F.Quantized:
    """A kernel as int8 with a scale for each output of each layer."""
    return F.quantize(kernel, tuple(range(target.each, target.each + target.inputs)))


def kernel_lengths(kernel: jax.Array, target: Target) -> jax.Array:
    """``||W||`` of each output, over the inputs; float32."""
    axes = tuple(range(target.each, target.each + target.inputs))
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=axes))


def _update(target: Target, a: jax.Array, b: jax.Array) -> jax.Array:
    """``A B`` of each layer; float32."""
    layers, inputs, outputs = target.split
    rank = a.shape[-1]
    product = jnp.matmul(
        a.astype(jnp.float32).reshape(*layers, -1, rank), b.astype(jnp.float32).reshape(*layers, rank, -1)
    )
    return product.reshape(*layers, *inputs, *outputs)


def _merged(target: Target, kernel: jax.Array, factors: Params, scale: float) -> jax.Array:
    """``W + s A B``; with a magnitude ``m`` the same with each output scaled to ``m``: Liu et al. 2024, eq. 5.

    The length in the denominator is a constant for the gradient: ibid., section 4.3.
    """
    total = kernel.astype(jnp.float32) + scale * _update(target, factors["a"], factors["b"])
    if "magnitude" in factors:
        ratio = factors["magnitude"] / jax.lax.stop_gradient(kernel_lengths(total, target))
        total = total * jnp.expand_dims(ratio, tuple(range(target.each, target.each + target.inputs)))
    return total.astype(getattr(kernel, "dtype", jnp.float32))


def _by_target(params: Params, factors: Params) -> tuple[dict[str, Any], list[tuple[Target, dict[str, Any]]]]:
    flat = flatten_dict(dict(params), sep="/")
    grouped: dict[str, dict[str, Any]] = {}
    for path, array in flatten_dict(dict(factors), sep="/").items():
        kernel, _, name = path.rpartition("/")
        grouped.setdefault(kernel, {})[name] = array
    return flat, [(_target(path, flat[path].shape), group) for path, group in grouped.items()]


def adapt(
    params: Params,
    factors: Params,
    config: LoraConfig,
    dropout_key: jax.Array | None = None,
    example_ids: jax.Array | None = None,
) -> dict[str, Any]:
    """The model's parameters with the factors beside their kernels; called in the differentiated function.

    A kernel becomes a ``functional.LowRankKernel``, so that neither the sum nor a gradient of its size is computed;
    with ``dora``, and in a head that losses read whole, it is the sum.

    Args:
        params: of the frozen model.
        factors: of ``init_factors``.
        config: scale and dropout.
        dropout_key: of the step; None: nothing is dropped.
        example_ids: ``[B]``, numbers of the rows for their dropout.
    """
    flat, targets = _by_target(params, factors)
    for target, group in targets:
        if "magnitude" in group or target.path.startswith(WHOLE):
            flat[target.path] = _merged(target, flat[target.path], group, config.scale)
            continue
        keys = None
        if config.dropout and dropout_key is not None and example_ids is not None:
            drawn = jax.random.fold_in(dropout_key, zlib.crc32(f"lora/{target.path}".encode()))
            keys = _layer_keys(target, drawn, example_ids)
        b = config.scale * group["b"]
        flat[target.path] = F.LowRankKernel(flat[target.path], group["a"], b, keys, config.dropout)
    return unflatten_dict(flat, sep="/")


def _layer_keys(target: Target, key: jax.Array, example_ids: jax.Array) -> jax.Array:
    """``[L, B]`` or ``[B]``: dropout differs between layers."""
    if not target.stacked:
        return F.example_keys(key, example_ids)
    layers = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(target.shape[0]))
    return jax.vmap(F.example_keys, in_axes=(0, None))(layers, example_ids)


def merge(params: Params, factors: Params, config: LoraConfig) -> dict[str, Any]:
    """The parameters with the factors added: an ordinary model that computes the same, up to rounding.

    Kernels in int8 are converted to float32.
    """
    flat, targets = _by_target(params, factors)
    for target, group in targets:
        flat[target.path] = _merged(target, flat[target.path], group, config.scale)
    for path, leaf in flat.items():
        if isinstance(leaf, F.Quantized):
            flat[path] = leaf.astype(jnp.float32)
    return unflatten_dict(flat, sep="/")


def unmerge(params: Params, factors: Params, config: LoraConfig) -> dict[str, Any]:
    """The parameters before ``merge``, up to rounding.

    Raises:
        UserError: with ``dora``, whose merged kernels do not contain their former lengths.
    """
    flat, targets = _by_target(params, factors)
    for target, group in targets:
        if "magnitude" in group:
            raise UserError(
                "a kernel merged with dora cannot be unmerged, since its former lengths are lost; keep the original "
                "parameters"
            )
        flat[target.path] = _merged(target, flat[target.path], group, -config.scale)
    return unflatten_dict(flat, sep="/")
