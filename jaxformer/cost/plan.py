"""The search for the mesh and settings with which a training step is fastest on TPUs that are only described.

Every candidate is the real step, compiled ahead of time; what the chips' data sheets allow it is its bound. An estimate
by textbook formulas only orders the candidates, so that the search ends early: a candidate that does not fit rules out
those that need more memory, one that fits those that only compute more, and the search stops where no estimate is below
what was found.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

from jaxformer.cost.compile_for import StepCost, by_kind
from jaxformer.cost.hlo import ring_share
from jaxformer.cost.topology import Chip
from jaxformer.functional.kernels.splash import visible_share
from jaxformer.models.config import TransformerConfig
from jaxformer.parallel.mesh import AXES
from jaxformer.training.config import RunConfig
from jaxformer.training.flops import PEAK_FLOPS
from jaxformer.training.run import Run
from jaxformer.training.state import count_parameters

BEST = 5
SPARE = 12
REMAT = ("none", "dots", "full")  # each keeps less for the backward pass than the one before, and computes more
LONG_ROW = 16_384  # tokens; shorter rows are not split over chips unless the configuration does so
MOST_TENSOR, MOST_PARTS = 16, 64
CHUNKS = (1024, 4096, 8192)  # tried for the best plan, beside the configuration's
# Overrides with which any configuration runs on one device, for the sizes of its model.
_ALONE = [f"parallel.{axis}={1 if axis != 'data' else -1}" for axis in AXES]
ONE_ROW = [*_ALONE, "training.batch_size=1", "training.eval_batch_size=1", "training.accumulate=1"]


class Candidate(NamedTuple):
    """One way to spread the step.

    Attributes:
        fsdp: chips that split batch, parameters and optimizer state; ``data`` are those left.
        expert: chips that split batch and experts.
        sequence: chips that split the tokens of a row.
        tensor: chips that split heads, feed-forward and vocabulary.
        remat: what the backward pass computes again.
        batch_size: rows of a step.
        accumulate: parts in which they are computed one after the other.
        chunk_tokens: tokens a chip whose logits are in memory at once; None where the objective has no such key.
    """

    fsdp: int
    expert: int
    sequence: int
    tensor: int
    remat: str
    batch_size: int
    accumulate: int
    chunk_tokens: int | None

    @property
    def overrides(self) -> list[str]:
        """The keys of a configuration, as the command line takes them."""
        mesh = [f"parallel.{name}={getattr(self, name)}" for name in ("fsdp", "expert", "sequence", "tensor")]
        rest = [f"model.remat={self.remat}", f"training.batch_size={self.batch_size}"]
        chunk = [] if self.chunk_tokens is None else [f"task.chunk_tokens={self.chunk_tokens}"]
        return [
            "parallel.strategy=jit",
            "parallel.data=-1",
            *mesh,
            *rest,
            f"training.accumulate={self.accumulate}",
            *chunk,
        ]

    @property
    def alike(self) -> tuple[Any, ...]:
        """The keys that candidates share which only trade memory for computation."""
        return (self.fsdp, self.expert, self.sequence, self.tensor, self.batch_size, self.chunk_tokens)

    def needs_no_more(self, other: "Candidate") -> bool:
        """True if this one, alike but for recomputation and parts, needs no more memory than ``other``."""
        saves = REMAT.index(self.remat) >= REMAT.index(other.remat) and self.accumulate >= other.accumulate
        return self.alike == other.alike and saves


class Model(NamedTuple):
    """What the estimates know of the model.

    Attributes:
        parameters: of the whole model.
        flops: operations of the model for a row, forward and backward, without scores that a causal mask hides.
        config: of the model.
        length: tokens of a row.
    """

    parameters: int
    flops: float
    config: TransformerConfig
    length: int


class Estimate(NamedTuple):
    """About what a step needs.

    Attributes:
        seconds: of a step, at least.
        network: of these, that chips send, beside computation or not.
        bytes: on a chip.
        state: of these, for parameters and the optimizer's statistics, which is certain.
    """

    seconds: float
    network: float
    bytes: float
    state: float


class Plan(NamedTuple):
    """A candidate that was compiled and fits."""

    candidate: Candidate
    cost: StepCost

    def seconds_per_token(self, chip: Chip, length: int) -> float:
        """Seconds of all chips for a token, at least."""
        return max(self.cost.times(chip).values()) / (self.candidate.batch_size * length)


def candidates(config: RunConfig, chips: int, batch_sizes: Sequence[int], slices: int = 1) -> Iterator[Candidate]:
    """Yields every way that divides evenly, for each of the batch sizes.

    Args:
        config: of the run; what it says of mesh, ``remat``, parts and chunks does not count.
        chips: in all.
        batch_sizes: rows of a step to try.
        slices: into which the chips are divided; only ``data`` is split over them.
    """
    chunk: int | None = getattr(config.task, "chunk_tokens", None)
    for fsdp, expert, sequence, tensor in meshes(config, chips // slices):
        for batch_size, accumulate, remat in product(batch_sizes, _powers(MOST_PARTS), REMAT):
            if batch_size % (chips // (sequence * tensor) * accumulate) == 0:
                yield Candidate(fsdp, expert, sequence, tensor, remat, batch_size, accumulate, chunk)


def meshes(config: RunConfig, chips: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields ``fsdp``, ``expert``, ``sequence``, ``tensor`` of every mesh that divides chips, rows and parameters.

    ``chips`` are those of a slice.
    """
    c, length = config.model, config.sequence_length
    experts = _powers(chips) if c.num_experts else [1]
    sequences = _powers(chips) if config.parallel.sequence > 1 or length >= LONG_ROW else [1]
    for fsdp, expert, sequence, tensor in product(_powers(chips), experts, sequences, _powers(MOST_TENSOR)):
        sizes = (c.num_heads, c.kv_heads, c.inner_size, c.vocabulary)
        odd = [size % tensor for size in sizes] + [c.hidden_size % fsdp, (c.num_experts or 1) % expert]
        if not any([*odd, length % sequence, chips % (fsdp * expert * sequence * tensor)]):
            yield fsdp, expert, sequence, tensor


