"""Reinforcement learning on texts: losses and estimates of PPO, GRPO and RLOO.

Arrays are ``[B, T]`` with a response in each row and a mask that is 1 at its tokens. Values elsewhere, even inf and
nan, change nothing and have a zero gradient.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxformer.functional.losses import LossSum

Tokens = Float[Array, "B T"]
TokenMask = Bool[Array, "B T"] | Int[Array, "B T"]


class ClippedLoss(NamedTuple):
    """A sum over tokens (or responses); the caller divides by ``weight`` once.

    Attributes:
        total: the objective.
        weight: number of tokens (or responses).
        clipped: number of them whose gradient is clipped.
        kl: sum of the estimates ``old - new`` of the KL between the policies, nats.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]
    clipped: Float[Array, ""]
    kl: Float[Array, ""]


def _keep(x: Array, mask: Array) -> Array:
    """``x`` where the mask is 1, else 0 with a zero gradient; float32."""
    return jnp.where(mask.astype(bool), x.astype(jnp.float32), 0.0)


def masked_mean(x: Tokens, mask: TokenMask) -> Float[Array, ""]:
    """The mean where the mask is 1; 0 if it is nowhere."""
    return jnp.sum(_keep(x, mask)) / jnp.maximum(jnp.sum(mask), 1)


def masked_whiten(x: Tokens, mask: TokenMask, *, shift: bool = True, epsilon: float = 1e-8) -> Float[Array, "B T"]:
    """``(x - mean) / sqrt(variance + epsilon)`` where the mask is 1, with the unbiased variance; 0 elsewhere.

    Over the whole batch, as for PPO's advantages: Ziegler et al. 2019, section 2, and their code.

    Args:
        x: the values.
        mask: 1 where they count.
        shift: False keeps the mean, as for rewards.
        epsilon: added to the variance.
    """
    mean = masked_mean(x, mask)
    count = jnp.sum(mask)
    variance = jnp.sum(_keep(jnp.square(_keep(x, mask) - mean), mask)) / jnp.maximum(count - 1, 1)
    whitened = (_keep(x, mask) - mean) * lax.rsqrt(variance + epsilon)
    return _keep(whitened if shift else whitened + mean, mask)


def kl_estimates(
    log_probs: Tokens, reference_log_probs: Tokens, *, kind: Literal["k1", "k2", "k3"] = "k1"
) -> Float[Array, "B T"]:
    """An estimate of ``KL(policy || reference)`` at tokens drawn from the policy, nats.

    With ``d = log p - log p_ref``: ``k1 = d``; ``k2 = d^2 / 2``; ``k3 = exp(-d) - 1 + d``. k1 and k3 are unbiased, k2
    and k3 are never negative: Schulman 2020, "Approximating KL Divergence".

    >>> kl_estimates(jnp.array([[-1.0]]), jnp.array([[-1.5]]), kind="k2").tolist()
    [[0.125]]

    Raises:
        ValueError: if ``kind`` is none of the three.
    """
    difference = log_probs.astype(jnp.float32) - reference_log_probs.astype(jnp.float32)
    match kind:
        case "k1":
            return difference
        case "k2":
            return 0.5 * jnp.square(difference)
        case "k3":
            return jnp.expm1(-difference) + difference
    raise ValueError(f"kl_estimates: kind is {kind!r}, expected k1, k2 or k3")


def token_rewards(
    scores: Float[Array, " B"], kl: Tokens, mask: TokenMask, kl_coefficient: float | Float[Array, ""]
) -> Float[Array, "B T"]:
    """``-c KL_t`` at each token, and the response's score at its last one: Ziegler et al. 2019, eq. 2, per token.

    Args:
        scores: of the whole responses.
        kl: at each token, from ``kl_estimates``.
        mask: 1 at the response's tokens.
        kl_coefficient: ``c`` above.
    """
    T = mask.shape[1]
    last = T - 1 - jnp.argmax(mask.astype(bool)[:, ::-1], axis=1)
    at_last = (jnp.arange(T) == last[:, None]) & mask.astype(bool)
    return _keep(-kl_coefficient * _keep(kl, mask), mask) + jnp.where(at_last, scores[:, None], 0.0)


