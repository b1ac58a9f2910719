"""Checks of alignment: the reference, the first ratio, the place of the reward, the losses by hand."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np

from jaxformer import functional as F
from jaxformer.check.compare import difference
from jaxformer.check.model import TOLERANCE
from jaxformer.check.outcome import Checks, DoesNotApplyError, Measured
from jaxformer.check.textbook import label_log_probs
from jaxformer.check.training import ONE, RunSubject
from jaxformer.tasks.policy import GroupConfig, GRPOConfig, Policy, PPOConfig
from jaxformer.training.initial_state import start_state
from jaxformer.training.reference_log_probs import fill_reference
from jaxformer.training.rewards import ModelReward, Sample

CHECKS = Checks("alignment")


def _start(subject: RunSubject) -> Any:
    """The parameters of step 0, as the loss takes them."""
    state, frozen = start_state(subject.run)
    return subject.run.division.assemble(frozen, state.params)


def _pairs(subject: RunSubject) -> None:
    if subject.run.task.reference_column is None:
        raise DoesNotApplyError(f"{subject.run.config.task.type} keeps no reference beside its data")


def _policy(subject: RunSubject) -> Policy:
    if not subject.run.config.task.generates:
        raise DoesNotApplyError(f"{subject.run.config.task.type} writes no responses")
    return cast(Policy, subject.run.task)


def with_reference(subject: RunSubject) -> dict[str, np.ndarray]:
    """The first batch with the reference model's log-probabilities in it."""
    fill_reference(subject.run)
    return dict(subject.run.train_batches[0])


@CHECKS.add(
    "reference = start at step 0",
    cause="the reference is another model, reads other tokens, or is computed with dropout",
)
def reference(subject: RunSubject) -> Measured:
    """Log-ratios of the initial model to the reference, which are 0, and DPO's loss, which is log 2."""
    _pairs(subject)
    run, params = subject.run, _start(subject)
    batch = with_reference(subject)
    sums = jax.jit(lambda params, batch: run.task.loss(run.model, params, batch, None))(params, batch)
    count = float(sums.weight)
    apart = max(abs(float(sums.metrics[name])) / count for name in ("chosen_reward", "rejected_reward"))
    said = "rewards of both responses | 0"
    if getattr(run.config.task, "loss", "") == "sigmoid":
        loss = float(sums.metrics["loss"]) / count
        apart, said = max(apart, abs(loss - np.log(2))), f"{said}; loss {loss:.6f} | log 2"
    return Measured(said, apart, 1e-3, f"{apart:.4g} nats at step 0")


@CHECKS.add(
    "the reference does not train",
    cause="the reference shares memory with the policy, or is computed again from it",
)
def still_reference(subject: RunSubject) -> Measured:
    """The reference's log-probabilities after a step of training, against those before."""
    run = subject.run
    if run.config.task.generates:
        rollouts, start = subject.rollouts, start_state(run)
        first = run.merged(start[0].params, start[1])
        params = _step(subject, subject.batch)
        if run.config.lora is not None:
            raise DoesNotApplyError("the frozen base is the reference of LoRA's factors")
        written = subject.written(params).batch
        expected = np.asarray(rollouts.log_probs(first, dict(written)))
        found = difference({"nats": written["reference_log_probs"]}, {"nats": expected}, least=1.0)
        return Measured("reference after a step | the initial model", found.value, TOLERANCE, found.place)
    _pairs(subject)
    batch = with_reference(subject)
    params = _step(subject, batch)
    loss = jax.jit(lambda params, batch: run.task.loss(run.model, params, batch, None))
    again = with_reference(subject)
    column = run.task.reference_column or ""
    found = difference({column: again[column]}, {column: batch[column]})
    margin = abs(float(loss(params, batch).metrics["reward_margin"]))
    if margin == 0:
        return Measured("reference after a step | before", float("inf"), TOLERANCE, "the policy moved and no margin")
    return Measured("reference after a step | before", found.value, TOLERANCE, found.place)