def _powers(most: int) -> list[int]:
    """Powers of two up to ``most``.

    >>> _powers(9)
    [1, 2, 4, 8]
    """
    return [2**n for n in range(max(1, most).bit_length())]


def estimate(candidate: Candidate, model: Model, chip: Chip, chips: int, slices: int = 1) -> Estimate:
    """The time that no program can beat, and about how much memory it takes.

    Products at the peak of the chip, a third more with full recomputation; parameters in the dtype of the computation
    gathered twice a part and gradients reduced once (ZeRO-3: Rajbhandari et al. 2020, section 7); four all-reduces of
    the activations a block under ``tensor`` (Shoeybi et al. 2019, "Megatron-LM", section 3), by the ring algorithms;
    between slices each chip reduces its share of the gradients, once a part.
    """
    k, c = candidate, model.config
    width = 2 if c.dtype == "bfloat16" else 4
    split = k.fsdp * k.tensor
    data = chips // (split * k.sequence * k.expert)
    rows = k.batch_size // (data * k.fsdp * k.expert)
    compute = model.flops * k.batch_size / chips / PEAK_FLOPS[chip.device_kind] * (4 / 3 if k.remat == "full" else 1.0)
    share = model.parameters / k.tensor * width
    sent = k.accumulate * (3 * share * ring_share(k.fsdp) + 2 * share / k.fsdp * ring_share(data * k.sequence))
    activations = rows * model.length / k.sequence * c.hidden_size
    # On the path of every token: nothing is computed meanwhile.
    waiting = 4 * c.num_layers * activations * width * 2 * ring_share(k.tensor) / chip.ici_bandwidth
    state = 12.0 * model.parameters / split
    gradients = (8.0 if k.accumulate > 1 else 4.0) * model.parameters / split
    # What all blocks keep, and the one that is just computed, with its gradients.
    blocks = c.num_layers * kept_values(c, k.remat) + 2 * kept_values(c, "none")
    kept = activations / k.accumulate * width * blocks / k.tensor
    network = sent / chip.ici_bandwidth
    share_of_slice = model.parameters * width * slices / chips
    between = k.accumulate * 2 * share_of_slice * ring_share(slices) / chip.dcn_bandwidth
    seconds = max(compute + waiting, network, between)
    return Estimate(seconds, network + waiting + between, state + gradients + kept, state)


def kept_values(config: TransformerConfig, remat: str) -> float:
    """The values of a token that a block keeps for the backward pass, as multiples of the width.

    ``full``: the input of the block. ``dots``: also queries, keys and values, what attention adds to the input, their
    sum, and what enters the activation. ``none``: also the heads' outputs, both normalised inputs and what the
    activation gives. The kernel keeps no scores. Counted as in Korthikanti et al. 2022, "Reducing Activation
    Recomputation in Large Transformer Models", section 4.1.
    """
    c = config
    heads, inner = c.head_width / c.hidden_size, (2 if c.gated else 1) * c.inner_size / c.hidden_size
    dots = 3 + (c.num_heads + 2 * c.kv_heads) * heads + inner
    return {"full": 1.0, "dots": dots, "none": dots + c.num_heads * heads + 2 + inner}[remat]


def in_order(
    found: Sequence[Candidate], model: Model, chip: Chip, chips: int, slices: int = 1
) -> list[tuple[Candidate, Estimate]]:
    """Candidates whose state fits, those that should fit first, then by the time of a token and what is sent for it."""
    estimates = [(one, estimate(one, model, chip, chips, slices)) for one in found]
    fitting = [pair for pair in estimates if pair[1].state < chip.hbm]

    def key(pair: tuple[Candidate, Estimate]) -> tuple[bool, float, float, float]:
        candidate, estimated = pair
        # Rounded, so that equal ones are in the order of what follows.
        row, sent = (float(f"{s / candidate.batch_size:.3g}") for s in (estimated.seconds, estimated.network))
        return estimated.bytes > chip.hbm, row, sent, estimated.bytes

    return sorted(fitting, key=key)


