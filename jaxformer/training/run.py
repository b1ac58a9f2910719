"""A run put together from its configuration: tokenizer, data, model, task, optimizer, mesh and the state's shapes."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

from jaxformer.data.corpus import Split, open_corpus
from jaxformer.data.loader import TrainBatches, evaluation_batches
from jaxformer.data.records import open_records
from jaxformer.data.token_cache import TokenCache, build_cache
from jaxformer.data.token_rows import Rows
from jaxformer.hub.kinds import abstract_params
from jaxformer.models.config import SIDES, TransformerConfig
from jaxformer.models.exact import check_exact
from jaxformer.models.partition import on_mesh
from jaxformer.parallel import hosts
from jaxformer.parallel.batch import local_rows, put_batch
from jaxformer.parallel.fixed_tree import FixedTree, by_device, check_tree, on_every_device
from jaxformer.parallel.mesh import RULES, batch_devices, check_batch, check_length, make_mesh, replicated
from jaxformer.parallel.strategy import AXIS_NAME, DeviceStep
from jaxformer.schema import UserError, local_path
from jaxformer.tasks import Task, build_task
from jaxformer.tasks.metrics import check_installed
from jaxformer.tokenizers import (
    PreTrainedTokenizer,
    Role,
    find_special,
    fingerprint,
    vocabulary_size,
)
from jaxformer.training.adapter import Division
from jaxformer.training.config import RunConfig, dump_config
from jaxformer.training.console import Display
from jaxformer.training.flops import flops_per_step
from jaxformer.training.optimizer import build_optimizer, build_schedule
from jaxformer.training.run_tokenizer import open_run_tokenizer
from jaxformer.training.state import TrainState, abstract_on, abstract_state, count_parameters
from jaxformer.training.step import TrainStep, make_policy_step, make_train_step
from jaxformer.training.teacher import Teacher, open_teacher


@dataclass(frozen=True)
class Splits:
    """The data of a run as its objective reads it: a ``TokenCache`` or a list of records; validation may be None."""

    name: str
    fingerprint: str
    train: Any
    validation: Any | None

    @property
    def size(self) -> str:
        """Size of the training data, in words."""
        return size_of(self.train)


def size_of(data: Any) -> str:
    """Tokens and documents of a cache, or the number of records."""
    if isinstance(data, TokenCache):
        return f"{data.num_tokens:,} tokens in {data.num_documents:,} documents"
    return f"{len(data):,} examples"


@dataclass(frozen=True)
class Run:
    """All that a training loop needs, resolved and immutable."""

    config: RunConfig
    folder: Path
    tokenizer: PreTrainedTokenizer
    splits: Splits
    devices: tuple[jax.Device, ...] | None = None  # None: all of this machine

    @property
    def facts(self) -> dict[str, str]:
        """Fingerprints that must not change when a run is resumed."""
        facts = {"data": self.splits.fingerprint, "tokenizer": fingerprint(self.tokenizer)}
        return facts if self.teacher is None else {**facts, "teacher": self.teacher.fingerprint}

    @cached_property
    def teacher(self) -> Teacher | None:
        """The model that the run learns from, where it learns from one."""
        c = self.config
        if c.task.teacher_source is None:
            return None
        teacher = open_teacher(c.task.teacher_source, c.model)
        teacher.check(c.model, self.tokenizer, c.sequence_length, c.longest_target)
        return teacher

    @cached_property
    def model(self) -> nn.Module:
        """The model, with the head of the objective."""
        return self.task.model(self.config.model)

    @cached_property
    def task(self) -> Task:
        """The objective."""
        c = self.config
        records = self.splits.train if c.task.reads == "records" else ()
        teacher = None if self.teacher is None else self.teacher.config
        return build_task(c.task, self.tokenizer, c.model, c.sequence_length, c.data.layout, records, teacher)

    @cached_property
    def mesh(self) -> Mesh:
        """The devices."""
        return make_mesh(self.config.parallel, self.devices)

    @cached_property
    def schedule(self) -> optax.Schedule:
        """Learning rate by number of updates."""
        c = self.config
        return build_schedule(c.schedule, c.optimizer.learning_rate, c.training.steps)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer; all updates of a step have the same learning rate."""
        c, schedule = self.config, self.schedule
        updates = c.task.updates
        return build_optimizer(c.optimizer, schedule if updates == 1 else lambda n: schedule(n // updates))

    @cached_property
    def division(self) -> Division:
        """Divides the parameters into frozen and trained."""
        teacher = None if self.task.teacher is None else abstract_params(self.task.teacher)
        return Division(abstract_params(self.model), self.config.lora, teacher)

    @cached_property
    def abstract(self) -> TrainState:
        """The state's shapes and shardings."""
        ema = self.config.training.ema_decay is not None
        return abstract_state(self.division.boxed_parts()[1], self.optimizer, ema, self.mesh, self.task.carried)

    @cached_property
    def abstract_frozen(self) -> Any:
        """Shapes and shardings of what is not trained."""
        return abstract_on(self.division.boxed_parts()[0], self.mesh)

    @property
    def size(self) -> str:
        """Number of parameters, in words, and of trained ones with LoRA."""
        whole = f"{count_parameters(self.division.shapes):,} parameters"
        return whole if self.config.lora is None else f"{whole} and {count_parameters(self.abstract.params):,} trained"

    @property
    def eval_batch_size(self) -> int:
        """Rows of a batch in an evaluation."""
        return self.config.training.eval_batch_size or self.config.training.batch_size

    def batches_of(self, rows: Rows) -> Iterator[dict[str, jax.Array]]:
        """All rows of a split in order, in batches on the devices."""
        size, features = self.eval_batch_size, self.task.features
        for batch in evaluation_batches(rows, size, self.config.seed, features, local_rows(size, self.mesh)):
            yield put_batch(batch, size, self.mesh)

    def jit(self, function: Callable[..., Any]) -> Any:
        """Jits ``function(params, *arrays)``, results by row, for results on every device and process."""
        spread = by_device(function, self.mesh) if self.tree else on_mesh(function, self.mesh, RULES)
        return jax.jit(spread, out_shardings=replicated(self.mesh))

    def jit_sums(self, function: Callable[..., Any]) -> Any:
        """Jits ``function(params, batch)``, sums over the rows of a batch, likewise."""
        tree, mesh = self.tree, self.mesh
        if tree is None:
            return self.jit(function)

        def summed(params: Any, batch: Any) -> Any:
            return tree.sum(lambda part, params: function(params, part), batch, params)

        return jax.jit(on_every_device(summed, mesh, (False, True)), out_shardings=replicated(mesh))

    @cached_property
    def tree(self) -> FixedTree | None:
        """The order of all sums over rows with exact numerics, else None."""
        c = self.config
        return FixedTree(batch_devices(self.mesh), c.training.accumulate) if c.model.exact else None

    def merged(self, trained: Any, frozen: Any) -> Any:
        """The model's parameters as plain arrays, LoRA factors added in, as decoding takes them."""
        return trained if self.config.lora is None else self._merge(frozen, trained)

    @cached_property
    def _merge(self) -> Callable[[Any, Any], Any]:
        return jax.jit(self.division.merged)

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
            axis_name=AXIS_NAME if c.parallel.strategy == "pmap" else None,
            division=self.division,
            tree=self.tree,
        )

    @cached_property
    def device_step(self) -> DeviceStep:
        """The update on the devices of the run."""
        c = self.config
        step = self.train_step
        if c.task.generates:
            step = make_policy_step(self.model, self.task, step, seed=c.seed, division=self.division, tree=self.tree)
        size, exact = c.training.batch_size, c.model.exact
        return DeviceStep(step, self.abstract, self.mesh, c.parallel.strategy, size, exact=exact)

    @cached_property
    def train_batches(self) -> TrainBatches:
        """Batch by step: the rows of this process, or the prompts of a policy."""
        c = self.config
        rows = self.task.rows(self.splits.train)
        if c.task.generates:
            prompts = c.training.batch_size // c.task.responses_per_prompt
            return TrainBatches(rows, prompts, c.seed, self.task.features)
        keep = local_rows(c.training.batch_size, self.mesh)
        return TrainBatches(rows, c.training.batch_size, c.seed, self.task.features, keep)

    @cached_property
    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a global batch, by name; where batches differ in length, those of the first."""
        return self._shapes_at(0)

    def _shapes_at(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        size = self.config.training.batch_size
        if (shapes := self.task.shapes(size)) is not None:
            return shapes
        batch = self.train_batches[step]
        return {name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype) for name, array in batch.items()}

    @cached_property
    def flops_per_step(self) -> float:
        """Floating-point operations of one step, worked out from shapes."""
        shapes = {name: array.shape for name, array in self.batch_shapes.items()}
        flops = flops_per_step(self.config.model, self.division.shapes, shapes, frozen=self.config.lora is not None)
        if self.teacher is not None:
            # Forward only, which is a third of a step.
            flops += flops_per_step(self.teacher.config, self.division.teacher, shapes) / 3
        return flops

    def lowered(self, step: int = 0) -> Any:
        """The program of a training step for the devices of the run and a batch as that of ``step``, to be compiled."""
        shapes = self._shapes_at(step) if step else self.batch_shapes
        return self.device_step.lower(self.abstract, shapes, self.abstract_frozen)

    @cached_property
    def validation_rows(self) -> Rows | None:
        """The rows of the whole validation set, None if there is none."""
        validation = self.splits.validation
        return None if validation is None else self.task.rows(validation)


def check_spread(config: RunConfig, devices: tuple[jax.Device, ...] | None) -> None:
    """Refuses batches and rows that do not divide evenly over the devices, naming the nearest sizes that work."""
    mesh, t = make_mesh(config.parallel, devices), config.training
    parts = config.task.minibatch_count
    name = "training.batch_size" if parts == 1 else "training.batch_size / task.minibatches"
    check_batch(t.batch_size // parts, t.accumulate, mesh, name)
    if config.model.exact:
        check_exact(config.model, mesh.devices.flat[0].platform)
        check_tree(t.batch_size // parts, t.accumulate, mesh, name)
        check_tree(t.eval_batch_size or t.batch_size, 1, mesh, "training.eval_batch_size")
    check_batch(t.eval_batch_size or t.batch_size, 1, mesh, "training.eval_batch_size")
    check_length(config.sequence_length, mesh)


def prepare(config: RunConfig, display: Display, devices: tuple[jax.Device, ...] | None = None) -> Run:
    """Opens the data, trains or loads the tokenizer, builds the token caches and sizes the vocabulary.

    ``devices`` may be described ones to compile for; None: all of this machine. Raises ``UserError`` if the
    configuration or the data cannot work.
    """
    check_spread(config, devices)
    config.check_targets()
    folder = local_path(config.output_dir)
    read = _read_text if config.task.reads == "text" else _read_records
    tokenizer, splits = read(config, folder, display)
    run = Run(_fit_vocabulary(config, tokenizer), folder, tokenizer, splits, devices)
    # Class names found in the data are kept in config.yaml, so that the model can be read without the data.
    task = run.config.task.with_labels(run.task.labels)
    run = dataclasses.replace(run, config=run.config.model_copy(update={"task": task}))
    _ = run.train_batches  # refuses a text shorter than one row now
    facts = {f"the {name}": fact for name, fact in run.facts.items()}
    hosts.check_same({"the configuration": dump_config(run.config), **facts})
    return run


def _read_text(config: RunConfig, folder: Path, display: Display) -> tuple[PreTrainedTokenizer, Splits]:
    """Documents, as caches of tokens."""
    corpus = open_corpus(config.data)
    texts = (document.text for document in corpus.documents("train"))
    tokenizer = open_run_tokenizer(config, corpus, texts, folder, display)

    def cache(split: Split) -> TokenCache:
        with display.counting(f"tokenising {corpus.name} ({split})", "documents") as counter:
            return build_cache(corpus, split, tokenizer, config.data.cache_folder, counter)

    validation = cache("validation") if "validation" in corpus.readers else None
    return tokenizer, Splits(corpus.name, corpus.fingerprint, cache("train"), validation)


def _read_records(config: RunConfig, folder: Path, display: Display) -> tuple[PreTrainedTokenizer, Splits]:
    """Rows of a table."""
    records = open_records(config.data)
    if records.validation is not None and config.task.scored:
        check_installed()
    texts = (text for record in records.train for text in config.task.texts(record))
    tokenizer = open_run_tokenizer(config, records, texts, folder, display)
    return tokenizer, Splits(records.name, records.fingerprint, records.train, records.validation)


def _fit_sides(model: TransformerConfig, tokenizer: PreTrainedTokenizer) -> dict[str, TransformerConfig]:
    """The sides with the vocabulary and the padding of the tokenizer, which is that of both."""
    found: dict[str, TransformerConfig] = {}
    needed = vocabulary_size(tokenizer)
    for name in SIDES:
        side: TransformerConfig | None = getattr(model, name)
        if side is None:
            continue
        size = side.vocab_size or needed
        size = max(size, needed) if model.sources else size
        if size < needed:
            raise UserError(
                f"model.{name}.vocab_size is {size}, expected at least the tokenizer's {needed}; leave it out to take "
                "the tokenizer's"
            )
        pad = find_special(tokenizer, "pad") if side.pad_token_id is None else side.pad_token_id
        found[name] = side.model_copy(update={"vocab_size": size, "pad_token_id": pad})
    return found


def _fit_vocabulary(config: RunConfig, tokenizer: PreTrainedTokenizer) -> RunConfig:
    """The configuration with the vocabulary's size and the special ids of the tokenizer."""
    size, needed = config.model.vocab_size, vocabulary_size(tokenizer)
    if size is not None and config.model.sources:
        # An objective's special tokens are further rows of the table; spare rows of the table stay.
        size = max(size, needed)
    if size is not None and size < needed:
        raise UserError(
            f"model.vocab_size is {size}, expected at least the tokenizer's {needed}; "
            "leave it out to take the tokenizer's"
        )
    roles: dict[str, Role] = {"pad_token_id": "pad", "eos_token_id": "eos"}
    if config.model.architecture == "encoder":
        roles |= {"bos_token_id": "cls", "eos_token_id": "sep"}
    if config.model.architecture == "encoder_decoder" and config.model.decoder_start != "last":
        roles["decoder_start_token_id"] = config.model.decoder_start
    ids = {key: find_special(tokenizer, role) for key, role in roles.items() if getattr(config.model, key) is None}
    model = config.model.model_copy(update={"vocab_size": size or needed, **ids, **_fit_sides(config.model, tokenizer)})
    return config.model_copy(update={"model": model})
