"""Checks of a training step that is not ours: any pure function ``(state, batch) -> (state, metrics)``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.check.compare import difference, unequal_bits
from jaxformer.check.outcome import Checks, DoesNotApplyError, Measured, Outcome, outcomes
from jaxformer.check.training import OVERFIT_SHARE, OVERFIT_STEPS, STATISTICS

CHECKS = Checks("training")
Batch = Mapping[str, Any]
IGNORED = -100


@dataclass(frozen=True)
class StepSubject:
    """A training step with a state and a batch.

    Attributes:
        step: pure; jitted by the caller or not.
        state: a pytree.
        batch: arrays by name, rows first.
        loss: of the metrics that a step returns.
        params: the trained parameters in a state.
        labels: the array of labels, -100 where nothing is asked; None if there is none.
        padding: values that stand for a token of padding, by the name of the array.
    """

    step: Callable[[Any, Any], tuple[Any, Any]]
    state: Any
    batch: Batch
    loss: Callable[[Any], Any]
    params: Callable[[Any], Any]
    labels: str | None = "labels"
    padding: Mapping[str, float] = field(default_factory=dict)

    def run(self, batch: Batch, state: Any = None) -> tuple[Any, float]:
        """The state after a step on a batch, and its loss; what the caller holds is not donated."""
        fresh = jax.tree.map(jnp.array, self.state if state is None else state)
        after, metrics = self.step(fresh, {name: jnp.asarray(array) for name, array in batch.items()})
        return after, float(self.loss(metrics))

    @cached_property
    def once(self) -> tuple[Any, float]:
        """One step on the batch."""
        return self.run(self.batch)

    def moved(self, after: Any) -> Any:
        """Changes of the parameters."""
        pairs = self.params(after), self.params(self.state)
        return jax.tree.map(lambda new, old: np.asarray(new, np.float64) - np.asarray(old, np.float64), *pairs)

    def compared(self, batch: Batch) -> Any:
        """The difference of the loss and the update on another batch."""
        after, loss = self.run(batch)
        got, expected = self.moved(after), self.moved(self.once[0])
        # Adam divides by the root of the gradient's square: where that is rounding, so is the update.
        return difference({"loss": loss, "update": got}, {"loss": self.once[1], "update": expected})

    def counts(self) -> np.ndarray:
        """Trained labels of each row."""
        if self.labels is None or self.labels not in self.batch:
            raise DoesNotApplyError("the batch has no labels by token")
        labels = np.asarray(self.batch[self.labels])
        if labels.ndim < 2:
            raise DoesNotApplyError("the labels are of rows, not of tokens")
        return np.asarray((labels != IGNORED).reshape(len(labels), -1).sum(-1))


@CHECKS.add(
    "same twice",
    cause="the step reads something beside its arguments: a global, a host's random numbers, the time",
)
def twice(subject: StepSubject) -> Measured:
    """Two calls with the same state and batch, bit for bit."""
    found = unequal_bits(subject.run(subject.batch), subject.once)
    return Measured("a step | the same step again", found.value, 0, found.place)


@CHECKS.add(
    "order of rows",
    cause="rows are weighted by their place, or the last ones are left out",
)
def order(subject: StepSubject) -> Measured:
    """The batch with its rows in the reverse order; with dropout by place, switch dropout off first."""
    found = subject.compared({name: np.asarray(array)[::-1] for name, array in subject.batch.items()})
    return Measured("update and loss | with the rows reversed", found.value, STATISTICS, found.place)


@CHECKS.add(
    "rows twice",
    cause="the loss is a sum where a mean is meant, or is divided by another count",
    bug="transformers #18297, #18458, #34191: the loss was a mean of means",
)
def doubled(subject: StepSubject) -> Measured:
    """The batch with every row twice, whose mean is the same."""
    found = subject.compared({name: np.concatenate([np.asarray(array)] * 2) for name, array in subject.batch.items()})
    return Measured("update and loss | of every row twice", found.value, STATISTICS, found.place)


@CHECKS.add(
    "tokens weigh alike",
    cause="a mean of means: rows with few tokens weigh as much as rows with many",
    bug="transformers #34191, torchtune #1875, mlx-lm #1413: the loss was a mean of means",
)
def weights(subject: StepSubject) -> Measured:
    """The loss of the batch with uneven rows, against the mean of its rows' losses weighted by their labels."""
    subject.counts()
    name = subject.labels or ""
    labels = np.asarray(subject.batch[name]).copy()
    for row in labels.reshape(len(labels), -1)[::2]:
        row[np.flatnonzero(row != IGNORED)[1:]] = IGNORED
    uneven = {**subject.batch, name: labels}
    counts = (labels != IGNORED).reshape(len(labels), -1).sum(-1)
    if len(set(counts.tolist())) == 1:
        raise DoesNotApplyError("every row has as many labels")
    # Each row stands in a whole batch of itself, so that the step sees one shape.
    rows = [n for n in range(len(labels)) if counts[n]]
    each = [
        subject.run(
            {key: np.repeat(np.asarray(array)[n : n + 1], len(labels), axis=0) for key, array in uneven.items()}
        )
        for n in rows
    ]
    expected = float(np.average([loss for _, loss in each], weights=counts[rows]))
    got = subject.run(uneven)[1]
    apart = abs(got - expected) / max(abs(expected), 1e-6)
    return Measured(
        "loss | mean of rows by their labels", apart, STATISTICS, f"loss {got:.6g}, expected {expected:.6g}"
    )


