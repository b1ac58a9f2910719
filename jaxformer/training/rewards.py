"""Rewards: scores of responses from a reward model or a Python function."""

import hashlib
import importlib.util
import inspect
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxformer.data.example_rows import BUCKET
from jaxformer.hub.pretrained import read_checkpoint, read_config
from jaxformer.hub.repository import Repository, model_files
from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.models.heads import SequenceClassifier
from jaxformer.schema import UserError, local_path, nearest
from jaxformer.tasks.records import where
from jaxformer.tokenizers import PreTrainedTokenizer, difference
from jaxformer.training.pretrained import open_run, read_params
from jaxformer.training.sources import is_run

HEAD = "sequence_classification"
# Columns of a row that a function gets as ``prompts`` and ``completions``, or that would stand in for these.
NOT_COLUMNS = frozenset(("prompt", "completion", "prompts", "completions", "completion_ids"))


class Sample(NamedTuple):
    """A response to be scored, with the row that its prompt comes from, as ids and as text.

    ``prompt`` goes with the response as one text: an encoder-decoder's has no end of its own. ``response`` has its end
    if it ended rather than being cut at its longest; ``text`` is without special tokens.
    """

    record: Mapping[str, Any]
    prompt: list[int]
    response: list[int]
    ended: bool
    prompt_text: str
    text: str

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt) + len(self.response)


def named(number: int, sample: Sample) -> str:
    """A sample, for errors."""
    return f"sample {number} ({where(sample.record)})"


class ModelReward:
    """The score of a reward model at the last token of prompt and response, independent of the other samples."""

    def __init__(self, source: str, model: SequenceClassifier, params: Any, batch_size: int) -> None:
        self._source, self._batch_size, self._vocabulary = source, batch_size, model.config.vocabulary
        self.longest: int | None = model.config.max_length
        self.model, self.params = model, jax.tree.map(jax.device_put, params)
        self._scores = jax.jit(
            lambda params, ids, mask: model.apply({"params": params}, ids, attention_mask=mask).logits[:, 0]
        )

    def __call__(self, samples: Sequence[Sample]) -> np.ndarray:
        """Float32 ``[n]``; raises ``UserError`` if a text is longer than the model reads, or its score is no number."""
        assert self.longest is not None
        scores = np.zeros(len(samples), np.float32)
        for number, sample in enumerate(samples):
            if not 0 < sample.length <= self.longest:
                raise UserError(
                    f"{named(number, sample)} has {sample.length} tokens, expected at most the {self.longest} that the "
                    f"reward model {self._source} reads; leave long prompts out, or lower max_new_tokens"
                )
        # Samples of similar length share a batch, in one of few shapes.
        order = sorted(range(len(samples)), key=lambda number: samples[number].length)
        for start in range(0, len(order), self._batch_size):
            numbers = order[start : start + self._batch_size]
            found = self._scores(self.params, *self._batch([samples[number] for number in numbers]))
            scores[numbers] = np.asarray(found)[: len(numbers)]
        return checked(scores, samples, f"the reward model {self._source}")

    def _batch(self, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask ``[B, T]``: B a power of two or the whole batch, T a multiple of 64 or all that the model reads.

        Rows that are missing are padding but for one token.
        """
        B = min(1 << (len(samples) - 1).bit_length(), self._batch_size)
        T = min(-(-max(sample.length for sample in samples) // BUCKET) * BUCKET, int(self.longest or 0))
        ids, mask = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
        mask[len(samples) :, 0] = 1
        for row, sample in enumerate(samples):
            ids[row, : sample.length] = [*sample.prompt, *sample.response]
            mask[row, : sample.length] = 1
        if ids.max() >= self._vocabulary:
            raise UserError(
                f"a sample has token {ids.max()} and the reward model {self._source} knows {self._vocabulary:,}; "
                "expected a model that writes no token beyond its tokenizer's: train it further"
            )
        return ids, mask


class FunctionReward:
    """The score that a Python function, ``path/to/file.py:function``, gives.

    It is called as TRL calls its reward functions: ``function(prompts=[...], completions=[...], completion_ids=[...],
    column=[...], ...)``, with every further column of the rows as a list, and returns a number for each completion.
    Prompts and completions are texts, of dialogues too. A function without ``**kwargs`` gets what it names.
    """

    longest: int | None = None

    def __init__(self, source: str, function: Callable[..., Any]) -> None:
        self._source, self._function = source, function

    @cached_property
    def _takes(self) -> frozenset[str] | None:
        """The names of its arguments; None if it takes any."""
        parameters = inspect.signature(self._function).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return None
        return frozenset(parameters)

    def __call__(self, samples: Sequence[Sample]) -> np.ndarray:
        """Float32 ``[n]``; raises ``UserError`` if it fails or returns anything but a finite number for each sample."""
        if not samples:
            return np.zeros(0, np.float32)
        columns = dict.fromkeys(name for sample in samples for name in sample.record)
        given: dict[str, Any] = {
            "prompts": [sample.prompt_text for sample in samples],
            "completions": [sample.text for sample in samples],
            "completion_ids": [list(sample.response) for sample in samples],
            **{name: [s.record.get(name) for s in samples] for name in columns if name not in NOT_COLUMNS},
        }
        if self._takes is not None:
            given = {name: value for name, value in given.items() if name in self._takes}
        try:
            found = self._function(**given)
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            raise UserError(f"the reward function {self._source} failed: {type(error).__name__}: {said}") from error
        listed = hasattr(found, "__len__") and not isinstance(found, str | Mapping)
        if not listed or len(found) != len(samples):
            got = f"{len(found)} values" if listed else f"a {type(found).__name__}"
            raise UserError(
                f"the reward function {self._source} returned {got} for {len(samples)} samples, expected a list of one "
                "number for each"
            )
        values = [value.item() if hasattr(value, "item") else value for value in found]
        for number, value in enumerate(values):
            if not isinstance(value, numbers.Real):
                raise UserError(
                    f"the reward function {self._source} returned {value!r:.60} for {named(number, samples[number])}, "
                    "expected a number"
                )
        with np.errstate(over="ignore"):
            scores = np.array([float(value) for value in values], np.float64).astype(np.float32)
        return checked(scores, samples, f"the reward function {self._source}")


Reward = ModelReward | FunctionReward


def checked(scores: np.ndarray, samples: Sequence[Sample], what: str) -> np.ndarray:
    """The scores, else a ``UserError`` that names the first sample whose score is not finite."""
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        number = int(bad[0])
        raise UserError(f"{what} gave {scores[number]} for {named(number, samples[number])}, expected a finite number")
    return scores


def open_reward(
    source: str, tokenizer: PreTrainedTokenizer, sequence_length: int | None = None, batch_size: int = 16
) -> Reward:
    """The reward of a name: a function of ``n`` samples that returns float32 ``[n]``.

    ``source`` is the folder of a run of ``reward``, a classifier with one class in the Hugging Face format (a folder or
    a name on the Hub), or ``path/to/file.py:function``; ``sequence_length`` bounds a prompt with its response, None:
    unknown. Raises ``UserError`` if it is none of these, was trained with another tokenizer, or reads fewer tokens.
    """
    file = function_of(source)
    if file is not None:
        return FunctionReward(source, _load_function(*file))
    model, params, theirs = _open_model(source)
    other = difference(theirs, tokenizer)
    if other is not None:
        raise UserError(
            f"the reward model {source} was trained with another tokenizer: {other}; expected that of the model "
            "which writes: start both from the same model"
        )
    if sequence_length is not None and sequence_length > model.config.max_length:
        raise UserError(
            f"a prompt and its response may have {sequence_length} tokens and the reward model {source} reads "
            f"{model.config.max_length}; expected no more: lower the length, or take another reward model"
        )
    return ModelReward(source, model, params, batch_size)


def describe_reward(source: str) -> dict[str, str | None]:
    """A reward's name and a hash over its files (None for a name on the Hub), which changes when the reward does."""
    file = function_of(source)
    if file is None:
        return {"reward": source, "reward_files": model_files(source)}
    return {"reward": source, "reward_files": hashlib.sha256(file[0].read_bytes()).hexdigest()}


def function_of(source: str) -> tuple[Path, str] | None:
    """The file and the name of a function, None for a model; raises ``UserError`` if there is no such file."""
    path, _, name = source.rpartition(":")
    if source.endswith(".py"):
        raise UserError(f"the reward {source} is a Python file, expected a function in it: {source}:FUNCTION")
    if not path.endswith(".py"):
        return None
    file = local_path(path)
    if not file.is_file():
        raise UserError(f"no such file: {file}, expected the Python file with the reward function {name}")
    return file, name


def _load_function(file: Path, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"reward_functions_{file.stem}", file)
    assert spec is not None and spec.loader is not None, "a file that ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{file} cannot be loaded: {type(error).__name__}: {said}; mend it") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == spec.name]
        found = f"only {', '.join(known)}" if known else "it has none"
        raise UserError(f"{file} has no function {name!r}, {found}{nearest(name, known)}")
    if inspect.iscoroutinefunction(function):
        raise UserError(f"{name} in {file} is an async function, expected a plain one: def {name}(...)")
    return function


