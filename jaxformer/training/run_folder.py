"""The output folder of a run: locked by one process, and resumed only with the settings that it was made with."""

import contextlib
import json
import os
from collections.abc import Iterator

from filelock import FileLock, Timeout
from flax.traverse_util import flatten_dict

from jaxformer.atomic import write_atomically
from jaxformer.parallel import hosts
from jaxformer.schema import UserError
from jaxformer.tokenizers import save_tokenizer
from jaxformer.training.config import dump_config, parse_config, read_yaml
from jaxformer.training.run import Run
from jaxformer.training.sources import CHECKPOINTS, CONFIG_FILE

DATA_FILE = "data.json"
LEFT_OUT_FILE = "left_out.jsonl"

# Keys that a resumed run may change: those that do not change what a step computes, and those that users who resume a
# run want to change, the learning rate and the number of steps above all.
FREE_KEYS = (
    "output_dir",
    "data.cache_dir",
    "data.num_threads",
    "data.prefetch",
    "model.pretrained",
    "model.pad_token_id",
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
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "schedule.",
    "training.steps",
    "training.accumulate",
    "training.log_every",
    "training.eval_every",
    "training.eval_batch_size",
    "training.save_every",
    "training.keep_last",
    "training.keep_best",
    "training.early_stopping",
    "training.max_nonfinite",
    "training.compilation_cache",
    "training.profile",
    "training.dump_hlo",
    "parallel.",
    "logging.",
    "sample.",
)


@contextlib.contextmanager
def open_folder(run: Run) -> Iterator[None]:
    """Locks the output folder for this run and writes the configuration and tokenizer into it.

    Raises ``UserError`` if the folder cannot be written, another process trains in it, or it holds another run.
    """
    with contextlib.ExitStack() as stack:
        # The first process locks the folder for all.
        hosts.from_first(lambda: _take_folder(run, stack))
        if not (run.folder / CONFIG_FILE).exists():
            raise UserError(
                f"output_dir {run.folder} here is not that of process 0, expected one folder that every host sees; "
                "choose one on a shared file system"
            )
        yield


def _take_folder(run: Run, stack: contextlib.ExitStack) -> bytes:
    folder = run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(folder / ".lock", timeout=0))
    except Timeout:
        raise UserError(f"output_dir {folder} is in use by another process; stop it or choose another") from None
    except OSError as error:
        raise UserError(
            f"output_dir {folder} cannot be written: {os.strerror(error.errno or 0)}; choose another"
        ) from None
    if (folder / CHECKPOINTS).exists():
        check_resumable(run)
    save_tokenizer(run.tokenizer, folder)
    write_atomically(folder / CONFIG_FILE, dump_config(run.config))
    write_atomically(folder / DATA_FILE, json.dumps(run.facts, indent=1) + "\n")
    if left_out := [
        bad for rows in (run.train_batches.rows, run.validation_rows) if rows is not None for bad in rows.left_out
    ]:
        lines = (json.dumps({"where": where, "reason": reason}, ensure_ascii=False) for where, reason in left_out)
        write_atomically(folder / LEFT_OUT_FILE, "".join(line + "\n" for line in lines))
    return b""


def check_resumable(run: Run) -> None:
    """Refuses to resume with another model, tokenizer or data than the checkpoints', listing what changed."""
    folder = run.folder
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} has checkpoints and no {CONFIG_FILE}, expected both; choose another output_dir")
    saved = parse_config(read_yaml(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    before, after = (flatten_dict(config.model_dump(mode="json"), sep=".") for config in (saved, run.config))
    # The base model of LoRA factors is read again; any other earlier model was needed only once and may be gone.
    free = FREE_KEYS if saved.lora is None else tuple(key for key in FREE_KEYS if key != "model.pretrained")
    changed = [
        f"{key} {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(free)
    ]
    facts = json.loads((folder / DATA_FILE).read_text(encoding="utf-8")) if (folder / DATA_FILE).exists() else {}
    now = run.facts
    changed += [f"{key} (its content)" for key in now if key in facts and facts[key] != now[key]]
    if changed:
        raise UserError(
            f"{folder} holds a run with other settings: {', '.join(changed)}; "
            "undo the change to resume it, or choose another output_dir"
        )