@CHECKS.add(
    "more padding",
    cause="padding takes part in attention, in the loss or in its count",
    bug="transformers #21176: positions and padding",
)
def padded(subject: StepSubject) -> Measured:
    """The batch with 3 more places of padding on the right of every row."""
    if "attention_mask" not in subject.batch:
        raise DoesNotApplyError("the batch has no attention_mask")
    T = np.asarray(subject.batch["attention_mask"]).shape[-1]
    fill = {"attention_mask": 0, subject.labels or "labels": IGNORED, **subject.padding}
    longer = {}
    for name, array in subject.batch.items():
        array = np.asarray(array)
        more = [(0, 0)] * (array.ndim - 1) + [(0, 3)]
        ends = array.ndim > 1 and array.shape[-1] == T
        longer[name] = np.pad(array, more, constant_values=fill.get(name, 0)) if ends else array
    found = subject.compared(longer)
    return Measured("update and loss | with 3 more places of padding", found.value, STATISTICS, found.place)


@CHECKS.add(
    "rows without labels",
    cause="a row without a label takes part in the loss or in its count",
)
def unlabelled(subject: StepSubject) -> Measured:
    """The batch with further rows that have no label, which add nothing."""
    subject.counts()
    more = {name: np.concatenate([np.asarray(array)] * 2) for name, array in subject.batch.items()}
    more[subject.labels or ""][len(more[subject.labels or ""]) // 2 :] = IGNORED
    found = subject.compared(more)
    return Measured("update and loss | with as many rows without a label", found.value, STATISTICS, found.place)


@CHECKS.add(
    "gradient reaches every parameter",
    cause="a parameter is not used, or behind stop_gradient",
)
def reached(subject: StepSubject) -> Measured:
    """Parameters that a step leaves as they were, or makes inf or nan."""
    leaves = jax.tree_util.tree_leaves_with_path(subject.moved(subject.once[0]))
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    wrong = [f"{name} did not move" for name, leaf in named.items() if not np.any(leaf)]
    wrong += [f"{name} became inf or nan" for name, leaf in named.items() if not np.isfinite(leaf).all()]
    return Measured(f"{len(named)} parameters | moved", len(wrong), 0, "; ".join(wrong[:4]))


@CHECKS.add(
    "a batch can be learned",
    cause="labels do not belong to their inputs, the gradient has the wrong sign, or the rate is too small",
    bug="nanochat #582: a lost mask trained other tokens",
)
def learned(subject: StepSubject) -> Measured:
    """The loss of the batch after 60 steps on it, as a share of the first."""
    state, losses = subject.state, []
    for _ in range(OVERFIT_STEPS):
        state, loss = subject.run(subject.batch, state)
        losses.append(loss)
    share = float(np.mean(losses[-3:]) / losses[0])
    said = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {OVERFIT_STEPS} steps on one batch"
    return Measured(said, share, OVERFIT_SHARE, f"{share:.0%} of the loss is left")


def train_step(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batch: Batch,
    *,
    loss: Callable[[Any], Any] = lambda metrics: metrics["loss"] if isinstance(metrics, Mapping) else metrics,
    params: Callable[[Any], Any] = lambda state: state["params"] if isinstance(state, Mapping) else state.params,
    labels: str | None = "labels",
    padding: Mapping[str, float] | None = None,
) -> list[Outcome]:
    """Checks anyone's training step in JAX; nothing of it need be of this library.

    The step must take batches of other sizes and lengths, and should be without dropout and with a constant learning
    rate, best with plain gradient descent: Adam hides a gradient that is twice too large.

    Args:
        step: ``(state, batch) -> (state, metrics)``, jitted or not.
        state: a pytree; it is not changed.
        batch: arrays by name, rows first: ``input_ids``, ``attention_mask``, ``labels`` ...
        loss: of the metrics; default ``metrics["loss"]``, or the metrics where they are a number.
        params: of the state; default ``state["params"]`` or ``state.params``.
        labels: name of the labels, -100 where nothing is asked.
        padding: values at padding by the name of the array, where they are not 0.

    Returns:
        An outcome for each check.
    """
    subject = StepSubject(step, state, batch, loss, params, labels, padding or {})
    return list(outcomes(CHECKS, subject))


def failures(found: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes that did not pass."""
    return [outcome for outcome in found if outcome.passed is False]
