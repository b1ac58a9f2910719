"""Checks of a training run: its step, its devices, its batches, its optimizer and its checkpoints."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxformer import functional as F
from jaxformer.check.compare import difference, unequal_bits
from jaxformer.check.model import TOLERANCE, stirred
from jaxformer.check.outcome import Checks, DoesNotApplyError, Measured
from jaxformer.check.small import with_config
from jaxformer.check.textbook import label_log_probs
from jaxformer.data.loader import TrainBatches, load
from jaxformer.hub.kinds import init
from jaxformer.models.masked_lm import MaskedLM
from jaxformer.parallel.batch import local_rows
from jaxformer.parallel.mesh import AXES, ParallelConfig, make_mesh
from jaxformer.tasks.base import apply
from jaxformer.tasks.policy import Policy
from jaxformer.training.checkpoint import Checkpoints
from jaxformer.training.initial_state import start_state
from jaxformer.training.rollout import Rollouts, Written
from jaxformer.training.run import Run
from jaxformer.training.state import TrainState, state_of
from jaxformer.training.step import StepMetrics

CHECKS = Checks("training")
LABELS, EACH = "labels", "input_ids"
# Steps of Adam within which one batch must be learned, the rate, and the share of its loss that may be left.
OVERFIT_STEPS, OVERFIT_RATE, OVERFIT_SHARE = 60, 3e-3, 0.6
STATISTICS = 1e-3  # of gradients summed in another order, clipped and divided


@dataclass(frozen=True)
class RunSubject:
    """A run of small size, its parameters and one batch.

    Attributes:
        run: on one device.
        devices: all at hand.
        parallel: how the user's configuration splits the work over devices.
        variants: runs that ``variant`` made, by configuration and devices.
    """

    run: Run
    devices: tuple[jax.Device, ...]
    parallel: ParallelConfig
    variants: dict[tuple[str, tuple[jax.Device, ...]], Run] = field(default_factory=dict, repr=False)

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """The frozen and the trained parameters, moved far from those of step 0, LoRA's factors too."""
        state, frozen = start_state(self.run)
        return frozen, stirred(state.params)

    def state(self, run: Run) -> TrainState:
        """A new state around the parameters, on the devices of a run; its memory may be donated."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract.params)
        trained = jax.tree.map(lambda x, s: jax.device_put(np.array(x), s), self.parts[1], shardings)
        return state_of(trained, run.optimizer, run.abstract, run.task.carried)

    def frozen(self, run: Run) -> Any:
        """The frozen parameters on the devices of a run."""
        return jax.tree.map(
            lambda x, s: None if x is None else jax.device_put(np.array(x), s.sharding),
            self.parts[0],
            run.abstract_frozen,
        )

    @cached_property
    def rollouts(self) -> Rollouts:
        """Draws responses, for objectives that generate."""
        return Rollouts(self.run, self.parts[0])

    @cached_property
    def batch(self) -> dict[str, np.ndarray]:
        """The first training batch, as the step takes it; of a policy the responses that it writes to the prompts."""
        run = self.run
        if not run.config.task.generates:
            return uneven(run.train_batches[0])
        return dict(self.written(run.merged(self.parts[1], self.parts[0])).batch)

    def written(self, params: Any) -> Written:
        """Responses of a policy with these parameters to the prompts of the first batch."""
        run = self.run
        records, copies = run.train_batches.rows.records or (), run.task.config.responses_per_prompt
        return self.rollouts.written(params, run.train_batches[0], records, (0,), copies)

    def variant(self, devices: Sequence[jax.Device] | None = None, **sections: Mapping[str, Any]) -> Run:
        """The run with other devices, and other keys in sections of its configuration; one that was made before is kept
        with its compiled step.
        """
        c = self.run.config
        changed = {name: getattr(c, name).model_copy(update=dict(keys)) for name, keys in sections.items()}
        config, on = c.model_copy(update=changed), tuple(devices or self.devices[:1])
        key = (config.model_dump_json(), on)
        if key not in self.variants:
            self.variants[key] = with_config(self.run, config, on)
        return self.variants[key]

    def step(self, run: Run, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, StepMetrics]:
        """The state and the metrics after a step, on the host."""
        program = run.device_step
        state, metrics, _ = program(self.state(run), program.put(batch), 0, self.frozen(run))
        return jax.device_get((state, metrics))

    @property
    def sgd(self) -> dict[str, Any]:
        """Plain gradient descent, which hides no factor as Adam does, at a rate far above rounding."""
        sgd = {"type": "sgd", "momentum": None, "clip_norm": None, "learning_rate": 0.1, "weight_decay": 0.0}
        return {"optimizer": sgd, "schedule": {"type": "constant", "warmup_steps": 0}}

    @cached_property
    def whole(self) -> tuple[TrainState, StepMetrics]:
        """One step on the whole batch, on one device."""
        return self.step(self.variant(**self.sgd, training={"accumulate": 1}, parallel=ONE), self.batch)

    def moved(self, state: TrainState) -> Any:
        """Changes of the trained parameters."""
        return jax.tree.map(lambda new, old: np.asarray(new, np.float64) - np.asarray(old), state.params, self.parts[1])

    def against_whole(self, run: Run) -> tuple[float, str]:
        """The largest difference of a step of this run and one on the whole batch: of the update and the metrics."""
        state, metrics = self.step(run, self.batch)
        expected, measured = self.whole
        found = difference(
            {"update": self.moved(state), **means(metrics)}, {"update": self.moved(expected), **means(measured)}
        )
        return found.value, found.place


ONE = ParallelConfig(data=-1).model_dump()


def means(metrics: StepMetrics) -> dict[str, Any]:
    """The loss, its weight and the norm of a step's metrics."""
    weight = float(metrics.weight) or 1.0
    return {
        "loss": np.float64(metrics.sums["loss"]) / weight,
        "weight": metrics.weight,
        "gradient_norm": metrics.gradient_norm,
    }


