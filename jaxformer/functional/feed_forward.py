"""The position-wise feed-forward network, plain and gated, and its activations."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.functional.apart import together
from jaxformer.functional.linear import linear
from jaxformer.functional.random import dropout


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU, ``x * Phi(x)`` with the normal distribution function (Hendrycks, Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by tanh, ``x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`` (Hendrycks, Gimpel 2016, section 2)."""
    return jax.nn.gelu(x, approximate=True)


def gelu_sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by the logistic function, ``x * sigmoid(1.702 x)`` (Hendrycks, Gimpel 2016, section 2); CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """SiLU (swish), ``x * sigmoid(x)`` (Elfwing, Uchibe, Doya 2017)."""
    return jax.nn.silu(x)


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """ReLU, ``max(x, 0)``."""
    return jax.nn.relu(x)


def tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Hyperbolic tangent; BERT's pooler uses it (Devlin et al. 2019)."""
    return jnp.tanh(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_sigmoid": gelu_sigmoid,
    "silu": silu,
    "relu": relu,
    "tanh": tanh,
}


def _inner(activation: str, *states: Array) -> Array:
    """The inner activations of ``gate`` and ``up``, or of ``up`` alone."""
    return math.prod(states[1:], start=ACTIVATIONS[activation](states[0]))


def feed_forward(
    x: Float[Array, "B T D"],
    weights: Mapping[str, Any],
    *,
    activation: str = "gelu",
    dropout_rate: float = 0.0,
    dropout_keys: Array | None = None,
    apart: Callable[..., Any] = together,
) -> Float[Array, "B T D"]:
    """Feed-forward network: ``act(x W_up + b) W_down + b``, or gated ``(act(x W_gate) * (x W_up)) W_down``.

    Vaswani et al. 2017, "Attention Is All You Need", equation 2; gated: Shazeer 2020, "GLU Variants Improve
    Transformer", equation 6. The gate is applied when ``weights`` has one.

    Args:
        x: the hidden states.
        weights: ``{"up": {"kernel" [D, F], "bias" [F]}, "down": {"kernel" [F, D], "bias" [D]}}`` and, if gated,
            ``"gate"`` like ``"up"``; every bias may be absent.
        activation: one of ``ACTIVATIONS``.
        dropout_rate: dropout on the inner activations, as in the original T5; most models have 0.
        dropout_keys: one key per example, or None for evaluation.
        apart: ``exact_elementwise``, where the activation is to be a program of its own.

    Returns:
        An array like ``x``, same dtype.

    Raises:
        ValueError: if the activation is unknown.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"feed_forward: activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    names = ("gate", "up") if "gate" in weights else ("up",)
    inner = apart(partial(_inner, activation), *(linear(x, **weights[name]) for name in names))
    return linear(dropout(inner, dropout_rate, dropout_keys), **weights["down"])
