"""What is checked: a configuration with its data and devices, or a model that is to be used."""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxformer.check import alignment, data, model, training, use
from jaxformer.check.model import ModelSubject, stirred
from jaxformer.check.outcome import Check, Outcome, outcomes, side_by_side
from jaxformer.check.small import reduction, small_config, with_config
from jaxformer.check.training import RunSubject
from jaxformer.check.use import UseSubject
from jaxformer.hub.kinds import build, init
from jaxformer.hub.save import save_pretrained
from jaxformer.models import EncoderDecoder
from jaxformer.parallel.mesh import ParallelConfig
from jaxformer.tokenizers import PreTrainedTokenizer, decode
from jaxformer.training.config import RunConfig
from jaxformer.training.console import Display
from jaxformer.training.run import Run, check_spread, prepare

LENGTHS = (23, 14, 9)  # of the texts with which models are checked
ROOM = model.PADDING + 2  # places that the checks need beside a text
# Checks of a model that are repeated in its own dtype: their bound grows with the rounding of that type.
IN_ITS_DTYPE = ("padding on the right", "padding on the left", "packed = apart", "cached = full pass")


def texts_of(ids: Iterable[np.ndarray], vocabulary: int, lengths: tuple[int, ...] = LENGTHS) -> tuple[np.ndarray, ...]:
    """Texts of these lengths cut from rows of real tokens; what is missing is drawn from the vocabulary."""
    random = np.random.default_rng(0)
    stream = np.concatenate([np.asarray(row).reshape(-1) for row in ids] or [np.zeros(0, int)]).astype(np.int64)
    found, start = [], 0
    for length in lengths:
        piece = stream[start : start + length]
        start += length
        more = random.integers(0, vocabulary, length - len(piece))
        found.append(np.concatenate([piece, more]).astype(np.int32))
    return tuple(found)


def real_tokens(batch: dict[str, np.ndarray], prefix: str = "") -> list[np.ndarray]:
    """The real tokens of each row of a batch."""
    ids = np.asarray(batch[f"{prefix}input_ids"])
    ids = ids.reshape(-1, ids.shape[-1])
    for name in (f"{prefix}attention_mask", f"{prefix}segment_ids"):
        if name in batch:
            mask = np.asarray(batch[name]).reshape(-1, ids.shape[-1]) > 0
            return [row[real] for row, real in zip(ids, mask, strict=True)]
    return list(ids)


def model_subject(
    model: Any, params: Any, batch: dict[str, np.ndarray], tokenizer: PreTrainedTokenizer | None = None
) -> ModelSubject:
    """A model with texts cut from a batch."""
    c = model.config
    longest = c.max_length - ROOM
    lengths = tuple(max(2, min(n, longest - 4 * i)) for i, n in enumerate(LENGTHS))
    texts = texts_of(real_tokens(batch), c.vocabulary, lengths)
    targets: tuple[np.ndarray, ...] = ()
    if isinstance(model, EncoderDecoder):
        rows = real_tokens(batch, "decoder_") if "decoder_input_ids" in batch else [text[::-1] for text in texts]
        targets = texts_of(rows, c.vocabulary, tuple(max(2, n - 3) for n in lengths))
    names: Callable[[int], str] = str
    if tokenizer is not None:
        names = lambda i: str(tokenizer.convert_ids_to_tokens(i))  # noqa: E731 - a default that is replaced
    return ModelSubject(model, params, texts, targets, names)


@contextmanager
def run_subject(run: Run) -> Iterator[tuple[RunSubject, str]]:
    """A prepared run made small, on one device, in a folder of its own; and what was reduced, in words."""
    with tempfile.TemporaryDirectory(prefix="jaxformer-check-") as folder:
        config = small_config(run.config, Path(folder) / "run")
        if run.config.model.pretrained is not None:
            base = write_base(config, run.tokenizer, Path(folder) / "base")
            config = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": str(base)})})
        c32 = config.model_copy(
            update={"model": config.model.model_copy(update={"dtype": "float32"}), "parallel": ParallelConfig()}
        )
        devices = tuple(jax.devices()) if run.devices is None else run.devices
        small = with_config(run, c32, devices[:1])
        yield RunSubject(small, _usable(devices, run), run.config.parallel), reduction(run.config, config)


def write_base(config: RunConfig, tokenizer: PreTrainedTokenizer, folder: Path) -> Path:
    """Writes a model of the small size, with parameters far from an initialisation, to start from.

    A run with ``model.pretrained`` then begins as it does in earnest: the file is read, a head is new, factors are
    added, and the reference is opened from it.
    """
    kinds = {"decoder": "causal_lm", "encoder_decoder": "seq2seq_lm", "encoder": "masked_lm"}
    made = build(config.model, kinds[config.model.architecture])
    params = stirred(nn.unbox(jax.jit(lambda key: init(made, key))(jax.random.key(1))), seed=1)
    return save_pretrained(folder, made, params, tokenizer)