def _open_model(source: str) -> tuple[SequenceClassifier, Any, PreTrainedTokenizer]:
    """A classifier with one class, its parameters and the tokenizer that it was trained with."""
    if not is_run(source):
        return _open_hub(source)
    folder = local_path(source)
    run = open_run(folder, "the reward model")
    if run.config.task.type != "reward":
        raise UserError(
            f"the reward model is {source}, a run of {run.config.task.type}, expected one of reward: train one with "
            "task.type=reward"
        )
    return run.model, jax.tree.map(jnp.asarray, unflatten_dict(read_params(folder), sep="/")), run.tokenizer


def _open_hub(source: str) -> tuple[SequenceClassifier, Any, PreTrainedTokenizer]:
    repository = Repository(source)
    described = read_config(repository)
    classes = len(described.labels) or int(described.hf.get("num_labels") or 1)
    if classes != 1:
        raise UserError(f"the reward model {source} has {classes} classes, expected one, whose logit is the score")
    if described.config.architecture == "encoder":
        raise UserError(
            f"the reward model {source} is an encoder ({described.config.type}), expected a decoder or an "
            "encoder-decoder, which reads prompt and response as one text"
        )
    read = read_checkpoint(repository, HEAD, num_labels=1)
    if read.loaded.missing:
        raise UserError(
            f"the reward model {source} has no {', '.join(read.loaded.missing)}, expected a classifier with one "
            "trained class"
        )
    tokenizer = AutoTokenizer.from_pretrained(source)
    return read.model, unflatten_dict(read.loaded.params, sep="/"), tokenizer
