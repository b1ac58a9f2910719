"""A run put together from its configuration: tokenizer, data, model, task, optimizer, mesh and the state's shapes."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import optax
from filelock import FileLock, Timeout
from jax.sharding import Mesh

from jaxformer.data.cache import TokenCache, build_cache
from jaxformer.data.corpus import Corpus, Split, open_corpus
from jaxformer.data.loader import TrainBatches
from jaxformer.data.rows import Rows
from jaxformer.parallel.mesh import check_batch, make_mesh
from jaxformer.schema import UserError
from jaxformer.tasks import Task, build_task
from jaxformer.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from jaxformer.training.config import RunConfig, dump_config, parse_config, read_yaml
from jaxformer.training.console import Display
from jaxformer.training.flops import flops_per_step
from jaxformer.training.optimizer import build_optimizer, build_schedule
from jaxformer.training.state import TrainState, abstract_state
from jaxformer.training.step import TrainStep, make_train_step

CONFIG_FILE, DATA_FILE, TOKENIZER_FILE, CHECKPOINTS = "config.yaml", "data.json", "tokenizer.json", "checkpoints"

# Keys a resumed run may change: none of them changes what a step computes. The learning rate and the number of
# steps may change too; that is what a user who goes on with a run wants to change.
FREE_KEYS = (
    "output_dir",
    "data.cache_dir",
    "data.num_threads",
    "data.prefetch",
    "model.remat",
    "model.unroll",
    "model.attention_implementation",
    "task.chunk_tokens",
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
    "parallel.",
    "logging.",
    "sample.",
)


@dataclass(frozen=True)
class Run:
    """What a training loop needs, resolved. Nothing in it changes."""

    config: RunConfig
    folder: Path
    tokenizer: Tokenizer
    corpus: Corpus
    train_cache: TokenCache
    validation_cache: TokenCache | None

    @cached_property
    def model(self) -> nn.Module:
        """The model, with the head of the objective."""
        return self.task.model(self.config.model)

    @cached_property
    def task(self) -> Task:
        """The objective."""
        c = self.config
        return build_task(c.task, self.tokenizer, c.model, c.sequence_length, c.data)

    @cached_property
    def mesh(self) -> Mesh:
        """The devices."""
        return make_mesh(self.config.parallel)

    @cached_property
    def schedule(self) -> optax.Schedule:
        """Learning rate by number of updates."""
        c = self.config
        return build_schedule(c.schedule, c.optimizer.learning_rate, c.training.steps)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer."""
        return build_optimizer(self.config.optimizer, self.schedule)

    @cached_property
    def abstract(self) -> TrainState:
        """The state's shapes and shardings."""
        return abstract_state(self.model, self.optimizer, self.config.training.ema_decay is not None, self.mesh)

    @cached_property
    def train_step(self) -> TrainStep:
        """One update, pure and not jitted."""
        c = self.config
        return make_train_step(
            self.model,
            self.task,
            self.optimizer,
            seed=c.seed,
            accumulate=c.training.accumulate,
            ema_decay=c.training.ema_decay,
        )

    @cached_property
    def train_batches(self) -> TrainBatches:
        """Batch by step."""
        c = self.config
        return TrainBatches(self.task.rows(self.train_cache), c.training.batch_size, c.seed, self.task.features)

    @cached_property
    def flops_per_step(self) -> float:
        """Floating-point operations of one step, worked out from shapes."""
        shapes = {name: array.shape for name, array in self.train_batches[0].items()}
        return flops_per_step(self.config.model, self.abstract.params, shapes)

    @cached_property
    def validation_rows(self) -> Rows | None:
        """The whole validation set cut into rows, or None if there is none."""
        if self.validation_cache is None:
            return None
        return self.task.rows(self.validation_cache)