def _usable(devices: tuple[jax.Device, ...], run: Run) -> tuple[jax.Device, ...]:
    """As many devices as the axes of the configuration ask for, else two: enough to see a sum that is not taken."""
    p = run.config.parallel
    axes = p.fsdp * p.expert * p.sequence * p.tensor * (p.data if p.data > 0 else 1)
    wanted = max(axes, 2)
    return devices[: wanted if len(devices) >= wanted else len(devices) // axes * axes]


ALIGNED = ("dpo", "ppo", "grpo", "rloo")  # objectives that the checks of alignment are about


def check_names() -> list[str]:
    """The names of all checks of a run, in their order."""
    return [check.name for module in (data, model, training, use, alignment) for check in module.CHECKS]


def check_run(
    run: Run, only: Collection[str] | None = None, say: Callable[[str], Any] = lambda _: None
) -> Iterator[Outcome]:
    """Checks a prepared run: its data, a small model of its configuration, its step, and the use of what it trains.

    Args:
        run: from ``training.run.prepare``.
        only: names of checks and of groups; default: all.
        say: takes a line about what was reduced.
    """
    chosen = partial(_chosen, only)
    yield from outcomes(chosen(data.CHECKS), run)
    if not chosen([*model.CHECKS, *training.CHECKS, *use.CHECKS, *alignment.CHECKS]):
        return
    with run_subject(run) as (subject, said):
        say(f"model and batch of the checks: {said}")
        small, dtype = subject.run, run.config.model.dtype
        beside = model_subject(small.model, _whole(subject), small.train_batches[0], run.tokenizer)
        used = UseSubject(beside, run.tokenizer, _as_texts(beside, run.tokenizer), subject)
        aligned = chosen(alignment.CHECKS) if run.config.task.type in ALIGNED else []
        yield from side_by_side(
            (_of_model(beside, dtype, chosen(model.CHECKS)), outcomes(chosen(use.CHECKS), used)),
            (outcomes(chosen(training.CHECKS), subject), outcomes(aligned, subject)),
        )


def _of_model(subject: ModelSubject, dtype: str, checks: list[Check]) -> Iterator[Outcome]:
    """The checks in float32, and those of rounding in the model's own dtype."""
    yield from outcomes(checks, subject)
    if dtype != "float32":
        again = [check for check in checks if check.name in IN_ITS_DTYPE]
        yield from outcomes(again, subject.in_dtype(dtype), dtype)


def _chosen(only: Collection[str] | None, checks: Iterable[Check]) -> list[Check]:
    return [check for check in checks if only is None or check.name in only or check.group in only]


def _as_texts(subject: ModelSubject, tokenizer: PreTrainedTokenizer | None) -> tuple[str, ...]:
    return () if tokenizer is None else tuple(decode(tokenizer, text.tolist()) for text in subject.texts)


def _whole(subject: RunSubject) -> Any:
    """The model's parameters as arrays."""
    frozen, trained = subject.parts
    return subject.run.merged(trained, frozen)


def check_model(
    made: Any,
    params: Any,
    batch: Mapping[str, Any],
    tokenizer: PreTrainedTokenizer | None = None,
    only: Collection[str] | None = None,
) -> Iterator[Outcome]:
    """The checks of a model with the parameters it has, and of its use; arguments as ``check.run``'s."""
    c = made.config
    params = jax.tree.map(lambda leaf: leaf.astype("float32"), nn.unbox(params))
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    beside = model_subject(made.clone(config=c.model_copy(update={"dtype": "float32"})), params, arrays, tokenizer)
    used = UseSubject(beside, tokenizer, _as_texts(beside, tokenizer))
    yield from side_by_side(
        (_of_model(beside, c.dtype, _chosen(only, model.CHECKS)),),
        (outcomes(_chosen(only, use.MODEL_CHECKS), used),),
    )


def check_config(config: RunConfig, display: Display, only: Collection[str] | None = None) -> Iterator[Outcome]:
    """Checks a configuration with its data: ``check_run`` of what it says, opened here."""
    p, devices = config.parallel, jax.devices()
    if 1 < (axes := p.fsdp * p.expert * p.sequence * p.tensor * max(p.data, 1)) <= len(devices):
        check_spread(config, tuple(devices[:axes]))  # as at the start of training
    single = config.model_copy(update={"parallel": ParallelConfig()})
    run = prepare(single, display, tuple(devices[:1]))
    run = with_config(run, run.config.model_copy(update={"parallel": config.parallel}), tuple(devices))
    yield from check_run(run, only, display.say)