def search(
    ordered: Sequence[tuple[Candidate, Estimate]],
    compile_one: Callable[[Candidate], StepCost | None],
    chip: Chip,
    length: int,
    most: int,
) -> list[Plan]:
    """Compiles candidates in order and returns those that fit, best first.

    Args:
        ordered: candidates with their estimates.
        compile_one: the cost of a candidate's step, None if it does not fit.
        chip: of the target.
        length: tokens of a row.
        most: programs that fit to compile; of those that do not, which XLA refuses soon, ``SPARE`` more.
    """
    plans: list[Plan] = []
    too_large: list[Candidate] = []
    smallest = math.inf  # estimate of those that did not fit; what is estimated no smaller comes last
    later: list[tuple[Candidate, Estimate]] = []
    for number, (candidate, estimated) in enumerate(chain(ordered, later)):
        if len(plans) == most or len(too_large) == most + SPARE:
            break
        if estimated.bytes >= smallest and number < len(ordered):
            later.append((candidate, estimated))
            continue
        if any(other.needs_no_more(candidate) for other in too_large):
            continue
        if any(candidate.needs_no_more(plan.candidate) for plan in plans):
            continue  # it computes more and fits no better
        best = sorted(plan.seconds_per_token(chip, length) for plan in plans)
        if len(best) >= BEST and estimated.seconds / (candidate.batch_size * length) >= best[BEST - 1]:
            continue
        cost = compile_one(candidate)
        if cost is None:
            too_large.append(candidate)
            smallest = min(smallest, estimated.bytes)
        else:
            plans.append(Plan(candidate, cost))
    return ranked(plans, chip, length)


def other_chunks(best: Candidate, model: Model, chip: Chip, chips: int) -> list[tuple[Candidate, Estimate]]:
    """The best candidate with other chunks of logits: larger ones read the head's weights less often."""
    if best.chunk_tokens is None:
        return []
    tried = [best._replace(chunk_tokens=size) for size in CHUNKS if size != best.chunk_tokens]
    return [(one, estimate(one, model, chip, chips)) for one in tried]


def ranked(plans: Sequence[Plan], chip: Chip, length: int) -> list[Plan]:
    """The plans by the bound on a token's time; equal ones by the sum of what keeps the chip busy."""

    def key(plan: Plan) -> tuple[float, float]:
        rows = plan.candidate.batch_size
        return plan.seconds_per_token(chip, length), math.fsum(plan.cost.times(chip).values()) / rows

    return sorted(plans, key=key)


class Price(NamedTuple):
    """What the whole training is to be counted in.

    Attributes:
        tokens: to train on; None: hours are not counted.
        hour: price of a chip for an hour, in any currency; None: cost is not counted.
    """

    tokens: int | None
    hour: float | None


def model_of(run: Run) -> Model:
    """Sizes of the model of a run with batches of one row."""
    c, length = run.config.model, run.config.sequence_length
    flops = run.flops_per_step
    if c.architecture == "decoder" and c.mixer == "attention":
        scores = 12.0 * c.num_layers * c.num_heads * c.head_width * length**2
        flops -= scores * (1 - visible_share(length, True, c.window))
    return Model(count_parameters(run.division.shapes), flops, c, length)


def mesh_in_words(candidate: Candidate, chips: int) -> str:
    """The axes of the mesh that split anything.

    >>> mesh_in_words(Candidate(8, 1, 1, 2, "none", 64, 1, None), 64)
    'data 4 x fsdp 8 x tensor 2'
    """
    k = candidate
    sizes = {"fsdp": k.fsdp, "expert": k.expert, "sequence": k.sequence, "tensor": k.tensor}
    sizes = {"data": chips // math.prod(sizes.values()), **sizes}
    return " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one chip"


def in_words(candidate: Candidate, chips: int) -> str:
    """A candidate in one line."""
    k = candidate
    chunk = "" if k.chunk_tokens is None else f", chunks of {k.chunk_tokens:,} tokens"
    parts = f"{k.batch_size:,} rows in {k.accumulate} part(s)"
    return f"{mesh_in_words(k, chips)}, remat {k.remat}, {parts}{chunk}"


def row(plan: Plan, chip: Chip, length: int, chips: int, price: Price) -> dict[str, str]:
    """A row of the table of plans."""
    k, cost = plan.candidate, plan.cost
    hours = None if price.tokens is None else price.tokens * plan.seconds_per_token(chip, length) / 3600
    return {
        "mesh": mesh_in_words(k, chips),
        "remat": k.remat,
        "rows": f"{k.batch_size:,} in {k.accumulate}",
        "chunk": "" if k.chunk_tokens is None else f"{k.chunk_tokens:,}",
        "memory, GiB": f"{cost.peak / 2**30:.2f} of {chip.hbm / 2**30:.0f}",
        f"{' / '.join(cost.times(chip))}, ms": " / ".join(f"{1000 * s:,.0f}" for s in cost.times(chip).values()),
        "sent by a chip": by_kind(cost.collectives) or "nothing",
        "MFU at most": f"{cost.mfu_bound(chip):.0%}",
        "hours at least": "" if hours is None else f"{hours:,.1f}",
        "cost at least": "" if hours is None or price.hour is None else f"{hours * chips * price.hour:,.0f}",
    }
