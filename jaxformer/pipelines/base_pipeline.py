"""The base of all pipelines: parsing of options, streaming over bounded windows, batches, one jitted function."""

import sys
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import jax
import numpy as np
from pydantic import ValidationError

from jaxformer.pipelines.batching import Arrays, Row, run_rows
from jaxformer.pipelines.opened_model import Opened
from jaxformer.pipelines.resumable import MissingColumnError
from jaxformer.pipelines.weights import with_weights
from jaxformer.schema import Schema, UserError, nearest

# Batches from which on a list gets a progress bar.
LONG = 8


class PipelineWarning(UserWarning):
    """Something of the inputs was not used."""


@partial(jax.jit, static_argnames=("function", "model"))
def run_model(function: Callable[..., Any], model: Any, params: Any, batch: Mapping[str, jax.Array]) -> Any:
    """``function(model, params, batch)``, compiled once for each shape of the batch."""
    return function(model, params, batch)


def apply(model: Any, params: Any, batch: Mapping[str, jax.Array], **kwargs: Any) -> Any:
    """The model's output for a batch."""
    return model.apply({"params": params}, **batch, **kwargs)


def require_text(value: Any, what: str) -> str:
    """The value, if it is a text; else, or if it has half of a surrogate pair, raises a ``UserError``."""
    if not isinstance(value, str):
        raise UserError(f"{what} is {_shown(value)}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} holds half of a surrogate pair, expected Unicode") from None
    return value