def _step(subject: RunSubject, batch: Mapping[str, np.ndarray]) -> Any:
    """The parameters after a step from the start, as the loss takes them."""
    run = subject.variant(**subject.sgd, parallel=ONE)
    state, frozen = start_state(run)
    moved, _, _ = run.device_step(state, run.device_step.put(batch), 0, frozen)
    return run.division.assemble(frozen, moved.params)


@CHECKS.add(
    "losses of pairs by hand",
    cause="chosen and rejected are swapped, or the strength is applied twice",
)
def pair_losses(subject: RunSubject) -> Measured:
    """The loss of a model far from the reference against its formula in float64."""
    run = subject.run
    c = run.config.task
    formulas = {"sigmoid", "ipo", "hinge", "cdpo", "robust", "simpo", "orpo"}
    if c.type != "dpo" or c.loss not in formulas:
        raise DoesNotApplyError("the loss is not one of pairs" if c.type != "dpo" else f"no formula of {c.loss} here")
    if run.task.reference_column is not None:
        fill_reference(run)
    batch = run.train_batches[0]
    frozen, trained = subject.parts
    params = run.division.assemble(frozen, trained)
    mean = c.loss in ("ipo", "simpo", "orpo")
    found = []
    for number in range(2):
        logits, labels = _logits_of(subject, params, batch, number)
        asked = labels >= 0
        total = np.where(asked, label_log_probs(logits, labels), 0.0).sum(-1)
        found.append(total / asked.sum(-1) if mean else total)
    log_probs = np.stack(found, axis=1)
    if run.task.reference_column is not None:
        log_probs = log_probs - batch[run.task.reference_column]
    expected = _pair_formula(c, log_probs[:, 0], log_probs[:, 1]).mean()
    sums = jax.jit(lambda params, batch: run.task.loss(run.model, params, batch, None))(params, batch)
    apart = difference({"loss": float(sums.objective) / float(sums.weight)}, {"loss": expected})
    return Measured(f"loss {c.loss} | float64, by hand", apart.value, 10 * TOLERANCE, apart.place)