def prepare(config: RunConfig, display: Display) -> Run:
    """Opens the corpus, trains or loads the tokenizer, builds the token caches and fits the model to the vocabulary.

    Raises:
        UserError: for anything in the configuration or the data that cannot work.
    """
    mesh = make_mesh(config.parallel)
    t = config.training
    check_batch(t.batch_size, t.accumulate, mesh)
    check_batch(t.eval_batch_size or t.batch_size, 1, mesh, "training.eval_batch_size")
    folder = Path(config.output_dir)
    corpus = open_corpus(config.data)
    tokenizer = _tokenizer(config, corpus, folder, display)

    def cache(split: Split) -> TokenCache:
        with display.counting(f"tokenising {corpus.name} ({split})", "documents") as counter:
            return build_cache(corpus, split, tokenizer, config.data.cache_folder, counter)

    validation = cache("validation") if corpus.has_validation else None
    run = Run(_fit_vocabulary(config, tokenizer), folder, tokenizer, corpus, cache("train"), validation)
    _ = run.train_batches  # a text shorter than one row should be refused now
    return run


def _tokenizer(config: RunConfig, corpus: Corpus, folder: Path, display: Display) -> Tokenizer:
    """The run's own tokenizer if the folder has one, so that a resumed run cannot train another."""
    if (folder / CHECKPOINTS).exists() and (folder / TOKENIZER_FILE).exists():
        return load_tokenizer(folder / TOKENIZER_FILE)
    with display.counting(f"training a {config.tokenizer.type} tokenizer on {corpus.name}", "documents") as counter:

        def texts() -> Iterator[str]:
            size = 0
            for count, document in enumerate(corpus.documents("train")):
                size += len(document.text)
                counter(count, size)
                yield document.text

        tokenizer = build_tokenizer(config.tokenizer, texts())
    # An objective may need tokens that no text holds (a mask, sentinels).
    return tokenizer.with_special_tokens(config.task.special_tokens, config.task.sentinels)


def _fit_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    size = config.model.vocab_size
    if size is not None and size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size is {size}, expected at least the tokenizer's {tokenizer.vocab_size}; "
            "leave it out to take the tokenizer's"
        )
    if size is not None:
        return config
    model = config.model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    return config.model_copy(update={"model": model})


@contextlib.contextmanager
def open_folder(run: Run) -> Iterator[None]:
    """Takes the output folder for this process and puts the config and tokenizer in it.

    Raises:
        UserError: if the folder cannot be written, another process trains in it, or it holds a run with another model,
            tokenizer or data.
    """
    folder = run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"output_dir {folder} is in use by another process; stop it or choose another") from None
    except OSError as error:
        raise UserError(
            f"output_dir {folder} cannot be written: {os.strerror(error.errno or 0)}; choose another"
        ) from None
    try:
        if (folder / CHECKPOINTS).exists():
            check_resumable(run)
        run.tokenizer.save(folder)
        _write(folder / CONFIG_FILE, dump_config(run.config))
        _write(folder / DATA_FILE, json.dumps(_data_facts(run), indent=1) + "\n")
        yield
    finally:
        lock.release()


def check_resumable(run: Run) -> None:
    """Refuses to go on with another model, tokenizer or data than the folder's checkpoints were made with.

    Raises:
        UserError: listing the keys that changed, old and new.
    """
    folder = run.folder
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} has checkpoints and no {CONFIG_FILE}, expected both; choose another output_dir")
    before = flatten(parse_config(read_yaml(folder / CONFIG_FILE), str(folder / CONFIG_FILE)).model_dump(mode="json"))
    after = flatten(run.config.model_dump(mode="json"))
    changed = [
        f"{key} {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(FREE_KEYS)
    ]
    facts = json.loads((folder / DATA_FILE).read_text(encoding="utf-8")) if (folder / DATA_FILE).exists() else {}
    now = _data_facts(run)
    changed += [f"{key} (its content)" for key in now if key in facts and facts[key] != now[key]]
    if changed:
        raise UserError(
            f"{folder} holds a run with other settings: {', '.join(changed)}; "
            "undo the change to go on with it, or choose another output_dir"
        )


def _data_facts(run: Run) -> dict[str, Any]:
    return {"data": run.corpus.fingerprint, "tokenizer": run.tokenizer.fingerprint}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
