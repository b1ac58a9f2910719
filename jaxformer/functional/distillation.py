"""Distillation: learning from another model's probabilities, from all logits or in chunks of tokens."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.functional.chunks import Tokens, columns_of, sum_over_chunks
from jaxformer.functional.log_probs import IGNORE, HeadWeights, head_logits, token_log_probs, zero_ignored
from jaxformer.functional.losses import LossSum


def distillation_loss(
    student_logits: Float[Array, "*tokens V"],
    teacher_logits: Float[Array, "*tokens V"],
    labels: Int[Array, "*tokens"],
    *,
    temperature: float = 1.0,
) -> LossSum:
    """``t^2 KL(p || q)`` summed over the tokens whose label is not -100; float32, nats.

    ``p`` and ``q`` are the probabilities of teacher and student at temperature ``t``, ``softmax(logits / t)``; ``t^2``
    keeps the gradient's size as the temperature changes. Hinton et al. 2015, "Distilling the Knowledge in a Neural
    Network", section 2. The teacher gets no gradient.

    Args:
        student_logits: any float dtype.
        teacher_logits: any float dtype.
        labels: -100 where nothing is trained; such tokens give exactly 0 and a zero gradient, whatever their logits.
        temperature: ``t`` above.

    Raises:
        ValueError: if ``temperature`` is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"distillation_loss: temperature is {temperature}, expected a number above 0")
    trained = labels != IGNORE

    def log_softmax(logits: Array) -> Array:
        return jax.nn.log_softmax(jnp.where(trained[..., None], logits.astype(jnp.float32), 0.0) / temperature)

    log_p, log_q = jax.lax.stop_gradient(log_softmax(teacher_logits)), log_softmax(student_logits)
    # A teacher's zero probability counts 0, not 0 * (-inf - log q).
    terms = jnp.exp(log_p) * (jnp.maximum(log_p, jnp.finfo(jnp.float32).min) - log_q)
    divergence = jnp.where(trained, jnp.sum(terms, axis=-1), 0.0)
    return LossSum(temperature**2 * jnp.sum(divergence), jnp.sum(trained, dtype=jnp.float32))


class DistillationSums(NamedTuple):
    """Sums over tokens; the caller divides by ``tokens`` once, over all devices and micro-batches.

    Attributes:
        total: the objective, ``(1 - w) divergence + w cross_entropy``.
        divergence: ``t^2 KL(p || q)`` at temperature ``t``, nats.
        cross_entropy: the student's negative log-likelihood of the labels, nats.
        agreed: tokens for which the most probable word of student and teacher is the same.
        tokens: number of trained tokens.
    """

    total: Float[Array, ""]
    divergence: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    agreed: Float[Array, ""]
    tokens: Float[Array, ""]


def chunked_distillation_loss(
    hidden: Float[Array, "B T D"],
    head: HeadWeights,
    teacher_hidden: Float[Array, "B T E"],
    teacher_head: HeadWeights,
    labels: Int[Array, "B T"],
    *,
    temperature: float = 1.0,
    hard_weight: float = 0.0,
    chunk_tokens: int = 1024,
) -> DistillationSums:
    """``(1 - w) distillation_loss + w cross_entropy`` of both models' ``head_logits``, a chunk of tokens at a time.

    Hinton et al. 2015, section 2; Sanh et al. 2019, "DistilBERT", section 2. Differentiated as
    ``chunked_cross_entropy`` is; the teacher gets no gradient.

    Args:
        hidden: last hidden states of the student.
        head: its output layer.
        teacher_hidden: last hidden states of the teacher.
        teacher_head: its output layer. Its rows beyond the student's vocabulary, which are no tokens, are left out.
        labels: -100 where nothing is trained; such tokens do not count.
        temperature: ``t`` of ``distillation_loss``.
        hard_weight: ``w`` above, share of the cross-entropy of the labels, in ``[0, 1]``.
        chunk_tokens: tokens whose logits are in memory at once, as in ``chunked_cross_entropy``.

    Raises:
        ValueError: if an argument is out of its range, or the teacher has fewer words than the student.
    """
    if not 0.0 <= hard_weight <= 1.0:
        raise ValueError(f"chunked_distillation_loss: hard_weight is {hard_weight}, expected 0 <= hard_weight <= 1")
    columns = columns_of(hidden.shape, chunk_tokens, "chunked_distillation_loss")
    loss = _ChunkLoss(temperature, hard_weight)
    tokens = Tokens(labels, (teacher_hidden,))
    return sum_over_chunks(loss, columns, IGNORE, hidden, head, tokens, teacher_head)


@dataclass(frozen=True)
class _ChunkLoss:
    """The loss of one chunk of tokens."""

    temperature: float
    hard_weight: float

    def __call__(self, hidden: Array, head: HeadWeights, tokens: Tokens, teacher_head: HeadWeights) -> DistillationSums:
        labels = tokens.labels
        trained = labels != IGNORE
        student = head_logits(zero_ignored(hidden, trained), head)
        teacher = head_logits(zero_ignored(tokens.states[0], trained), teacher_head)
        size = student.shape[-1]
        if teacher.shape[-1] < size:
            raise ValueError(
                f"chunked_distillation_loss: the teacher has {teacher.shape[-1]} words, expected the student's {size}"
            )
        teacher = jax.lax.stop_gradient(teacher[..., :size])
        divergence, count = distillation_loss(student, teacher, labels, temperature=self.temperature)
        nll = -jnp.sum(token_log_probs(student, labels))
        same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
        total = (1 - self.hard_weight) * divergence + self.hard_weight * nll
        return DistillationSums(total, divergence, nll, jnp.sum(trained & same, dtype=jnp.float32), count)