def _logits_of(
    subject: RunSubject, params: Any, batch: Mapping[str, np.ndarray], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of one text of each pair."""
    names = [n for n in ("input_ids", "attention_mask", "decoder_input_ids") if n in batch]
    inputs = {name: batch[name][:, number] for name in names}
    model = subject.run.model
    logits = jax.jit(lambda params, inputs: model.apply({"params": params}, **inputs).logits)(params, inputs)
    return np.asarray(logits, np.float64), np.asarray(batch["labels"][:, number])


def _pair_formula(c: Any, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    apart, beta = chosen - rejected, c.strength

    def minus_log_sigmoid(x: np.ndarray) -> np.ndarray:
        return np.logaddexp(0.0, -x)

    match c.loss:
        case "ipo":
            return np.asarray((apart - 1 / (2 * beta)) ** 2)
        case "hinge":
            return np.maximum(0.0, 1 - beta * apart)
        case "simpo":
            return minus_log_sigmoid(beta * apart - c.margin)
        case "orpo":
            odds = [x - np.log1p(-np.exp(x)) for x in (chosen, rejected)]
            return np.asarray(beta * minus_log_sigmoid(odds[0] - odds[1]) - chosen)
        case "cdpo":
            right, wrong = minus_log_sigmoid(beta * apart), minus_log_sigmoid(-beta * apart)
            return np.asarray((1 - c.noise) * right + c.noise * wrong)
        case "robust":
            right, wrong = minus_log_sigmoid(beta * apart), minus_log_sigmoid(-beta * apart)
            return np.asarray(((1 - c.noise) * right - c.noise * wrong) / (1 - 2 * c.noise))
    return minus_log_sigmoid(beta * apart)


def _experience(subject: RunSubject, params: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    task, model = _policy(subject), subject.run.model
    columns, stats, _ = jax.jit(lambda p, b: task.experience(model, p, b, task.carried))(params, dict(batch))
    return jax.device_get(columns), jax.device_get(stats)


@CHECKS.add(
    "KL 0 at the start",
    cause="the reference is not the model that training begins with",
)
def first_kl(subject: RunSubject) -> Measured:
    """The log-probabilities of the initial policy at its responses, against the reference's."""
    _policy(subject)
    run = subject.run
    state, frozen = start_state(run)
    written = subject.written(run.merged(state.params, frozen)).batch
    columns, stats = _experience(subject, run.division.assemble(frozen, state.params), written)
    found = difference({"nats": columns["old_log_probs"]}, {"nats": written["reference_log_probs"]}, least=1.0)
    value = max(found.value, abs(float(stats["kl"])))
    return Measured(f"initial policy (KL {float(stats['kl']):.2g}) | reference", value, TOLERANCE, found.place)


@CHECKS.add(
    "first ratio = 1",
    cause="old log-probabilities are of another model, temperature or token than the loss's",
    bug="marin #1879: sampler's and trainer's log-probabilities differed by 4e-3",
)
def first_ratio(subject: RunSubject) -> Measured:
    """Log-probabilities of the sampler, of the experience and of the loss, which are one at the first update."""
    task, run = _policy(subject), subject.run
    frozen, trained = subject.parts
    params, batch = run.division.assemble(frozen, trained), subject.batch
    columns, _ = _experience(subject, params, batch)
    asked = batch["labels"] != F.IGNORE
    found = [0.0]
    if task.config.temperature == 1:
        gap = float(np.abs(columns["old_log_probs"] - batch["sampler_log_probs"])[asked].max(initial=0.0))
        found.append(float("inf") if gap and run.config.model.exact else gap)
    sums = jax.jit(lambda p, b: task.loss(run.model, p, b, None))(params, {**batch, **columns})
    moved = abs(float(sums.metrics["moved_kl"])) / max(1.0, float(asked.sum()))
    clipped = float(sums.metrics["clipped"])
    place = f"sampler {max(found):.3g} nats apart, ratio {moved:.3g}, {clipped:.0f} ratios clipped"
    return Measured("log-probabilities: sampler, experience | loss", max(*found, moved, clipped), TOLERANCE, place)


@CHECKS.add(
    "policy loss by hand",
    cause="an advantage has the wrong sign, the ratio is clipped at another place, or a term has another weight",
)
def policy_loss(subject: RunSubject) -> Measured:
    """The loss some updates after the draw, with advantages made up here, against its formula in float64."""
    task, run = _policy(subject), subject.run
    c, model, batch = task.config, run.model, subject.batch
    frozen, trained = subject.parts
    params, random = run.division.assemble(frozen, trained), np.random.default_rng(0)
    mask = batch["labels"] != F.IGNORE
    log_probs, values = jax.jit(lambda p, b: task.log_probs_and_values(model, p, b))(params, dict(batch))

    def beside(centre: Any, spread: float) -> np.ndarray:
        return np.where(mask, np.asarray(centre) + spread * random.standard_normal(mask.shape), 0).astype(np.float32)

    advantages = 0.5 + beside(0.0, 1.0) if isinstance(c, PPOConfig) else 0.5 + random.standard_normal(len(mask))
    columns = {"old_log_probs": beside(log_probs, 0.3), "advantages": advantages.astype(np.float32)}
    if values is not None:
        columns |= {"old_values": beside(values, 0.5), "returns": beside(values, 1.0)}
    sums = jax.jit(lambda p, b: task.loss(model, p, b, None))(params, {**batch, **columns})
    exact = {name: np.asarray(array, np.float64) for name, array in {**batch, **columns}.items()}
    expected, weight = _policy_formula(c, np.asarray(log_probs, np.float64), values, exact, mask)
    found = difference({"loss": sums.objective, "weight": sums.weight}, {"loss": expected, "weight": weight})
    return Measured(f"loss {run.config.task.type} | float64, by hand", found.value, 10 * TOLERANCE, found.place)


def _policy_formula(
    c: Any, log_probs: np.ndarray, values: Any, columns: Mapping[str, np.ndarray], mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of an objective's losses over tokens or responses, and their number."""
    moved = np.where(mask, log_probs - columns["old_log_probs"], 0.0)
    lengths, A = mask.sum(1), columns["advantages"]
    above = getattr(c, "clip_above", None) or c.clip

    def clipped(log_ratio: np.ndarray, A: np.ndarray) -> np.ndarray:
        ratio = np.exp(log_ratio)
        return -np.minimum(A * ratio, A * np.clip(ratio, 1 - c.clip, 1 + above))

    if isinstance(c, PPOConfig):
        V, old, R = np.asarray(values, np.float64), columns["old_values"], columns["returns"]
        error = (V - R) ** 2
        if c.value_clip is not None:
            error = np.maximum(error, (np.clip(V, old - c.value_clip, old + c.value_clip) - R) ** 2)
        each = clipped(moved, A) + c.value_coefficient * 0.5 * error
        return each[mask].sum(), lengths.sum()
    if isinstance(c, GRPOConfig):
        apart = np.where(mask, columns["reference_log_probs"] - log_probs, 0.0)
        each = np.where(mask, clipped(moved, A[:, None]) + c.kl_coefficient * (np.expm1(apart) - apart), 0.0)
        if c.mean_over == "tokens":
            return each.sum(), lengths.sum()
        return (each.sum(1) / np.maximum(lengths, 1)).sum(), (lengths > 0).sum()
    return clipped(moved.sum(1), A)[lengths > 0].sum(), (lengths > 0).sum()


@CHECKS.add(
    "reward at the right response",
    cause="the reward model reads a token of padding, or scores belong to other responses",
    bug="trl #3750: the reward was read at the padding",
)
def reward(subject: RunSubject) -> Measured:
    """The score of each response in its batch against its score alone, and in the reverse order."""
    _policy(subject)
    run = subject.run
    written = subject.written(run.merged(subject.parts[1], subject.parts[0]))
    samples, score = written.samples, subject.rollouts.score
    alone = np.array([score([sample])[0] for sample in samples])
    turned = np.asarray(score(samples[::-1]))[::-1]
    found = [difference({"scores": got}, {"scores": alone}) for got in (written.scores, turned)]
    if isinstance(score, ModelReward):
        numbers = {sample.length: number for number, sample in enumerate(samples)}
        some = [numbers[length] for length in sorted(numbers)[:: max(1, len(numbers) // 2)]]
        bare = np.array([_bare_score(score, samples[number]) for number in some])
        found.append(difference({"scores without padding": alone[some]}, {"scores without padding": bare}))
    ends = [sample.ended for sample in samples]
    penalty = run.task.config.missing_eos_penalty * ~np.array(ends)
    shaped = difference({"shaped": written.batch["scores"][: len(samples)]}, {"shaped": alone - penalty})
    worst = max([*found, shaped], key=lambda each: each.value)
    return Measured(f"scores of {len(samples)} responses | each alone", worst.value, TOLERANCE, worst.place)


def _bare_score(reward: ModelReward, sample: Sample) -> float:
    """The reward model's score of a row without padding or a mask."""
    ids = np.array([[*sample.prompt, *sample.response]])
    return float(jax.jit(reward.model.apply)({"params": reward.params}, ids).logits[0, 0])


@CHECKS.add(
    "responses are where the labels are",
    cause="labels are shifted, or tokens of the prompt or the padding are learned",
    bug="trl #4147: other tokens were trained than meant",
)
def responses(subject: RunSubject) -> Measured:
    """Prompt and response of each row of the batch, put together again from inputs and labels."""
    task = _policy(subject)
    wrong, batch = [], subject.batch
    for number, labels in enumerate(batch["labels"]):
        places = np.flatnonzero(labels != F.IGNORE)
        if not len(places):
            continue
        ids = batch["decoder_input_ids" if task.two_sided else "input_ids"][number]
        if not np.array_equal(ids[places[1:]], labels[places[:-1]]) or not np.array_equal(
            np.diff(places), np.ones(len(places) - 1)
        ):
            wrong.append(f"row {number}: labels are not the tokens that follow their inputs")
        if not task.two_sided and places[0] + 1 != len(_prompt_of(subject, number)):
            wrong.append(
                f"row {number}: the first label is at {places[0]}, the prompt has {len(_prompt_of(subject, number))}"
            )
        sampled = batch["sampler_log_probs"][number]
        if (sampled[places] >= 0).any() or np.abs(np.delete(sampled, places)).max(initial=0.0) > 0:
            wrong.append(f"row {number}: the sampler's log-probabilities are at other places")
    return Measured(
        f"labels of {len(batch['labels'])} responses | inputs moved by one", len(wrong), 0, "; ".join(wrong[:2])
    )


def _prompt_of(subject: RunSubject, number: int) -> np.ndarray:
    first = subject.run.train_batches[0]
    copies = subject.run.task.config.responses_per_prompt
    row = number // copies
    return np.asarray(first["input_ids"][row][first["attention_mask"][row] > 0])


@CHECKS.add(
    "advantages by hand",
    cause="rewards are discounted from the wrong end, or padding takes part in a mean",
    bug="TRL 0.11: whitened rewards of padding reached the last tokens",
)
def advantages(subject: RunSubject) -> Measured:
    """Advantages of the responses, against the recursion or the group's mean in float64, row by row."""
    task, run = _policy(subject), subject.run
    c = task.config
    frozen, trained = subject.parts
    params, batch = run.division.assemble(frozen, trained), subject.batch
    columns, _ = _experience(subject, params, batch)
    scores, old = batch["scores"].astype(np.float64), columns["old_log_probs"].astype(np.float64)
    mask = batch["labels"] != F.IGNORE
    kl = np.where(mask, old - batch["reference_log_probs"], 0.0)
    coefficient = c.kl_coefficient
    if isinstance(c, PPOConfig):
        expected = _discounted(c, scores, kl, mask, columns["old_values"].astype(np.float64), coefficient)
        got = columns["advantages"]
    elif isinstance(c, GRPOConfig):
        groups = scores.reshape(-1, c.group_size)
        centred = groups - groups.mean(1, keepdims=True)
        expected = (centred / (groups.std(1, ddof=1, keepdims=True) + 1e-4) if c.scale_rewards else centred).reshape(-1)
        got = columns["advantages"]
    else:
        assert isinstance(c, GroupConfig), "PPO, GRPO and RLOO are all there are"
        groups = (scores - coefficient * kl.sum(1)).reshape(-1, c.group_size)
        others = (groups.sum(1, keepdims=True) - groups) / (c.group_size - 1)
        expected, got = (groups - others).reshape(-1), columns["advantages"]
    found = difference({"advantages": got}, {"advantages": expected})
    return Measured("advantages | float64, by hand", found.value, 10 * TOLERANCE, found.place)


def _discounted(
    c: PPOConfig, scores: np.ndarray, kl: np.ndarray, mask: np.ndarray, values: np.ndarray, coefficient: float
) -> np.ndarray:
    """Whitened advantages of generalised advantage estimation, from the last token of each response to its first."""
    found = np.zeros(mask.shape)
    for row in range(len(mask)):
        places = np.flatnonzero(mask[row])
        following = next_value = 0.0
        for place in places[::-1]:
            here = -coefficient * kl[row, place] + (scores[row] if place == places[-1] else 0.0)
            delta = here + c.discount * next_value - values[row, place]
            following = delta + c.discount * c.decay * following
            found[row, place], next_value = following, values[row, place]
    inside = found[mask]
    whitened = (inside - inside.mean()) / np.sqrt(inside.var(ddof=1) + 1e-8)
    found[mask] = whitened
    return found
