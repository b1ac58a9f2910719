"""The output folder of a run: locked by one process, and resumed only with the settings that it was made with."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import yaml
from filelock import FileLock, Timeout
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.atomic import write_atomically
from jaxformer.models.heads import SequenceClassifier
from jaxformer.parallel import hosts
from jaxformer.schema import UserError
from jaxformer.tokenizers import save_tokenizer
from jaxformer.training.config import RunConfig, dump_config, parse_config, read_yaml
from jaxformer.training.optimizer import build_schedule
from jaxformer.training.run import Run
from jaxformer.training.sources import CHECKPOINTS, CONFIG_FILE

DATA_FILE = "data.json"
LEFT_OUT_FILE = "left_out.jsonl"
LOCK = ".lock"
# ``jaxformer runs`` holds the lock for an instant to see whether another process does.
LOCK_WAIT_S = 0.5

# Keys that a resumed run may change: those that do not change what a step computes, and those that users who resume a
# run want to change, the learning rate and the number of steps above all. Some matter only while steps are left ...
TRAINING_KEYS = (
    "data.num_threads",
    "data.prefetch",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "schedule.",
    "training.steps",
    "training.accumulate",
    "training.log_every",
    "training.eval_every",
    "training.save_every",
    "training.keep_last",
    "training.keep_best",
    "training.early_stopping",
    "training.max_nonfinite",
    "training.profile",
    "logging.",
)
# ... and some also when a finished run is started again, which evaluates and samples.
LASTING_KEYS = (
    "output_dir",
    "data.cache_dir",
    "model.bos_token_id",
    "model.eos_token_id",
    "model.generation.",
    "model.remat",
    "model.unroll",
    "model.attention_implementation",
    "task.chunk_tokens",
    "task.of.chunk_tokens",
    "task.of.metrics",
    "task.of.bad_rows",
    "task.metrics",
    "task.bad_rows",
    "training.eval_batch_size",
    "training.compilation_cache",
    "training.dump_hlo",
    "parallel.",
    "sample.",
)
PRETRAINED, PAD = "model.pretrained", "model.pad_token_id"


@contextlib.contextmanager
def open_folder(run: Run) -> Iterator[RunConfig | None]:
    """Locks the output folder for this run and writes what a new run has there; yields an earlier run's configuration.

    Raises ``UserError`` if the folder cannot be written, another process trains in it, or it holds another run.
    """
    with contextlib.ExitStack() as stack:
        # The first process locks the folder for all.
        earlier = hosts.from_first(lambda: _take_folder(run, stack))
        if not (run.folder / CONFIG_FILE).exists():
            raise UserError(
                f"output_dir {run.folder} here is not that of process 0, expected one folder that every host sees; "
                "choose one on a shared file system"
            )
        yield parse_config(yaml.safe_load(earlier), str(run.folder / CONFIG_FILE)) if earlier else None


def _take_folder(run: Run, stack: contextlib.ExitStack) -> bytes:
    folder = run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(folder / LOCK, timeout=LOCK_WAIT_S))
    except Timeout:
        raise UserError(f"output_dir {folder} is in use by another process; stop it or choose another") from None
    except OSError as error:
        raise UserError(
            f"output_dir {folder} cannot be written: {os.strerror(error.errno or 0)}; choose another"
        ) from None
    earlier = check_resumable(run) if (folder / CHECKPOINTS).exists() else None
    save_tokenizer(run.tokenizer, folder)
    if earlier is None:
        write_atomically(folder / CONFIG_FILE, dump_config(run.config))
    write_atomically(folder / DATA_FILE, json.dumps(run.facts, indent=1) + "\n")
    if left_out := [
        bad for rows in (run.train_batches.rows, run.validation_rows) if rows is not None for bad in rows.left_out
    ]:
        lines = (json.dumps({"where": where, "reason": reason}, ensure_ascii=False) for where, reason in left_out)
        write_atomically(folder / LEFT_OUT_FILE, "".join(line + "\n" for line in lines))
    return b"" if earlier is None else dump_config(earlier).encode()


def check_resumable(run: Run) -> RunConfig:
    """The configuration of the folder's run; refuses another model, tokenizer or data, listing what changed."""
    folder = run.folder
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} has checkpoints and no {CONFIG_FILE}, expected both; choose another output_dir")
    earlier = parse_config(read_yaml(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    free = _free_keys(run, earlier)
    changes = _changes(earlier, run.config)
    changed = [_line(key, pair) for key, pair in changes.items() if not key.startswith(free)]
    facts = json.loads((folder / DATA_FILE).read_text(encoding="utf-8")) if (folder / DATA_FILE).exists() else {}
    now = run.facts
    changed += [f"{key} (its content)" for key in now if key in facts and facts[key] != now[key]]
    if changed:
        raise UserError(
            f"{folder} holds a run with other settings: {', '.join(changed)}; "
            "undo the change to resume it, or choose another output_dir"
        )
    return earlier


class Kept(NamedTuple):
    """The keys of a resumed run that changed, with both values, and a warning if other changes have no effect."""

    changes: dict[str, tuple[Any, Any]]
    warning: str | None


def keep_config(run: Run, earlier: RunConfig, bound: str | None) -> Kept:
    """Writes the configuration of a resumed run; keys whose change has no effect stay as they were.

    Args:
        run: as it is now.
        earlier: the configuration that the folder had.
        bound: the key by which nothing is left to train; None if something is.
    """
    changes = _changes(earlier, run.config)
    idle = [key for key in changes if bound and key.startswith(TRAINING_KEYS)]
    # It is read once, at the first step, and may be left out later.
    idle += [PRETRAINED] if PRETRAINED in changes and run.config.model.pretrained is not None else []
    if hosts.is_first():
        before, now = (_flat(config, keep_empty_nodes=True) for config in (earlier, run.config))
        kept = {key: value for key, value in now.items() if key not in idle}
        kept |= {key: before[key] for key in idle if key in before}
        config = parse_config(unflatten_dict(kept, sep="."), str(run.folder / CONFIG_FILE))
        write_atomically(run.folder / CONFIG_FILE, dump_config(config))
    effective = {key: pair for key, pair in changes.items() if key not in idle}
    if not idle:
        return Kept(effective, None)
    state, go_on = ("is finished", f"raise {bound} to go on, or ") if bound else ("has begun", "")
    said = ", ".join(_line(key, changes[key]) for key in idle)
    warning = f"no effect on a run that {state}: {said}; {go_on}choose another output_dir to train with it"
    return Kept(effective, warning)


def jump_warning(run: Run, earlier: RunConfig, step: int) -> str | None:
    """A line if the learning rate of a resumed run jumps at ``step``, because its schedule now has another length.

    A rate that was set to another value is no such jump.
    """
    c = run.config
    same = earlier.model_copy(update={"optimizer": c.optimizer, "schedule": c.schedule})
    before, now = (
        float(build_schedule(config.schedule, config.optimizer.learning_rate, config.training.steps)(step))
        for config in (same, c)
    )
    if np.isclose(before, now, rtol=0.01):
        return None
    return (
        f"the learning rate at step {step} jumps from {before:.3g} to {now:.3g}: schedule.type {c.schedule.type} spans "
        f"all training.steps, which are {c.training.steps} instead of {earlier.training.steps}; wsd, constant and "
        "inverse_sqrt go on without a jump"
    )


def _flat(config: RunConfig, **options: bool) -> dict[str, Any]:
    return flatten_dict(config.model_dump(mode="json"), sep=".", **options)


def _changes(before: RunConfig, after: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, each with both."""
    old, new = _flat(before), _flat(after)
    pairs = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: (before, after) for key, (before, after) in pairs.items() if before != after}


def _line(key: str, pair: tuple[Any, Any]) -> str:
    return f"{key} {pair[0]!r} -> {pair[1]!r}"


def _free_keys(run: Run, earlier: RunConfig) -> tuple[str, ...]:
    """Beginnings of the keys that a resumed run may change."""
    free: tuple[str, ...] = (*TRAINING_KEYS, *LASTING_KEYS)
    model = run.config.model
    # The base model of LoRA factors is read again; any other earlier model was needed only once and may be gone.
    if earlier.lora is None:
        free += (PRETRAINED,)
    # Rows of a position table are counted from it, and a decoder's classifier reads the last token that is another.
    reads_pad = model.architecture == "decoder" and isinstance(run.model, SequenceClassifier)
    return free if reads_pad or model.position_offset == "after_pad" else (*free, PAD)