def _shown(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({value!r:.60})"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in the type of the logits."""
    powers = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return np.asarray(powers / np.sum(powers, axis=-1, keepdims=True))


class Pipeline(ABC):
    """From texts to results: tokenizes, batches rows of similar length, runs the model and interprets its output.

    Called with one input it returns one result; with a list (or a column of a dataset) a list; with a generator or
    another iterator it is a generator, which holds at most one window of inputs.

    Attributes:
        task: its name.
        given: the options given to ``pipeline(...)``.
        options: these and the defaults of all others.
        batch_size: rows of a batch of texts of 64 tokens and more; of shorter ones as many as have no more tokens.
        weights: type in which the kernels are stored and multiplied; None: as they are.
    """

    task: str
    Options: ClassVar[type[Any]] = Schema
    takes: ClassVar[str] = "a text"
    per_token: ClassVar[bool] = False
    needs_offsets: ClassVar[bool] = False
    # A list of one input gives what the input alone gives.
    unwraps: ClassVar[bool] = False
    # Batches of a window, whose rows are sorted by length together; of a list so many windows are one.
    window_batches: ClassVar[int] = 32
    list_windows: ClassVar[int] = 4

    def __init__(self, task: str, opened: Opened, batch_size: int = 8, **options: Any) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}, expected 1 or more")
        self.task, self.batch_size = task, batch_size
        self.name, self.model, self.params = opened.name, opened.model, opened.params
        # Without the parameters: generation keeps a copy in another layout, and they must not be in memory twice.
        self.tokenizer, self.opened = opened.tokenizer, replace(opened, params=None)
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self.given = dict(options)
        self.weights: str | None = self.given.get("weights")
        self.prepare()
        self.options = self.parse({})

    def prepare(self) -> None:
        """Refuses a model or tokenizer that the task cannot use, and lays out the parameters."""
        if self.weights is not None:
            self.model, self.params = with_weights(self.model, self.params, self.weights)
        if self.needs_offsets and not self.tokenizer.is_fast:
            raise UserError(
                f"{self.task} needs to know which characters a token stands for, which a "
                f"{type(self.tokenizer).__name__} does not say; choose a model with a tokenizer.json"
            )

    def __repr__(self) -> str:
        return f"pipeline({self.task!r}, model={self.name!r})"

    @property
    def defaults(self) -> dict[str, Any]:
        """Options that the model brings: the task's entry of ``task_specific_params`` in ``config.json``."""
        known = {name: value for name, value in self.task_params.items() if name in self.Options.model_fields}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def task_params(self) -> Mapping[str, Any]:
        """The entry of ``task_specific_params`` in ``config.json``."""
        found = (self.opened.hf.get("task_specific_params") or {}).get(self.task) or {}
        return found if isinstance(found, Mapping) else {}

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a row, special ones included."""
        return int(min(self.tokenizer.model_max_length, self.model.config.max_length))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the model's classes."""
        return self.model.labels or tuple(f"LABEL_{number}" for number in range(self.model.num_labels))

    def parse(self, options: Mapping[str, Any]) -> Any:
        """The options of a call, with those of the pipeline and the defaults.

        Raises:
            UserError: one is not known or makes no sense.
        """
        if "weights" in options:
            raise UserError(
                "weights were given in a call, expected them where the pipeline is made: pipeline(weights=)"
            )
        known = self.Options.model_fields
        given = {key: value for key, value in self.given.items() if key != "weights" or key in known}
        keys = {**self.defaults, **given, **options}
        for key in keys:
            if key not in known:
                names = f", it has {', '.join(known)}" if known else ", it has none"
                raise UserError(f"{self.task} has no option {key!r}{nearest(key, known) or names}")
        try:
            return self.Options(**keys)
        except ValidationError as error:
            first = error.errors()[0]
            where = str(first["loc"][0]) if first["loc"] else "the options"
            said = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
            expected = said if first["type"] == "value_error" else f"expected {said}"
            raise UserError(f"{self.task}: {where} is {first['input']!r:.80}, {expected}") from None

    @abstractmethod
    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """The rows of each input.

        Raises:
            UserError: one of them is no input of this task.
        """

    @abstractmethod
    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> Any:
        """The result of one input, from what the model gave for its rows."""

    @staticmethod
    def forward(model: Any, params: Any, batch: Mapping[str, jax.Array]) -> Any:
        """The model's output for a batch, a tree of arrays ``[B, ...]``; it is compiled. Here logits ``[B, C]``."""
        return apply(model, params, batch).logits

    def record(self, result: Any) -> dict[str, Any]:
        """The result as one JSON object: itself if it is one, a list under ``output``."""
        return result if isinstance(result, dict) else {"output": result}

    def from_record(self, record: Mapping[str, Any], column: str) -> Any:
        """The input that a line of a file holds in a column, or raises a ``MissingColumnError``."""
        if column not in record:
            found = ", ".join(map(str, record)) or "none"
            raise MissingColumnError(f"there is no column {column!r}, only {found}; --text-column names another")
        return record[column]

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The result of one input, a list of results for a list, a generator of results for an iterator."""
        parsed = self.parse(options)
        if self.is_one(inputs, parsed):
            return self.of_one(next(self._results([inputs], parsed)), inputs, options)
        if not hasattr(inputs, "__iter__"):
            raise UserError(f"{self.task} got {_shown(inputs)}, expected {self.takes}, or a list or generator of such")
        if not hasattr(inputs, "__len__"):
            return self._results(inputs, parsed)
        results = self._results(inputs, parsed, self.list_windows)
        if len(inputs) >= LONG * self.batch_size and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import track

            results = iter(track(results, self.task, len(inputs), console=Console(stderr=True), transient=True))
        return self.of_list(list(results))

    def is_one(self, inputs: Any, options: Any) -> bool:
        """Returns whether this is a single input."""
        return isinstance(inputs, str | Mapping)

    def of_one(self, result: Any, inputs: Any, given: Mapping[str, Any]) -> Any:
        """The return value of a call with a single input."""
        return result

    def of_list(self, results: list[Any]) -> Any:
        """The return value of a call with a list."""
        return results[0] if self.unwraps and len(results) == 1 else results

    def _results(self, items: Iterable[Any], options: Any, windows: int = 1) -> Iterator[Any]:
        """The results in the order of the inputs, of which so many windows are read at a time."""
        source = iter(items)
        while window := list(islice(source, windows * self.window_size)):
            for result in self.window(window, options):
                if isinstance(result, UserError):
                    raise result
                yield result

    @property
    def window_size(self) -> int:
        """Inputs of a window."""
        return self.window_batches * self.batch_size

    def window(self, items: Sequence[Any], options: Any) -> list[Any]:
        """The results of some inputs, whose rows are sorted by length together; a bad input gives its ``UserError``."""
        encoded = self._encode(items, options)
        good = [rows for rows in encoded if not isinstance(rows, UserError)]
        outputs = iter(self.run([row for rows in good for row in rows], options))
        return [
            rows if isinstance(rows, UserError) else self.result(item, rows, list(islice(outputs, len(rows))), options)
            for item, rows in zip(items, encoded, strict=True)
        ]

    def _encode(self, items: Sequence[Any], options: Any) -> list[list[Row] | UserError]:
        """The rows of each input; if that fails, encodes each by itself to find the bad one."""
        try:
            return list(self.encode(items, options))
        except UserError as error:
            if len(items) == 1:
                return [error]
            return [rows for item in items for rows in self._encode([item], options)]

    def run(self, rows: Sequence[Row], options: Any) -> list[Any]:
        """The model's output for each row."""
        return self.run_with(type(self).forward, self.model, rows, self.per_token)

    def run_with(self, function: Callable[..., Any], model: Any, rows: Sequence[Row], per_token: bool) -> list[Any]:
        """The output of ``function(model, params, batch)`` for each row."""

        def forward(batch: Arrays) -> Any:
            return run_model(function, model, self.params, batch)

        side, pad_id = self.tokenizer.padding_side, self.tokenizer.pad_token_id or 0
        return run_rows(rows, forward, self.batch_size, self.longest, side, pad_id, per_token)

    def tokenize(self, texts: Sequence[Any], pairs: Sequence[str] | None = None, **options: Any) -> list[Row]:
        """One row for each text, or several; ``about`` is its ``Encoding`` and the number of the text."""
        try:
            # The library keeps truncation as a setting of the tokenizer, which calls of other threads would change.
            with self._lock:
                # Too long a text is said by the pipeline, with what to do.
                given = {"padding": False, "verbose": False, **options}
                batch = self.tokenizer(list(texts), None if pairs is None else list(pairs), **given)
        except Exception as error:  # the library raises plain Exception
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the tokenizer of {self.name} cannot encode the text: {reason[:200]}") from error
        types = ["token_type_ids"] if "token_type_ids" in batch and self.model.config.token_types > 1 else []
        names = ["input_ids", *types]
        owners = batch.get("overflow_to_sample_mapping", range(len(texts)))
        encodings = batch.encodings or [None] * len(texts)  # a tokenizer written in Python has none
        found = zip(*(batch[name] for name in names), encodings, owners, strict=True)
        rows = [
            Row(dict(zip(names, values, strict=True)), about=(encoding, int(owner)))
            for *values, encoding, owner in found
        ]
        self._check_ids(batch["input_ids"])
        return rows

    def _check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        """Refuses tokens that the model does not have: it would compute nan from them."""
        size = self.model.config.vocabulary
        for ids in rows:
            if ids and max(ids) >= size:
                token = self.tokenizer.convert_ids_to_tokens(max(ids))
                raise UserError(
                    f"{token!r} is token {max(ids)}, but the embedding of {self.name} has {size} rows: give the "
                    "tokenizer that the model was trained with"
                )

    def rows_of(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        truncation: bool,
        max_length: int | None,
        longest: int | None = None,
    ) -> list[Row]:
        """One row for each text, truncated to ``max_length``, or with a warning to ``longest`` (default: the model's).

        Without ``truncation`` a text that is too long is refused; one without tokens always is.
        """
        limit = min(max_length or longest or self.longest, self.longest)
        whole = self.tokenize(texts, pairs, truncation=False)
        for text, row in zip(texts, whole, strict=True):
            if not len(row):
                raise UserError(f"the text {text!r:.40} has no tokens, expected at least one")
        long = [number for number, row in enumerate(whole) if len(row) > limit]
        if not long:
            return whole
        length = max(len(whole[number]) for number in long)
        if not truncation:
            raise UserError(
                f"{self.task}: a text has {length} tokens, expected at most {limit}; shorten it or set truncation=True"
            )
        if max_length is None:
            self.say_once(
                "truncated",
                f"{self.task}: a text of {length} tokens was truncated to {limit} (of a pair, the longer text). This "
                "is said once; max_length= truncates without a warning, truncation=False refuses such texts.",
            )
        cut = self.tokenize(
            [texts[number] for number in long],
            None if pairs is None else [pairs[number] for number in long],
            truncation=True,
            max_length=limit,
        )
        for number, row in zip(long, cut, strict=True):
            whole[number] = row
        return whole

    def say_once(self, key: str, text: str) -> None:
        """Warns, the first time."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, PipelineWarning, stacklevel=2)
