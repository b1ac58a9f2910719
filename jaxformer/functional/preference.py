"""Preference losses as functions of log-probabilities or scores, one value for each pair.

``chosen`` and ``rejected`` are the log-ratios ``log pi(y|x) - log pi_ref(y|x)`` of the preferred and the other response
for losses with a reference model, and mean log-probabilities ``log pi(y|x) / |y|`` for losses without. All losses and
their gradients are float32, and finite for finite arguments.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

Pairs = Float[Array, " B"]
# Logarithm of the largest float32 probability below 1.
_LARGEST_LOG_PROB = -(2.0**-24)


def _check(name: str, label_smoothing: float) -> None:
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"{name}: label_smoothing is {label_smoothing}, expected 0 <= label_smoothing < 0.5")


def bradley_terry_loss(
    chosen: Pairs, rejected: Pairs, margin: Pairs | float = 0.0, *, centring: float = 0.0
) -> Float[Array, " B"]:
    """``-log s(r_c - r_r - m) + c (r_c + r_r)^2`` with the logistic function ``s``: the loss of a reward model.

    Bradley, Terry 1952; Ouyang et al. 2022, "InstructGPT", eq. 1; the margin ``m``: Touvron et al. 2023, "Llama 2",
    eq. 2; the centring ``c``, which keeps scores around 0: Eisenstein et al. 2023, "Helping or Herding?", section 2.

    >>> f"{bradley_terry_loss(jnp.array([1.0]), jnp.array([1.0]))[0]:.4f}"  # log 2
    '0.6931'

    Args:
        chosen: score ``r_c`` of the preferred response.
        rejected: score ``r_r`` of the other.
        margin: ``m`` above, the known difference.
        centring: ``c`` above, for instance 0.01.
    """
    loss = -jax.nn.log_sigmoid(chosen - rejected - margin)
    return loss + centring * jnp.square(chosen + rejected) if centring else loss


def dpo_loss(chosen: Pairs, rejected: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Float[Array, " B"]:
    """``-(1-e) log s(b (chosen - rejected)) - e log s(-b (chosen - rejected))``.

    Rafailov et al. 2023, "Direct Preference Optimization", eq. 7; with ``e`` above 0 the conservative DPO (cDPO) of
    Mitchell 2023, "A note on DPO with noisy preferences", eq. 3.

    Args:
        chosen: log-ratio of the preferred response.
        rejected: log-ratio of the other.
        beta: ``b`` above, weight of the implicit KL penalty against the reference model.
        label_smoothing: ``e`` above, the assumed share of swapped pairs.

    Raises:
        ValueError: if ``label_smoothing`` is not in ``[0, 0.5)``.
    """
    _check("dpo_loss", label_smoothing)
    difference = beta * (chosen - rejected)
    loss = -(1 - label_smoothing) * jax.nn.log_sigmoid(difference)
    return loss - label_smoothing * jax.nn.log_sigmoid(-difference) if label_smoothing else loss


def robust_dpo_loss(
    chosen: Pairs, rejected: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> Float[Array, " B"]:
    """``[-(1-e) log s(d) + e log s(-d)] / (1 - 2e)`` with ``d = b (chosen - rejected)``.

    An unbiased estimate of DPO's loss where a share ``e`` of the pairs is swapped: Chowdhury et al. 2024, "Provably
    Robust DPO", eq. 12. Arguments are those of ``dpo_loss``.

    Raises:
        ValueError: if ``label_smoothing`` is not in ``[0, 0.5)``.
    """
    _check("robust_dpo_loss", label_smoothing)
    difference = beta * (chosen - rejected)
    right, wrong = jax.nn.log_sigmoid(difference), jax.nn.log_sigmoid(-difference)
    return (-(1 - label_smoothing) * right + label_smoothing * wrong) / (1 - 2 * label_smoothing)


def hinge_dpo_loss(chosen: Pairs, rejected: Pairs, *, beta: float = 0.1) -> Float[Array, " B"]:
    """``max(0, 1 - b (chosen - rejected))``: Zhao et al. 2023, "SLiC-HF"; Liu et al. 2024, "RSO", eq. 8."""
    return jax.nn.relu(1.0 - beta * (chosen - rejected))


def ipo_loss(chosen: Pairs, rejected: Pairs, *, beta: float = 0.1) -> Float[Array, " B"]:
    """``(chosen - rejected - 1/(2b))^2``: Azar et al. 2023, "A General Theoretical Paradigm", eq. 17.

    Args:
        chosen: log-ratio of the preferred response, divided by its number of tokens, as the paper's authors trained.
        rejected: that of the other.
        beta: ``b`` above, the paper's tau.
    """
    return jnp.square(chosen - rejected - 1.0 / (2.0 * beta))


def _log_one_minus_exp(x: Array) -> Array:
    """``log(1 - exp(x))`` for ``x < 0``; each branch gets only arguments for which its gradient is finite.

    Mächler 2012, "Accurately computing log(1 - exp(-|a|))".
    """
    x = jnp.minimum(x, _LARGEST_LOG_PROB)
    near = x > -0.6931472
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, -0.5))),
        jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))),
    )


def odds_ratio_loss(chosen: Pairs, rejected: Pairs) -> Float[Array, " B"]:
    """``-log s(log odds(chosen) - log odds(rejected))`` with ``odds = p / (1 - p)`` and ``p = exp`` of the arguments.

    ORPO's loss is the cross-entropy of the preferred response plus lambda times this: Hong et al. 2024, "ORPO", eq. 6
    and 7. The arguments are mean log-probabilities, at most 0.
    """
    log_odds = (chosen - rejected) - (_log_one_minus_exp(chosen) - _log_one_minus_exp(rejected))
    return -jax.nn.log_sigmoid(log_odds)


def simpo_loss(chosen: Pairs, rejected: Pairs, *, beta: float = 2.0, margin: float = 1.0) -> Float[Array, " B"]:
    """``-log s(b (chosen - rejected) - margin)`` of mean log-probabilities: Meng et al. 2024, "SimPO", eq. 6."""
    return -jax.nn.log_sigmoid(beta * (chosen - rejected) - margin)


def kto_reference_point(log_ratios: Pairs, weights: Pairs) -> Float[Array, ""]:
    """``max(0, mean of log pi(y'|x) - log pi_ref(y'|x))`` with responses ``y'`` to other prompts; without a gradient.

    An estimate of ``KL(pi || pi_ref)``: Ethayarajh et al. 2024, "KTO", section 4.1.

    Args:
        log_ratios: of each prompt with a response to another one.
        weights: 1 for an example, 0 for padding, whose log-ratio may be anything.
    """
    total = jnp.sum(jnp.where(weights != 0, log_ratios, 0.0) * weights)
    return lax.stop_gradient(jnp.maximum(total / jnp.maximum(jnp.sum(weights), 1.0), 0.0))


def kto_loss(
    log_ratios: Pairs,
    desirable: Bool[Array, " B"],
    reference_point: Float[Array, ""],
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, " B"]:
    """``w_d (1 - s(b (r - z)))`` of a desirable response, ``w_u (1 - s(b (z - r)))`` of another.

    Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", eq. 8, without its constant.
    Responses need no pairs.

    Args:
        log_ratios: ``r`` of each response.
        desirable: whether the response is.
        reference_point: ``z``, of ``kto_reference_point``.
        beta: ``b`` above.
        desirable_weight: ``w_d`` above.
        undesirable_weight: ``w_u`` above.
    """
    above = beta * (log_ratios - reference_point)
    good, bad = desirable_weight * jax.nn.sigmoid(-above), undesirable_weight * jax.nn.sigmoid(above)
    return jnp.where(desirable, good, bad)