def generalized_advantages(
    rewards: Tokens, values: Tokens, mask: TokenMask, *, discount: float = 1.0, decay: float = 0.95
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantage estimation: ``A_t = d_t + g l A_(t+1)``, ``d_t = r_t + g V_(t+1) - V_t``.

    After the last token, value and advantage are 0. Schulman et al. 2016, "High-Dimensional Continuous Control
    Using Generalized Advantage Estimation", eq. 16.

    Args:
        rewards: ``r`` at each token.
        values: ``V`` of the state before it.
        mask: 1 at the response's tokens, which are adjacent.
        discount: ``g`` above, the paper's gamma.
        decay: ``l`` above, the paper's lambda.

    Returns:
        The advantages, and the returns ``A + V``, the targets of the values; 0 where the mask is 0.
    """
    rewards, values = _keep(rewards, mask), _keep(values, mask)
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = rewards + discount * following - values

    def back(advantage: Array, delta: Array) -> tuple[Array, Array]:
        advantage = delta + discount * decay * advantage
        return advantage, advantage

    _, advantages = lax.scan(back, jnp.zeros(len(rewards)), deltas.T, reverse=True)
    advantages = _keep(advantages.T, mask)
    return advantages, _keep(advantages + values, mask)


def _clipped_losses(moved: Array, advantages: Array, below: float, above: float) -> tuple[Array, Array]:
    """``max(-A q, -A clamp(q, 1 - below, 1 + above))`` with ``q = exp(moved)``, and where it is clipped."""
    ratio, A = jnp.exp(moved), lax.stop_gradient(advantages.astype(jnp.float32))
    free, held = -A * ratio, -A * jnp.clip(ratio, 1 - below, 1 + above)
    return jnp.maximum(free, held), held > free


def ppo_policy_loss(
    log_probs: Tokens, old_log_probs: Tokens, advantages: Tokens, mask: TokenMask, *, clip: float = 0.2
) -> ClippedLoss:
    """``sum max(-A q, -A clamp(q, 1-c, 1+c))`` with the ratio ``q = p / p_old``: Schulman et al. 2017, "PPO", eq. 7.

    Args:
        log_probs: of the response's tokens under the policy in training.
        old_log_probs: under the policy that generated them.
        advantages: ``A`` of each token, without gradient.
        mask: 1 at the response's tokens.
        clip: ``c`` above.
    """
    moved = _keep(log_probs - old_log_probs, mask)
    losses, clipped = _clipped_losses(moved, _keep(advantages, mask), clip, clip)
    count = jnp.sum(mask, dtype=jnp.float32)
    return ClippedLoss(jnp.sum(_keep(losses, mask)), count, jnp.sum(_keep(clipped, mask)), -jnp.sum(moved))


def ppo_value_loss(
    values: Tokens, old_values: Tokens, returns: Tokens, mask: TokenMask, *, clip: float | None = 0.2
) -> LossSum:
    """``1/2 sum max((V - R)^2, (clamp(V, V_old - c, V_old + c) - R)^2)``: Schulman et al. 2017's code, as Ziegler 2019.

    Args:
        values: of the value head in training.
        old_values: of the value head when the responses were generated.
        returns: ``R``, of ``generalized_advantages``.
        mask: 1 at the response's tokens.
        clip: ``c`` above; None: the plain squared error.
    """
    values, old_values, returns = _keep(values, mask), _keep(old_values, mask), _keep(returns, mask)
    error = jnp.square(values - returns)
    if clip is not None:
        held = jnp.clip(values, old_values - clip, old_values + clip)
        error = jnp.maximum(error, jnp.square(held - returns))
    return LossSum(0.5 * jnp.sum(_keep(error, mask)), jnp.sum(mask, dtype=jnp.float32))


def adapted_kl_coefficient(
    coefficient: float | Float[Array, ""],
    kl: float | Float[Array, ""],
    *,
    target: float,
    horizon: int,
    steps: int | Int[Array, ""] = 1,
) -> Float[Array, ""]:
    """``c (1 + steps / horizon * clamp(KL / target - 1, -0.2, 0.2))``: Ziegler et al. 2019, section 2.2.

    >>> f"{adapted_kl_coefficient(0.2, 12.0, target=6.0, horizon=100, steps=10):.4f}"  # 2 % more
    '0.2040'

    Args:
        coefficient: ``c`` above.
        kl: mean KL of the latest responses.
        target: desired KL, nats per response.
        horizon: number of responses over which the coefficient changes by a fifth at most.
        steps: responses since the last adaptation.
    """
    error = jnp.clip(jnp.asarray(kl) / target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * steps / horizon)


def _grouped(name: str, rewards: Array, group_size: int) -> Array:
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"{name}: {len(rewards)} rewards in groups of {group_size}, expected a multiple of a size of at least 2"
        )
    return rewards.astype(jnp.float32).reshape(-1, group_size)


def grpo_advantages(
    rewards: Float[Array, " B"], group_size: int, *, scale: bool = True, epsilon: float = 1e-4
) -> Float[Array, " B"]:
    """``(r - mean of its group) / (standard deviation of its group + epsilon)``.

    Shao et al. 2024, "DeepSeekMath", section 4.1.2; without the division ("Dr. GRPO") Liu et al. 2025, section 3.2. The
    standard deviation is the unbiased one.

    Args:
        rewards: of responses, those to one prompt adjacent.
        group_size: number of responses to each prompt.
        scale: divide by the standard deviation.
        epsilon: added to it.

    Raises:
        ValueError: if the rewards are no whole groups of at least two.
    """
    groups = _grouped("grpo_advantages", rewards, group_size)
    centred = groups - jnp.mean(groups, axis=1, keepdims=True)
    if scale:
        centred = centred / (jnp.std(groups, axis=1, ddof=1, keepdims=True) + epsilon)
    return centred.reshape(-1)


def rloo_advantages(rewards: Float[Array, " B"], group_size: int) -> Float[Array, " B"]:
    """``r`` minus the mean of the other rewards of its group ("leave one out").

    Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free"; Ahmadian et al. 2024, "Back to Basics", eq. 6.

    >>> rloo_advantages(jnp.array([1.0, 2.0, 6.0]), 3).tolist()
    [-3.0, -1.5, 4.5]

    Args:
        rewards: of responses, those to one prompt adjacent.
        group_size: number of responses to each prompt.

    Raises:
        ValueError: if the rewards are no whole groups of at least two.
    """
    groups = _grouped("rloo_advantages", rewards, group_size)
    others = (jnp.sum(groups, axis=1, keepdims=True) - groups) / (group_size - 1)
    return (groups - others).reshape(-1)


def grpo_loss(
    log_probs: Tokens,
    old_log_probs: Tokens,
    advantages: Float[Array, " B"],
    mask: TokenMask,
    *,
    clip: float = 0.2,
    clip_above: float | None = None,
    reference_log_probs: Tokens | None = None,
    kl_coefficient: float = 0.0,
    mean_over: Literal["responses", "tokens"] = "responses",
) -> ClippedLoss:
    """PPO's clipped loss with one advantage per response, plus ``b`` times the k3 estimate of the KL to the reference.

    Shao et al. 2024, "DeepSeekMath", eq. 3 and 4: the mean over a response's tokens, then over responses. Over all
    tokens alike, and with another clip above: Yu et al. 2025, "DAPO", eq. 8 and 10.

    Args:
        log_probs: of the response's tokens under the policy in training.
        old_log_probs: under the policy that generated them.
        advantages: of the responses, without gradient.
        mask: 1 at the response's tokens.
        clip: the ratio is clipped to ``[1 - clip, 1 + clip_above]``.
        clip_above: default ``clip``.
        reference_log_probs: under the reference model; required if ``kl_coefficient`` is not 0.
        kl_coefficient: ``b`` above.
        mean_over: unit of the weight.

    Raises:
        ValueError: if there is a KL coefficient without a reference.
    """
    if kl_coefficient and reference_log_probs is None:
        raise ValueError("grpo_loss: kl_coefficient is given without reference_log_probs, expected both")
    moved = _keep(log_probs - old_log_probs, mask)
    losses, clipped = _clipped_losses(moved, advantages[:, None], clip, clip if clip_above is None else clip_above)
    if kl_coefficient and reference_log_probs is not None:
        estimates = kl_estimates(_keep(log_probs, mask), _keep(reference_log_probs, mask), kind="k3")
        losses = losses + kl_coefficient * estimates
    lengths = jnp.sum(mask, axis=1, keepdims=True)
    by_response = mean_over == "responses"
    share = 1.0 / jnp.maximum(lengths, 1) if by_response else jnp.ones_like(lengths, jnp.float32)
    weight = jnp.sum(lengths > 0 if by_response else lengths, dtype=jnp.float32)
    total, clipped = jnp.sum(_keep(losses, mask) * share), jnp.sum(_keep(clipped * share, mask))
    return ClippedLoss(total, weight, clipped, -jnp.sum(moved * share))


def rloo_loss(
    log_probs: Tokens,
    old_log_probs: Tokens,
    advantages: Float[Array, " B"],
    mask: TokenMask,
    *,
    clip: float = 0.2,
) -> ClippedLoss:
    """``sum max(-A q, -A clamp(q, 1-c, 1+c))`` over responses, with the ratio ``q`` of whole responses.

    REINFORCE for whole texts, with PPO's clip for further steps on the same responses: Ahmadian et al. 2024, "Back to
    Basics", section 3.

    Args:
        log_probs: of the response's tokens under the policy in training.
        old_log_probs: under the policy that generated them.
        advantages: ``A`` of the responses, without gradient.
        mask: 1 at the response's tokens; a row without any does not count.
        clip: ``c`` above.
    """
    there = jnp.any(mask.astype(bool), axis=1)
    moved = jnp.sum(_keep(log_probs - old_log_probs, mask), axis=1)
    losses, clipped = _clipped_losses(moved, advantages, clip, clip)
    count = jnp.sum(there, dtype=jnp.float32)
    return ClippedLoss(jnp.sum(_keep(losses, there)), count, jnp.sum(_keep(clipped, there)), -jnp.sum(moved))