def uneven(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with most labels taken from every second row: means over rows then differ from the mean over tokens."""
    labels = batch.get(LABELS)
    if labels is None or labels.ndim < 2 or not np.issubdtype(labels.dtype, np.integer):
        return dict(batch)
    few = labels.copy()
    flat = few.reshape(len(few), -1)
    for row in flat[::2]:
        trained = np.flatnonzero(row >= 0)
        row[trained[len(trained) // 4 + 1 :]] = F.IGNORE
    return {**batch, LABELS: few}


def _trained_labels(subject: RunSubject) -> None:
    if subject.run.config.task.generates:
        raise DoesNotApplyError("a policy has a reward instead of labels")


def _not_kto(subject: RunSubject) -> None:
    if getattr(subject.run.config.task, "loss", "") == "kto":
        raise DoesNotApplyError("kto compares with a mean over the whole batch")


@CHECKS.add(
    "loss at step 0",
    cause="the loss is weighted by the wrong count, labels are shifted, or the initial weights are too large",
)
def first_loss(subject: RunSubject) -> Measured:
    """The loss of new weights against that of guessing: the logarithm of the number of classes."""
    run = subject.run
    classes = classes_of(run)
    params = nn.unbox(jax.jit(lambda key: init(run.model, key))(jax.random.key(run.config.seed)))
    batch = run.train_batches[0]
    sums = jax.jit(lambda params, batch: run.task.loss(run.model, params, batch, None))(params, batch)
    # Of two objectives that of the tokens: how much the other adds depends on the length of the texts.
    total = sums.metrics.get("masked_lm_loss", sums.metrics["loss"])
    loss = float(total) / (float(sums.weight) or 1.0)
    expected = math.log(classes)
    # Logits of new weights spread by some tenths: with a standard deviation s guessing costs s^2 / 2 more.
    return Measured(
        f"loss {loss:.3f} | log({classes}) = {expected:.3f}", abs(loss - expected) / expected, 0.25, f"loss {loss:.4f}"
    )


def classes_of(run: Run) -> int:
    """Number of classes that the loss chooses among; ``DoesNotApplyError`` where it is no such choice."""
    task, kind = run.task, run.config.task.type
    if kind in ("causal_lm", "prefix_lm", "masked_lm", "span_corruption", "denoising", "seq2seq", "instruction"):
        return int(run.config.model.vocab_size or 0)
    single = getattr(run.config.task, "problem", "single_label") == "single_label"
    if kind in ("sequence_classification", "token_classification") and len(task.labels) > 1 and single:
        return len(task.labels)
    if kind == "reward":
        return 2
    raise DoesNotApplyError(f"the loss of {kind} is no choice among a known number of classes")


@CHECKS.add(
    "loss by hand",
    cause="the loss has another weight, another sign, or labels of other places than the logits",
    bug="transformers #18297, #18458, #34191: the loss was a mean of means",
)
def loss_by_hand(subject: RunSubject) -> Measured:
    """The task's loss, as a sum and a count, against float64 sums over the labels of the model's logits."""
    run, batch = subject.run, subject.batch
    labels = batch.get(LABELS)
    if run.config.lora is not None or run.teacher is not None or labels is None:
        raise DoesNotApplyError("the loss is not that of labels alone")
    if not hasattr(run.model, "hidden_and_head") or run.config.task.type in ("dpo", "ppo", "grpo", "rloo", "reward"):
        raise DoesNotApplyError(f"the loss of {run.config.task.type} is no cross-entropy of tokens")
    if isinstance(run.model, MaskedLM) and run.model.sentence_pairs:
        raise DoesNotApplyError("a second head has a loss of its own")
    params = subject.parts[1]
    inputs = {name: array for name, array in batch.items() if name != LABELS}

    def logits(params: Any, inputs: Any) -> jax.Array:
        hidden, head = apply(run.model, params, inputs, None, "hidden_and_head")
        return F.head_logits(hidden, head)

    asked = labels >= 0
    each = -label_log_probs(np.asarray(jax.jit(logits)(params, inputs))[asked], labels[asked])
    sums = jax.jit(lambda params, batch: run.task.loss(run.model, params, batch, None))(params, batch)
    got = {"loss": sums.metrics["loss"], "count": sums.weight}
    found = difference(got, {"loss": each.sum(), "count": np.float64(len(each))})
    return Measured(f"sum over {len(each)} labels | float64, by hand", found.value, TOLERANCE, found.place)


@CHECKS.add(
    "update by hand",
    cause="the gradient is divided by another count, or summed over rows that are not there",
    bug="transformers #18297, #18458, #34191: the loss was a mean of means",
)
def update_by_hand(subject: RunSubject) -> Measured:
    """The update of plain gradient descent, against the gradient of the loss's sum over its weight, taken here."""
    run = subject.run
    if run.config.task.generates:
        raise DoesNotApplyError("a step of a policy begins with advantages: see there")
    frozen, trained = subject.parts
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    plain = subject.variant(**subject.sgd, training={"accumulate": 1}, model=still, parallel=ONE)

    def objective(trained: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        sums = plain.task.loss(plain.model, run.division.assemble(frozen, trained), batch, key)
        return sums.objective, sums.weight

    # Some objectives draw beside dropout: what the step draws, row by row.
    key = F.purpose_key(run.config.seed, "dropout", 0)
    batch = {**subject.batch, "example_ids": np.arange(len(next(iter(subject.batch.values()))))}
    gradient, weight = jax.jit(jax.grad(objective, has_aux=True))(trained, batch)
    scales = _scales(run, trained)
    flat = flatten_dict(gradient, sep="/")
    rate = float(plain.schedule(0))
    expected = {n: -rate * np.asarray(g, np.float64) * np.asarray(scales[n]) / float(weight) for n, g in flat.items()}
    state, _ = subject.step(plain, subject.batch)
    moved = flatten_dict(subject.moved(state), sep="/")
    for name, old in flatten_dict(trained, sep="/").items():
        # The sum is rounded as the parameter is, which may be more than the update (Mamba's time steps).
        rounding = np.spacing(np.abs(np.asarray(old)))
        moved[name] = np.where(np.abs(moved[name] - expected[name]) <= rounding, expected[name], moved[name])
    found = difference(moved, expected)
    return Measured(
        f"update | -{rate:g} * gradient of the sum / {float(weight):.0f}", found.value, STATISTICS, found.place
    )


@CHECKS.add(
    "draws of a step",
    cause="dropout does not depend on the step, or on more than the step and the example",
)
def draws(subject: RunSubject) -> Measured:
    """The loss with dropout at two steps, which differ, and at one step twice, which do not."""
    if subject.run.config.task.generates:
        raise DoesNotApplyError("a policy trains without dropout, so that its first ratio is 1")
    run = subject.variant(model={"dropout": 0.3}, training={"accumulate": 1}, parallel=ONE)
    program, frozen = run.device_step, subject.frozen(run)
    losses = []
    for step in (0, 0, 1):
        state = replace(subject.state(run), step=jnp.int32(step))
        _, metrics, _ = program(state, program.put(subject.batch), 0, frozen)
        losses.append(float(metrics.sums["loss"]))
    wrong = ["one step draws differently twice"] if losses[0] != losses[1] else []
    wrong += ["two steps draw the same"] if losses[0] == losses[2] else []
    return Measured("loss with dropout at steps 0, 0, 1", len(wrong), 0, "; ".join(wrong))


@CHECKS.add(
    "accumulated = whole batch",
    cause="parts are averaged, not summed: a mean of means weights tokens by the size of their part",
    bug="transformers #34191, torchtune #1875, mlx-lm #1413: the loss was a mean of means",
)
def accumulated(subject: RunSubject) -> Measured:
    """One step in 2 parts, with uneven counts of trained tokens, against one step on the whole batch."""
    c = subject.run.config
    _not_kto(subject)
    parts = max(c.training.accumulate, 2)
    if c.training.batch_size % (parts * c.task.minibatch_count):
        raise DoesNotApplyError(f"{c.training.batch_size} rows do not divide into {parts} parts")
    run = subject.variant(**subject.sgd, training={"accumulate": parts}, parallel=ONE)
    value, place = subject.against_whole(run)
    return Measured(f"update and loss in {parts} parts | in one", value, STATISTICS, place)


def _spread(subject: RunSubject, parallel: Mapping[str, Any], said: str) -> Measured:
    c = subject.run.config
    unit = len(subject.devices) * c.task.minibatch_count
    if len(subject.devices) == 1:
        raise DoesNotApplyError("one device is at hand")
    if c.training.batch_size % unit:
        raise DoesNotApplyError(f"{c.training.batch_size} rows do not divide over {unit}")
    if parallel["strategy"] == "pmap":
        _not_kto(subject)
    run = subject.variant(subject.devices, **subject.sgd, training={"accumulate": 1}, parallel=parallel)
    value, place = subject.against_whole(run)
    return Measured(f"update and loss on {len(subject.devices)} devices ({said}) | on one", value, STATISTICS, place)


@CHECKS.add(
    "n devices = one, jit",
    cause="a sum over devices is missing or taken twice, or each device divides by its own count",
    bug="shard_map sums the gradients of replicated parameters itself: a further psum doubled them",
)
def devices_jit(subject: RunSubject) -> Measured:
    """A step on all devices, split as the configuration says, against one device."""
    parallel = subject.parallel
    if parallel.strategy == "pmap":
        parallel = ParallelConfig()
    named = ", ".join(f"{k} {v}" for k, v in parallel.model_dump().items() if k in AXES)
    return _spread(subject, parallel.model_dump(), named)


@CHECKS.add("bits on n devices", cause="another machine or version of XLA than exact numerics were tried on")
def devices_bits(subject: RunSubject) -> Measured:
    """With exact numerics the bits of the parameters after a step, on all devices and on one."""
    c = subject.run.config
    if not c.model.exact or len(subject.devices) == 1:
        raise DoesNotApplyError("one device is at hand" if c.model.exact else "model.numerics is fast")
    one = subject.step(subject.variant(parallel=ONE), subject.batch)
    several = subject.step(subject.variant(subject.devices, parallel=ONE), subject.batch)
    found = unequal_bits((several[0].params, several[1].sums), (one[0].params, one[1].sums))
    return Measured(f"parameters and loss on {len(subject.devices)} devices | on one", found.value, 0, found.place)


@CHECKS.add(
    "n devices = one, pmap",
    cause="a psum is missing or taken twice, or the rows of a device are numbered from 0",
    bug="shard_map sums the gradients of replicated parameters itself: a further psum doubled them",
)
def devices_pmap(subject: RunSubject) -> Measured:
    """A step under pmap on all devices, against one device."""
    if subject.run.config.task.generates:
        raise DoesNotApplyError("an objective that generates runs under jit")
    if subject.run.config.model.exact:
        raise DoesNotApplyError("exact numerics run under jit")
    return _spread(subject, ParallelConfig(strategy="pmap").model_dump(), "pmap")


@CHECKS.add(
    "gradient reaches every parameter",
    cause="a parameter is not used, is behind stop_gradient, or is frozen by a pattern that fits too much",
)
def reached(subject: RunSubject) -> Measured:
    """Parameters that a step leaves as they were, against those the configuration freezes."""
    c = subject.run.config
    state, _ = subject.whole
    moved = flatten_dict(subject.moved(state), sep="/")
    scales = _scales(subject.run, subject.parts[1])
    wrong = []
    for name, change in moved.items():
        still = np.abs(change).max(initial=0.0) == 0
        if still and np.any(scales[name]) and not _may_rest(subject, name):
            wrong.append(f"{name} did not move")
        if not np.isfinite(change).all():
            wrong.append(f"{name} became inf or nan")
    # Of stacked layers some may be frozen: their factors are 0.
    frozen = {name: np.asarray(scale) == 0 for name, scale in scales.items() if not np.all(scale)}
    wrong += [f"{name} is frozen and moved" for name in frozen if np.any(moved[name] * frozen[name])]
    # Decay moves parameters without a gradient; what is frozen stays under the run's own optimizer too.
    own, _ = subject.step(subject.variant(parallel=ONE), subject.batch)
    after = flatten_dict(subject.moved(own), sep="/")
    wrong += [f"{name} is frozen and decays" for name in frozen if np.any(after[name] * frozen[name])]
    kind = "LoRA" if c.lora is not None else c.task.type
    compared = f"{len(moved)} parameters of {kind}: moved | to be trained ({len(frozen)} frozen, some in part)"
    return Measured(compared, len(wrong), 0, "; ".join(wrong[:4]))


def _may_rest(subject: RunSubject, name: str) -> bool:
    """True for parameters that the batch may not use: a key's bias has no effect, a table may have one row."""
    return name.endswith("key/bias") or ("token_type" in name and "token_type_ids" not in subject.batch)


def _scales(run: Run, trained: Any) -> dict[str, Any]:
    """The factor of each parameter's update, 0 where it is frozen; worked out here from the names."""
    o = run.config.optimizer
    flat = flatten_dict(trained, sep="/")
    if run.config.lora is not None:
        return dict.fromkeys(flat, 1.0)
    c = run.config.model

    def in_stack(name: str) -> bool:
        side = c.encoder_side if name.startswith("encoder/") else c.decoder_side
        return "layers/" in name and not side.share_layers

    depth = max((len(leaf) for name, leaf in flat.items() if in_stack(name)), default=0)
    found: dict[str, Any] = {}
    for name, leaf in flat.items():
        if in_stack(name):
            names = [name.replace("layers/", f"layers/{i}/", 1) for i in range(len(leaf))]
            rates = [o.layer_decay ** (len(leaf) - i) for i in range(len(leaf))]
        else:
            lowest = bool({"embeddings", "shared", "relative_bias"} & set(name.split("/")))
            names, rates = [name], [o.layer_decay ** (depth + 1 if lowest else "layers/" in name)]
        kept = [not any(fnmatchcase(one, pattern) for pattern in o.freeze) for one in names]
        scale = np.array(rates) * kept
        found[name] = scale.reshape(-1, *(1,) * (leaf.ndim - 1)) if in_stack(name) else scale[0]
    return found


@CHECKS.add(
    "weight decay",
    cause="norms, biases or embeddings decay, kernels do not, or a decay is not times the learning rate",
)
def decay(subject: RunSubject) -> Measured:
    """The update of the run's optimizer for a gradient of zero, against ``-rate * decay * parameter`` by name."""
    run, trained = subject.run, subject.parts[1]
    o = run.config.optimizer
    zeros = jax.tree.map(jnp.zeros_like, trained)
    updates, _ = jax.jit(run.optimizer.update)(zeros, run.optimizer.init(trained), trained)
    rate = float(run.schedule(0))
    scales = _scales(run, trained)
    expected: dict[str, Any] = {}
    notes: dict[str, list[str]] = {"decays": [], "does not decay": []}
    for name, leaf in flatten_dict(trained, sep="/").items():
        decays = name.rpartition("/")[2] in o.decay and (o.type != "muon" or "layers/" in name)
        expected[name] = -rate * o.weight_decay * np.asarray(leaf, np.float64) * decays * np.asarray(scales[name])
        notes["decays" if decays else "does not decay"].append(name)
    got = flatten_dict(updates, sep="/")
    # A decay is some 1e-4 of a parameter: compared with the parameter, it would hide in rounding.
    largest = rate * max(o.weight_decay, 1e-3) * max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(trained))
    apart = {name: float(np.abs(np.asarray(got[name], np.float64) - expected[name]).max()) / largest for name in got}
    worst = max(apart, key=lambda name: apart[name])
    if o.weight_decay and o.decay and not notes["decays"] and run.config.lora is None:
        names = ", ".join(sorted({name.rpartition("/")[2] for name in apart}))
        return Measured("parameters that decay", float("inf"), 0, f"none is called {o.decay}, expected some of {names}")
    table = [f"{kind} ({o.weight_decay}): {_short(names)}" for kind, names in notes.items() if names]
    return Measured("update without a gradient | -rate * decay * parameter", apart[worst], 1e-3, worst, tuple(table))


def _short(names: list[str]) -> str:
    """Last names, each with the number of parameters that have it."""
    last: dict[str, int] = {}
    for name in names:
        key = "/".join(name.split("/")[-2:])
        last[key] = last.get(key, 0) + 1
    return ", ".join(f"{name} x {count}" if count > 1 else name for name, count in last.items())


@CHECKS.add(
    "schedule",
    cause="the warm-up or the fall begins or ends at another step",
    bug="transformers #9127: no warm-up gave nan",
)
def schedule(subject: RunSubject) -> Measured:
    """The learning rate of each update against its formula."""
    c = subject.run.config
    steps = c.training.steps
    at = np.unique(np.linspace(0, steps - 1, 400).astype(int))
    at = np.unique(np.concatenate([at, [0, min(c.schedule.warmup_steps, steps - 1), steps - 1]]))
    got = np.asarray(jax.jit(jax.vmap(subject.run.schedule))(at), np.float64)
    expected = np.array([_rate(c, int(n)) for n in at])
    worst = int(np.argmax(np.abs(got - expected)))
    peak = int(np.argmax(got))
    table = tuple(f"step {at[i] + 1}: {got[i]:.3g}" for i in (0, peak, len(at) // 2, len(at) - 1))
    return Measured(
        f"learning rates of {len(at)} steps | the formula of {c.schedule.type}",
        float(np.abs(got - expected)[worst]) / c.optimizer.learning_rate,
        1e-4,
        f"step {at[worst] + 1}: {got[worst]:.6g}, expected {expected[worst]:.6g}",
        (", ".join(table),),
    )


def _rate(c: Any, n: int) -> float:
    """The learning rate of update ``n``, counted from 0."""
    peak, final, s = c.optimizer.learning_rate, c.schedule.final_learning_rate, c.schedule
    warmup, steps = min(s.warmup_steps, c.training.steps), c.training.steps
    if n < warmup:
        return float(peak * (n + 1) / warmup)
    share = (n - warmup) / max(1, steps - warmup)
    match s.type:
        case "cosine":
            return float(final + (peak - final) * (1 + math.cos(math.pi * share)) / 2)
        case "linear":
            return float(peak + (final - peak) * share)
        case "inverse_sqrt":
            return float(peak * math.sqrt(warmup / n))
        case "wsd":
            fall = min(steps - warmup, max(1, round(s.decay_fraction * steps)))
            return float(peak + (final - peak) * max(0.0, (n - (steps - fall)) / fall))
    return float(peak)


@CHECKS.add(
    "a batch can be learned",
    cause="labels do not belong to their inputs, the gradient has the wrong sign, or nothing is trained",
    bug="nanochat #582: a lost mask trained other tokens",
)
def overfitted(subject: RunSubject) -> Measured:
    """The loss of one batch after steps of Adam on it, as a share of the first; 60 steps unless fewer do."""
    _trained_labels(subject)
    if subject.run.config.task.type == "ranking" and not np.isin(subject.batch["labels"], (0, 1)).all():
        raise DoesNotApplyError("the least cross-entropy of labels between 0 and 1 is not 0")
    adam = {"type": "adamw", "learning_rate": OVERFIT_RATE, "weight_decay": 0.0, "clip_norm": 1.0}
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    constant = {"type": "constant", "warmup_steps": 0}
    whole = {"accumulate": 1}
    run = subject.variant(optimizer=adam, model=still, training=whole, parallel=ONE, schedule=constant)
    program, state, frozen = run.device_step, subject.state(run), subject.frozen(run)
    batch, losses = program.put(subject.batch), []
    for _ in range(OVERFIT_STEPS):
        state, metrics, _ = program(state, batch, 0, frozen)
        losses.append(means(metrics)["loss"])
        share = float(np.mean(losses[-3:]) / losses[0])
        if share <= OVERFIT_SHARE:
            break
    said = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps on one batch"
    return Measured(said, share, OVERFIT_SHARE, f"{share:.0%} of the loss is left")


@CHECKS.add(
    "a step with inf or nan is skipped",
    cause="one bad batch destroys the parameters",
    bug="transformers #9127: nan in all parameters after one step",
)
def skipped(subject: RunSubject) -> Measured:
    """Parameters and optimizer after a step whose loss is nan, against those before."""
    run = subject.variant(parallel=ONE)
    program, state, frozen = run.device_step, subject.state(run), subject.frozen(run)
    bad = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), state.params)
    before = jax.device_get((bad, state.opt_state))
    after, metrics, _ = program(replace(state, params=bad), program.put(subject.batch), 0, frozen)
    found = unequal_bits((after.params, after.opt_state), before)
    if run.config.task.updates == 1:
        count = abs(int(metrics.skipped) - 1)
        return Measured("state after | before a nan", found.value + count, 0, found.place or "the step was not counted")
    return Measured("state after | before a nan", found.value, 0, found.place)


@CHECKS.add(
    "resumed = uninterrupted, bit for bit",
    cause="a part of the state is not saved, or data and dropout go on from another step",
    bug="transformers #16161; nanoGPT #467: a resumed run replays its batches",
)
def resumed(subject: RunSubject) -> Measured:
    """Four steps, against two, a checkpoint, a new process's state, and two more."""
    run = subject.variant(parallel=ONE)
    with tempfile.TemporaryDirectory() as folder, closing(Checkpoints(Path(folder) / "checkpoints")) as checkpoints:
        whole, losses = _steps(subject, run, subject.state(run), 0, 4)
        half, first = _steps(subject, run, subject.state(run), 0, 2)
        checkpoints.save(2, half)
        checkpoints.wait()
        restored = checkpoints.restore(run.abstract)
        assert restored is not None, "a checkpoint was just saved"
        again, second = _steps(subject, run, restored[1], restored[0], 4)
    found = unequal_bits((again, [*first, *second]), (whole, losses))
    said = "state and losses of 4 steps | of 2, a checkpoint and 2"
    return Measured(said, found.value, 0, f"{found.place}: {found.value:.0f} numbers differ")


def _steps(subject: RunSubject, run: Run, state: TrainState, start: int, stop: int) -> tuple[Any, list[Any]]:
    """The state on the host after steps ``start`` to ``stop``, and their losses."""
    program, frozen, losses = run.device_step, subject.frozen(run), []
    with closing(load(run.train_batches, start, 2, 2)) as batches:
        for batch in islice(batches, stop - start):
            if run.config.task.generates:
                # The responses would take a while; what is written does not depend on the checkpoint.
                batch = subject.batch
            state, metrics, _ = program(state, program.put(batch), 0, frozen)
            losses.append(np.asarray(metrics.sums["loss"]))
    return jax.device_get(state), losses


@CHECKS.add(
    "batch n is a function of n",
    cause="a worker, a thread or the start of the run changes what a batch holds",
    bug="maxtext #1760: resumes on the same number of hosts only",
)
def batches(subject: RunSubject) -> Measured:
    """Batches made one by one, against those of threads that start elsewhere, and of processes with a part each."""
    run, step = subject.run, 3
    expected = run.train_batches[step]
    with closing(load(run.train_batches, step - 1, 4, 4)) as ahead:
        threads = list(islice(ahead, 2))[1]
    with closing(load(run.train_batches, step, 0, 1)) as one:
        alone = next(one)
    found = [unequal_bits(threads, expected), unequal_bits(alone, expected)]
    wrong = [
        f"with {who}: {each.place}" for who, each in zip(("threads", "a later start"), found, strict=True) if each.value
    ]
    size = run.train_batches.batch_size
    if len(subject.devices) > 1 and size % 2 == 0 and not run.config.task.generates:
        wrong += _parts(subject, expected, step)
    other = run.train_batches[step + 1]
    if all(np.array_equal(other[name], expected[name]) for name in expected):
        wrong.append("two batches are the same")
    return Measured(f"batch {step} | with threads, a later start, processes", len(wrong), 0, "; ".join(wrong))


def _parts(subject: RunSubject, expected: Mapping[str, np.ndarray], step: int) -> list[str]:
    """Differences where two processes read half of the rows each."""
    run = subject.run
    size = run.train_batches.batch_size
    rows = np.arange(size)
    mesh = make_mesh(ParallelConfig(), subject.devices[:2])
    if not np.array_equal(local_rows(size, mesh), rows):
        return ["the devices of one process do not read all rows"]
    halves = []
    for keep in (rows[: size // 2], rows[size // 2 :]):
        mine = TrainBatches(run.train_batches.rows, size, run.config.seed, run.task.features, keep)
        halves.append(mine[step])
    for name, array in expected.items():
        if any(half[name].shape[1:] != array.shape[1:] for half in halves):
            return [f"{name} of a process has another length"]
        if not np.array_equal(np.concatenate([half[name] for half in halves]), array):
            return [f"{name} of two processes is not that of one"]
    return []


@CHECKS.add(
    "average of the weights",
    cause="the average decays by another factor, or is of other parameters",
)
def average(subject: RunSubject) -> Measured:
    """The averaged weights after one step, against ``decay * old + (1 - decay) * new``."""
    kept = subject.run.config.training.ema_decay
    if kept is None:
        raise DoesNotApplyError("training.ema_decay is not set")
    state, _ = subject.step(subject.variant(parallel=ONE), subject.batch)
    expected = jax.tree.map(lambda old, new: kept * np.asarray(old) + (1 - kept) * new, subject.parts[1], state.params)
    found = difference(state.ema, expected)
    return Measured("averaged weights | by hand", found.value, TOLERANCE, found.place)


@CHECKS.add(
    "merged = factors",
    cause="the scale of LoRA's factors is another when they are merged",
)
def merged(subject: RunSubject) -> Measured:
    """The model with LoRA's factors beside their kernels, against the merged kernels."""
    run = subject.run
    if run.config.lora is None:
        raise DoesNotApplyError("lora is not set")
    frozen, trained = subject.parts
    beside, one = run.division.assemble(frozen, trained), run.merged(trained, frozen)
    batch = subject.batch
    loss = jax.jit(lambda params, batch: run.task.loss(run.model, params, batch, None).objective)
    if run.config.task.generates:
        columns, _, _ = cast(Policy, run.task).experience(run.model, beside, batch, run.task.carried)
        batch = {**batch, **columns}
    found = difference({"loss": loss(one, batch)}, {"loss": loss(beside, batch)})
    return Measured("loss with merged kernels | with factors", found.value, TOLERANCE, found.place)
