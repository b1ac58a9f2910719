"""Examples of different lengths as rows: a batch is as long as its longest example, rounded up."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.data.token_rows import Batch

# Batches are padded to a multiple of this, so that few different shapes are compiled.
BUCKET = 64
Value = np.ndarray | int | float
Example = dict[str, Value]


class ExampleRows:
    """Rows made of examples, each a dict of arrays and numbers under the same names; the `Rows` protocol.

    An array `[tokens]` is padded on the right to the longest of its name in the batch, rounded up to a multiple of 64
    but at most `length`; an array `[choices, tokens]` likewise, and with further choices to the most that any example
    has. Numbers, and the arrays named in `stacked`, are stacked as they are. `attention_mask` is 1 at the tokens of
    `input_ids` and 0 at padding; an example with several choices brings its own.

    A row past the end is all padding: `fill` everywhere and an `attention_mask` of zeros.

    Attributes:
        records: The records of the rows in their order, for objectives that leave some out; else None.
        left_out: File and line of each record that has no place here, and why.

    Args:
        examples: All of a split.
        length: Longest array there is; the longest batch.
        fill: What padding holds under each name, for instance -100 for labels; every name must be there.
        lengths: Other lengths than `length` for some names.
        stacked: Names of arrays that have one shape in all examples and no tokens.
    """

    num_phases = 1

    def __init__(
        self,
        examples: Sequence[Example],
        length: int,
        fill: Mapping[str, int | float],
        lengths: Mapping[str, int] | None = None,
        stacked: Sequence[str] = (),
    ) -> None:
        self._examples = examples
        self._length = length
        self._lengths = lengths or {}
        self._fill = {"attention_mask": 0, **fill}
        self._stacked = frozenset(stacked)
        self.num_rows = len(examples)
        self.left_out: Sequence[tuple[str, str]] = []
        self.records: Sequence[Any] | None = None
        self.shortage = None if examples else "no example, expected at least one: check data.path"
        self._choices = max((np.shape(e["input_ids"])[0] for e in examples if np.ndim(e["input_ids"]) == 2), default=0)

    def set_column(self, name: str, values: np.ndarray) -> None:
        """Other values under a name that every example has, one an example."""
        assert len(values) == self.num_rows, f"{name}: {len(values)} values for {self.num_rows} examples"
        for example, value in zip(self._examples, values, strict=True):
            example[name] = value

    def take(self, indices: np.ndarray, phases: np.ndarray | None = None, keep: np.ndarray | None = None) -> Batch:
        """The examples `indices`, padded to one shape; the same in every epoch, whatever `phases` says."""
        examples = [self._examples[i] if i < self.num_rows else None for i in np.asarray(indices).tolist()]
        kept = examples if keep is None else [examples[i] for i in keep.tolist()]
        names = self._examples[0]
        batch = {name: self._column(name, examples, kept) for name in names}
        if "attention_mask" not in batch:
            sizes = np.array([0 if e is None else np.size(e["input_ids"]) for e in kept])
            columns = np.arange(batch["input_ids"].shape[1])
            batch["attention_mask"] = (columns < sizes[:, None]).astype(np.int32)
        return batch

    def _column(self, name: str, examples: Sequence[Example | None], kept: Sequence[Example | None]) -> np.ndarray:
        """The values of those kept, padded to the longest of all."""
        like = np.asarray(self._examples[0][name])
        dtype = np.float32 if like.dtype.kind == "f" else np.int32
        shape = like.shape
        if like.ndim and name not in self._stacked:
            longest = max((np.shape(example[name])[-1] for example in examples if example is not None), default=0)
            tokens = min(self._lengths.get(name, self._length), -(-max(longest, 1) // BUCKET) * BUCKET)
            assert longest <= tokens, f"{name}: an example of {longest} tokens is longer than {tokens}"
            shape = (tokens,) if like.ndim == 1 else (self._choices, tokens)
        padded = np.full((len(kept), *shape), self._fill[name], dtype)
        for row, example in enumerate(kept):
            if example is not None:
                value = example[name]
                corner: tuple[Any, ...] = (row, *(slice(size) for size in np.shape(value)))
                padded[corner] = value
        return padded
