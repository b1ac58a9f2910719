"""Losses as masked sums: cross-entropy over a vocabulary, also in chunks of tokens, and losses of labelled examples."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from jaxformer.functional.chunks import Tokens, columns_of, sum_over_chunks
from jaxformer.functional.log_probs import IGNORE, HeadWeights, head_logits, label_log_probs, zero_ignored


class TokenLoss(NamedTuple):
    """Sums over tokens; the caller divides ``total`` by a count once, over all devices and micro-batches.

    Attributes:
        total: the objective, with label smoothing and z-loss, nats.
        cross_entropy: the plain negative log-likelihood of the labels, nats.
        tokens: number of trained tokens.
    """

    total: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    tokens: Float[Array, ""]


def cross_entropy(
    logits: Float[Array, "*tokens V"],
    labels: Int[Array, "*tokens"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> TokenLoss:
    """Cross-entropy of the labels, summed over the tokens whose label is not -100; float32.

    Per token ``-(1-a) log p[label] - a/V sum_v log p[v] + z (log Z)^2`` with ``log p = logits - log Z``.
    Label smoothing ``a``: Szegedy et al. 2016, section 7; z-loss: Chowdhery et al. 2022, "PaLM", section 5.

    Args:
        logits: any float dtype.
        labels: -100 where nothing is trained; such tokens give exactly 0 and a zero gradient, whatever their logits.
        label_smoothing: ``a`` above, in ``[0, 1)``.
        z_loss: ``z`` above, PaLM uses 1e-4.

    Raises:
        ValueError: if ``label_smoothing`` is not in ``[0, 1)``.
    """
    _check_smoothing("cross_entropy", label_smoothing)
    trained = labels != IGNORE
    log_p, log_z, logits = label_log_probs(logits, labels)
    loss = nll = -log_p
    if label_smoothing:
        loss = (1 - label_smoothing) * nll + label_smoothing * (log_z - jnp.mean(logits, axis=-1))
    if z_loss:
        loss = loss + z_loss * jnp.square(log_z)
    return TokenLoss(jnp.sum(jnp.where(trained, loss, 0.0)), jnp.sum(nll), jnp.sum(trained, dtype=jnp.float32))


def _check_smoothing(name: str, label_smoothing: float) -> None:
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"{name}: label_smoothing is {label_smoothing}, expected 0 <= label_smoothing < 1")


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"],
    head: HeadWeights,
    labels: Int[Array, "B T"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_tokens: int = 1024,
) -> TokenLoss:
    """``cross_entropy(head_logits(hidden, head), labels)`` with at most ``chunk_tokens`` tokens' logits in memory.

    When differentiated, the gradient of each chunk is taken in the forward pass, while its logits are in memory, and
    only scaled in the backward pass: no logits are kept and none are computed twice. The gradient of the head's
    weights is summed over chunks in float32. Only ``total`` has a gradient; the function can be differentiated once.

    Args:
        hidden: last hidden states.
        head: the output layer.
        labels: -100 where nothing is trained.
        label_smoothing: as in ``cross_entropy``.
        z_loss: as in ``cross_entropy``.
        chunk_tokens: tokens per chunk; a chunk is ``ceil(chunk_tokens / B)`` columns of the batch, so that a batch
            that is sharded over devices stays so.

    Raises:
        ValueError: if ``chunk_tokens`` is below 1.
    """
    columns = columns_of(hidden.shape, chunk_tokens, "chunked_cross_entropy")
    loss = _ChunkLoss(label_smoothing, z_loss)
    return sum_over_chunks(loss, columns, IGNORE, hidden, head, Tokens(labels), None)


@dataclass(frozen=True)
class _ChunkLoss:
    """The loss of one chunk of tokens."""

    label_smoothing: float
    z_loss: float

    def __call__(self, hidden: Array, head: HeadWeights, tokens: Tokens, _: None) -> TokenLoss:
        logits = head_logits(zero_ignored(hidden, tokens.labels != IGNORE), head)
        return cross_entropy(logits, tokens.labels, label_smoothing=self.label_smoothing, z_loss=self.z_loss)


class LossSum(NamedTuple):
    """A sum over examples; the caller divides ``total`` by ``weight`` once, over all devices and micro-batches.

    Attributes:
        total: the objective.
        weight: divisor of the mean.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]


def class_weighted_cross_entropy(
    logits: Float[Array, "*examples C"],
    labels: Int[Array, "*examples"],
    class_weights: Float[Array, " C"],
    *,
    label_smoothing: float = 0.0,
) -> LossSum:
    """Cross-entropy in which class ``c`` has weight ``w[c]``, summed over the labels that are not -100; float32.

    Per example ``-(1-a) w[label] log p[label] - a/C sum_c w[c] log p[c]``; the weight is the sum of ``w[label]``. Their
    quotient is that of ``torch.nn.CrossEntropyLoss(weight=w, label_smoothing=a, reduction="mean")``.

    Args:
        logits: any float dtype.
        labels: -100 where nothing is trained; such examples give exactly 0 and a zero gradient, whatever their logits.
        class_weights: ``w`` above.
        label_smoothing: ``a`` above, in ``[0, 1)``.

    Raises:
        ValueError: if ``label_smoothing`` is not in ``[0, 1)``.
    """
    _check_smoothing("class_weighted_cross_entropy", label_smoothing)
    trained = labels != IGNORE
    w = class_weights.astype(jnp.float32)
    weights = jnp.where(trained, w[jnp.where(trained, labels, 0)], 0.0)
    log_p, log_z, logits = label_log_probs(logits, labels)
    loss = -weights * log_p
    if label_smoothing:
        spread = -jnp.mean(w * (logits - log_z[..., None]), axis=-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * jnp.where(trained, spread, 0.0)
    return LossSum(jnp.sum(loss), jnp.sum(weights))


def binary_cross_entropy(logits: Float[Array, "*labels"], labels: Num[Array, "*labels"]) -> LossSum:
    """Cross-entropy of yes-or-no labels, summed over those that are not -100; float32.

    Per label ``-y log s(x) - (1-y) log s(-x) = softplus(x) - x y`` with the logistic function ``s``; the weight is the
    number of labels.

    Args:
        logits: ``x`` above, any float dtype.
        labels: ``y`` above, 0 or 1, or a probability; -100 gives exactly 0 and a zero gradient, whatever the logit.
    """
    trained = labels != IGNORE
    logits = jnp.where(trained, logits.astype(jnp.float32), 0.0)
    loss = jax.nn.softplus(logits) - logits * jnp.where(trained, labels, 0)
    return LossSum(jnp.sum(jnp.where(trained, loss, 0.0)), jnp.sum(trained, dtype=jnp.float32))


def squared_error(
    predictions: Float[Array, "*examples"], targets: Float[Array, "*examples"], weights: Float[Array, "*examples"]
) -> LossSum:
    """``sum w (prediction - target)^2`` and the sum of the weights ``w``; float32.

    Args:
        predictions: any float dtype; where the weight is 0 they give exactly 0 and a zero gradient, whatever they hold.
        targets: the true values.
        weights: 1 for an example, 0 for padding.
    """
    weights = weights.astype(jnp.float32)
    error = jnp.where(weights != 0, predictions.astype(jnp.float32) - targets.astype(jnp.float32), 0.0)
    return LossSum(jnp.sum(weights * jnp.square(error)), jnp.sum(weights))
