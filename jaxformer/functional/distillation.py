"""Learning from another model's probabilities."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.functional.losses import IGNORE, LossSum


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
