"""The run's configuration: sections of typed keys, read from YAML and ``key.path=value`` overrides."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from jaxformer.data.config import DataConfig
from jaxformer.families import get_family, model_config
from jaxformer.lora.factors import LoraConfig
from jaxformer.models.config import OF_THE_WHOLE, TransformerConfig
from jaxformer.parallel.mesh import ParallelConfig
from jaxformer.schema import LocalPath, Schema, UserError, local_path
from jaxformer.tasks import TASKS, CausalLMConfig, TaskConfig, check_fit, task_config
from jaxformer.tokenizers import TokenizerConfig
from jaxformer.training.optimizer import OptimizerConfig, ScheduleConfig


class TrainingConfig(Schema):
    """Length of the training, batch size, evaluation and checkpoints."""

    steps: int = Field(1000, ge=1, description="updates of the whole run")
    batch_size: int = Field(32, ge=1, description="rows of the global batch, over all devices and accumulation steps")
    sequence_length: int | None = Field(None, ge=2, description="tokens of a row; default: model.max_length")
    accumulate: int = Field(
        1,
        ge=1,
        description="gradient accumulation steps: parts of the batch processed one after the other; same result",
    )
    log_every: int = Field(10, ge=1, description="steps between training records")
    eval_every: int | None = Field(None, ge=1, description="steps between evaluations; default: at the end only")
    eval_batch_size: int | None = Field(None, ge=1, description="rows of an evaluation batch; default: batch_size")
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; default: at the end only")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_best: int = Field(1, ge=0, description="checkpoints with the lowest validation loss kept as well")
    early_stopping: int | None = Field(
        None, ge=1, description="stop after this many evaluations in a row without a new best loss"
    )
    max_nonfinite: int = Field(
        10, ge=1, description="stop after this many updates in a row were skipped because of inf or nan"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of an exponential moving average of the weights, which is evaluated"
    )
    compilation_cache: LocalPath | None = Field(
        "auto",
        description="folder of JAX's compilation cache; auto: that of JAX_COMPILATION_CACHE_DIR, else "
        "`compiled` in the data cache; null: no cache",
    )
    profile: tuple[int, int] | None = Field(
        None, description="first and last step to trace with JAX's profiler, into output_dir/profile"
    )
    dump_hlo: bool = Field(False, description="write the compiled train step as text into output_dir/hlo")

    @field_validator("profile")
    @classmethod
    def _some_steps(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 1 <= value[0] <= value[1]:
            raise ValueError(f"is {list(value)}, expected [first, last] with 1 <= first <= last")
        return value


class LoggingConfig(Schema):
    """Logs beside metrics.jsonl."""

    report: bool = Field(True, description="output_dir/report.html, a page of the run, written at each evaluation")
    tensorboard: bool = Field(True, description="event files in output_dir/tensorboard")
    wandb: bool = Field(False, description="Weights & Biases, if installed")
    project: str = Field("jaxformer", description="wandb project")


class SampleConfig(Schema):
    """The text sampled at the end of a run."""

    prompt: str = Field("\n", description="prompt")
    max_new_tokens: int = Field(200, ge=0, description="most tokens of the sample; 0: no sample")
    temperature: float = Field(0.8, ge=0, description="0: greedy")
    top_k: int | None = Field(None, ge=1, description="sample from the k most probable tokens")
    top_p: float | None = Field(
        None, gt=0, le=1, description="sample from the most probable tokens whose probabilities add up to p"
    )


class RunConfig(Schema):
    """All settings of a run."""

    output_dir: LocalPath = Field(
        "runs/default", description="folder of the run; default: runs/ and the config file's name"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of every random draw")
    model: TransformerConfig = Field(default_factory=TransformerConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    task: TaskConfig = Field(default_factory=CausalLMConfig)
    lora: LoraConfig | None = Field(None, description="LoRA: train low-rank factors beside a frozen model.pretrained")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    sample: SampleConfig = Field(default_factory=SampleConfig)

    @property
    def sequence_length(self) -> int:
        """T, resolved."""
        return self.training.sequence_length or self.model.max_length

    @property
    def longest_target(self) -> int:
        """Longest target of a decoder beside an encoder, tokens; 0 without one."""
        return self.task.longest_target(self.sequence_length) if self.model.architecture == "encoder_decoder" else 0

    @property
    def compilation_folder(self) -> Path | None:
        """Folder of the compilation cache, resolved."""
        folder = self.training.compilation_cache
        if folder == "auto":
            return self.data.cache_folder / "compiled"
        return None if folder is None else local_path(folder)

    def check_targets(self) -> None:
        """Raises ``UserError`` if a target may be longer than the model reads, before a run is trained."""
        longest = self.model.decoder_side.max_length
        if self.longest_target > longest:
            raise UserError(
                f"a target of the task may have {self.longest_target} tokens, expected at most model.max_length "
                f"{longest}; set target_length (of an objective that generates max_new_tokens) lower"
            )

    @model_validator(mode="before")
    @classmethod
    def _family_defaults(cls, keys: Any) -> Any:
        if not isinstance(keys, dict):
            return keys
        model, task = (keys.get(section, {}) for section in ("model", "task"))
        if not isinstance(model, dict) or not isinstance(task, dict):
            return keys
        model = model_config(model)
        return {**keys, "model": model, "task": task_config(task, model)}

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        t, model = self.training, self.model
        check_fit(self.task, model)
        if t.batch_size % t.accumulate:
            raise ValueError(
                f"training.batch_size is {t.batch_size} and training.accumulate {t.accumulate}, expected a multiple"
            )
        if self.sequence_length > model.max_length:
            raise ValueError(
                f"training.sequence_length is {t.sequence_length}, expected at most model.max_length {model.max_length}"
            )
        self.task.check_run(self)
        if model.exact and self.parallel.strategy == "pmap":
            raise ValueError("model.numerics is exact and parallel.strategy pmap, expected jit; leave the strategy out")
        if model.exact and self.lora is not None and self.task.generates:
            raise ValueError(
                "model.numerics is exact and lora is given for a policy, expected one of them: factors are added into "
                "the kernels to generate, and kept apart to train"
            )
        if self.lora is not None and model.pretrained is None:
            raise ValueError("lora is given without model.pretrained, expected a model to freeze; give both")
        if self.lora is not None and (self.optimizer.freeze or self.optimizer.layer_decay != 1):
            raise ValueError(
                "lora is given with optimizer.freeze or optimizer.layer_decay, which go by the names of a model's own "
                "parameters; leave them out"
            )
        if t.early_stopping is not None and t.eval_every is None:
            raise ValueError("training.early_stopping is given without training.eval_every; give both")
        return self


def parse_config(keys: Mapping[str, Any], origin: str, overridden: Iterable[str] = ()) -> RunConfig:
    """The validated configuration, a function of the keys alone: no file is read.

    ``keys`` are sections of keys, ``model.pretrained`` already resolved (``training.sources.resolve``). A ``UserError``
    is one line that names the origin (or the command line, for ``overridden`` keys), the key, what was got and
    expected.
    """
    try:
        return RunConfig.model_validate(dict(keys))
    except ValidationError as error:
        raise UserError(_explain(error, origin, set(overridden))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds; a ``UserError`` if the file is missing, is not YAML or holds something else."""
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; check the path"
        raise UserError(f"config file {path} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"config file {path}{place} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if keys is None:
        return {}
    if not isinstance(keys, dict):
        raise UserError(f"config file {path} holds a {type(keys).__name__}, expected keys and values")
    return keys


def dump_config(config: RunConfig) -> str:
    """The configuration with every default written out, as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differing(config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The keys whose values are not the defaults of their section, each with value and default.

    The defaults of a model are those of its family; a key without a default has None.
    """
    found = {}

    def walk(section: BaseModel, prefix: str) -> None:
        family = get_family(section.type).defaults if isinstance(section, TransformerConfig) else {}
        two = isinstance(section, TransformerConfig) and section.encoder is not None
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if two and name not in OF_THE_WHOLE:
                continue  # a side's
            if isinstance(value, BaseModel):
                walk(value, f"{prefix}{name}.")
                continue
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            default = family.get(name, default)
            if value != default and name != "type":
                found[prefix + name] = (value, default)

    walk(config, "")
    return found


def apply_override(keys: dict[str, Any], override: str) -> str:
    """Sets the key of a ``key.path=value`` override and returns its path; a ``UserError`` if it cannot be set."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"override {override!r} has no value, expected key.path=value, for instance training.steps=100")
    *sections, last = name.split(".")
    for section in sections:
        inner = keys.setdefault(section, {})
        if inner is None:
            inner = keys[section] = {}
        if not isinstance(inner, dict):
            raise UserError(f"override {override!r}: {section} is a value, expected a section")
        keys = inner
    try:
        keys[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        keys[last] = text
    return name


def _explain(error: ValidationError, origin: str, overridden: set[str]) -> str:
    # Unknown keys come first: a misspelt key often makes another look missing.
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    location = _without_tags(first["loc"])
    key = ".".join(location)
    # A validator of a whole section reports the section; the message then names the keys.
    where = "the command line" if any(name == key or name.startswith(f"{key}.") for name in overridden) else origin
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}{_suggest(location)}{more}"
    if first["type"] == "missing":
        return f"{where}: {key} is missing, expected a value; give it{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}: {key + ': ' if key else ''}{message}{more}"
    message = message.removeprefix("Input ").replace("should be", "expected")
    return f"{where}: {key} is {first['input']!r}, {message}{more}"


def _without_tags(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """An error's location as a user writes it: pydantic puts the objective's name between ``task`` and its keys."""
    parts = list(map(str, location))
    for depth, section in enumerate(("task", "of"), 1):
        if parts[depth - 1 : depth] != [section] or not parts[depth:] or parts[depth] not in TASKS:
            break
        del parts[depth]
    return tuple(parts)


def _suggest(location: tuple[str, ...]) -> str:
    """The key probably meant: one of that name in another section, else the nearest in the same, else anywhere."""
    *sections, wrong = location
    others = [
        name for name, task in TASKS.items() if sections in (["task"], ["task", "of"]) and wrong in task.model_fields
    ]
    if others:
        return f" for this {'.'.join(sections)}.type; {', '.join(others)} have it"
    if sections[:1] == ["model"] and len(sections) == 2:
        # A side of a model has the model's keys.
        found = difflib.get_close_matches(wrong, TransformerConfig.model_fields, n=1)
        return f"; did you mean {'.'.join((*sections, found[0]))}?" if found else ""
    prefix = "".join(f"{section}." for section in sections)
    paths = [path for path, _ in config_keys(RunConfig)] + list(RunConfig.model_fields)
    same_name = [path for path in paths if path.rpartition(".")[2] == wrong]
    same_section = difflib.get_close_matches(prefix + wrong, [p for p in paths if p.startswith(prefix)], n=1)
    near = same_name or same_section or difflib.get_close_matches(prefix + wrong, paths, n=1)
    return f"; did you mean {near[0]}?" if near else "; train.py --help lists every key"


def _sections(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections a key may hold: none for a value, several where a ``type`` chooses."""
    annotation: Any = field.annotation
    candidates = getattr(annotation, "__args__", (annotation,))
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]


def config_keys(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """Every key of the configuration as (dotted path, pydantic field), sections flattened.

    Where a ``type`` chooses among sections, a key that several of them have is there once for each.
    """
    keys: list[tuple[str, Any]] = []
    # The type comes first: it says what the other keys belong to.
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] != "type"):
        sections = _sections(field)
        if sections and (prefix == "task." or model in sections):
            # An objective within an objective, and a side of a model, have its keys, which are listed once.
            keys.append((prefix + name, field))
            continue
        if not sections:
            keys.append((prefix + name, field))
        for section in sections:
            keys.extend(config_keys(section, f"{prefix}{name}."))
    return keys
