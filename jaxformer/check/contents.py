"""What a model's files hold: names, shapes, types and statistics of arrays, and how two of them differ.

Arrays are read one at a time, mapped into memory where the format allows it; nothing is unpickled or executed.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp

from jaxformer.hub.repository import Repository
from jaxformer.hub.weights import (
    FLAX,
    FLAX_INDEX,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    SafetensorsWeights,
    open_weights,
)
from jaxformer.lora import peft
from jaxformer.schema import UserError, local_path
from jaxformer.training.checkpoint import find_damage
from jaxformer.training.config import read_yaml
from jaxformer.training.pretrained import earlier_params, open_run
from jaxformer.training.sources import CHECKPOINTS, CONFIG_FILE

PARAMS, SLICE = "params/", 1 << 22  # values of an array that are looked at together
# A layer's number in a name of theirs; ours are stacked on the first axis.
LAYER, STACKED = re.compile(r"(?<=[./])(\d+)(?=[./])"), re.compile(r"(^|/)layers/")


class Arrays(Protocol):
    """Arrays by name."""

    def names(self) -> Collection[str]:
        """All names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""

    def read(self, name: str) -> np.ndarray:
        """An array."""


class CheckpointArrays:
    """The arrays of an Orbax checkpoint, each read by itself."""

    def __init__(self, folder: Path) -> None:
        """Reads the names; a ``UserError`` if the checkpoint is damaged."""
        damage = find_damage(folder)
        try:
            metadata = ocp.metadata(folder.absolute()).metadata
            damage = damage or (f"{folder} has no readable metadata" if metadata is None else None)
        except Exception as error:  # what Orbax raises depends on the file
            damage = damage or f"{folder} cannot be read: {' '.join(str(error).split())[:200]}"
        if damage is not None:
            raise UserError(f"{damage}; expected a whole checkpoint")
        self.folder = folder.absolute()
        self._leaves, self._tree = jax.tree_util.tree_flatten_with_path(metadata)
        names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in self._leaves)
        self._places = {name.removeprefix(PARAMS): number for number, name in enumerate(names)}

    def names(self) -> Collection[str]:
        """All names, those of parameters without ``params/``."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""
        return tuple(self._leaves[self._places[name]][1].shape)

    def read(self, name: str) -> np.ndarray:
        """An array; the others stay on the disk."""
        place = self._places[name]
        wanted = [ocp.PLACEHOLDER] * len(self._leaves)
        wanted[place] = np.empty(self.shape(name), self._leaves[place][1].dtype)
        loaded = ocp.load(self.folder, jax.tree_util.tree_unflatten(self._tree, wanted))
        return np.asarray(jax.tree_util.tree_leaves(loaded, is_leaf=lambda leaf: leaf is ocp.PLACEHOLDER)[place])


@dataclass(frozen=True)
class NamedArrays:
    """Arrays in memory."""

    arrays: Mapping[str, np.ndarray]

    def names(self) -> Collection[str]:
        """All names."""
        return self.arrays.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""
        return self.arrays[name].shape

    def read(self, name: str) -> np.ndarray:
        """An array."""
        return np.asarray(self.arrays[name])


@dataclass(frozen=True)
class Contents:
    """The arrays and settings in a model's files.

    Attributes:
        source: as the user named it.
        kind: of the files, in words.
        arrays: all arrays.
        config: settings by name, nested ones joined by points.
        step: of a checkpoint.
        run: folder of the run that a checkpoint belongs to.
    """

    source: str
    kind: str
    arrays: Arrays = field(repr=False)
    config: dict[str, Any]
    step: int | None = None
    run: Path | None = None

    @cached_property
    def parameters(self) -> list[str]:
        """Names of the parameters, without the optimizer's state and counters."""
        names = self.arrays.names()
        return [*names] if self.run is None else [n for n in names if n.split("/")[0] not in STATE]

    @cached_property
    def state(self) -> list[str]:
        """Names of the other arrays of a checkpoint."""
        known = {*self.parameters}
        return [name for name in self.arrays.names() if name not in known]


STATE = ("opt_state", "ema", "step", "skipped", "skipped_in_a_row", "carried")


def open_contents(source: str) -> Contents:
    """Opens a run's folder, a checkpoint, a model or adapter in the Hugging Face format, or a safetensors file.

    Raises:
        UserError: it is none of these, or only a pickle.
    """
    path = local_path(source)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{source} is a file, expected model files in a folder or a .safetensors file")
        return Contents(source, "safetensors file", SafetensorsWeights([path]), {})
    if path.is_dir() and (path / CHECKPOINTS).is_dir():
        steps = sorted((int(p.name) for p in (path / CHECKPOINTS).iterdir() if p.name.isdigit()), reverse=True)
        whole = next((step for step in steps if find_damage(path / CHECKPOINTS / str(step)) is None), None)
        if whole is None:
            raise UserError(f"{source} has no whole checkpoint, expected one in {path / CHECKPOINTS}")
        return _checkpoint(source, path / CHECKPOINTS / str(whole), path)
    if path.is_dir() and path.name.isdigit() and path.parent.name == CHECKPOINTS:
        return _checkpoint(source, path, path.parent.parent)
    repository = Repository(source)
    if (adapter := repository.find_json(peft.CONFIG_FILE)) is not None:
        weights = SafetensorsWeights([repository.get(peft.WEIGHTS_FILE)])
        return Contents(source, "adapter of peft", weights, _flat(adapter))
    config = repository.find_json("config.json")
    if all(repository.find(name) is None for name in (SAFETENSORS, SAFETENSORS_INDEX, FLAX, FLAX_INDEX)):
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
        if not files:
            raise UserError(f"{source} has no {SAFETENSORS} or {FLAX}, expected one; a pickle is not opened here")
        return Contents(source, f"folder of {len(files)} safetensors files", SafetensorsWeights(files), {})
    return Contents(source, "model in the Hugging Face format", open_weights(repository), _flat(config or {}))


def _checkpoint(source: str, folder: Path, run: Path) -> Contents:
    config = _flat(read_yaml(run / CONFIG_FILE)) if (run / CONFIG_FILE).exists() else {}
    step = int(folder.name)
    return Contents(source, f"checkpoint of step {step:,}", CheckpointArrays(folder), config, step, run)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flatten_dict(dict(config), sep=".", keep_empty_nodes=False))


class Statistics(NamedTuple):
    """Facts of an array; mean, deviation and extremes are those of the finite values.

    Attributes:
        zeros: share of values that are 0.
        bad: number of values that are inf or nan.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    bytes: int
    mean: float
    std: float
    min: float
    max: float
    zeros: float
    bad: int


def statistics(name: str, array: np.ndarray) -> Statistics:
    """The facts of an array, in float64 over slices of it."""
    count, zeros, total, squares, low, high = 0, 0, 0.0, 0.0, math.inf, -math.inf
    shift = None
    for part in _slices(array):
        values = part.astype(np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        shift = float(values[0]) if shift is None else shift  # else squares of a constant would leave rounding
        count, zeros = count + len(values), zeros + int((values == 0).sum())
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        total, squares = total + float((values - shift).sum()), squares + float(((values - shift) ** 2).sum())
    mean = total / count if count else math.nan
    deviation = math.sqrt(max(squares / count - mean**2, 0.0)) if count else math.nan
    least, most = (low, high) if count else (math.nan, math.nan)
    share, bad = zeros / max(array.size, 1), array.size - count
    shape, dtype = tuple(array.shape), array.dtype.name
    return Statistics(
        name, shape, dtype, array.size, array.nbytes, mean + (shift or 0.0), deviation, least, most, share, bad
    )


def _slices(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = array.reshape(-1)
    for start in range(0, len(flat), SLICE):
        yield flat[start : start + SLICE]


class Change(NamedTuple):
    """How an array differs: the largest difference, the norm of the difference over that of the other array."""

    name: str
    largest: float
    relative: float
    differ: int


@dataclass(frozen=True)
class Comparison:
    """How the contents of two places differ.

    Attributes:
        here: names that only the first has.
        there: names that only the second has.
        types: names with other shapes or types, each with both in words.
        changes: arrays with other values, the largest relative difference first.
        config: settings that differ, each with both values.
        same: number of arrays that are equal, bit for bit.
    """

    here: list[str]
    there: list[str]
    types: list[tuple[str, str, str]]
    changes: list[Change]
    config: dict[str, tuple[Any, Any]]
    same: int

    @property
    def equal(self) -> bool:
        """All arrays are equal, bit for bit."""
        return not (self.here or self.there or self.types or self.changes)


def aligned(first: Contents, second: Contents) -> tuple[Contents, Contents]:
    """Two places; of a run and a model in the Hugging Face format, the latter under the names of the run."""
    return _under_our_names(first, second), _under_our_names(second, first)


def compare(first: Contents, second: Contents) -> Comparison:
    """Compares two places, of which ``aligned`` has made the names the same."""
    with_state = bool(first.state and second.state)
    mine, theirs = ({*(c.arrays.names() if with_state else c.parameters)} for c in (first, second))
    types, changes, same = [], [], 0
    for name in sorted(mine & theirs):
        a, b = first.arrays.read(name), second.arrays.read(name)
        if a.shape != b.shape:
            types.append((name, f"{a.dtype.name}{list(a.shape)}", f"{b.dtype.name}{list(b.shape)}"))
            continue
        change = _change(name, a, b)
        if a.dtype != b.dtype:
            types.append((name, a.dtype.name, b.dtype.name))
        if change.differ:
            changes.append(change)
        elif a.dtype == b.dtype:
            same += 1
    # Parameters first; the state of an optimizer follows.
    changes.sort(key=lambda change: (change.name.split("/")[0] in STATE, -change.relative))
    # Settings of a run and of a config.json have other names.
    alike = (first.run is None) == (second.run is None)
    keys = sorted(first.config.keys() | second.config.keys()) if alike else []
    pairs = {key: (first.config.get(key), second.config.get(key)) for key in keys}
    config = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    return Comparison(sorted(mine - theirs), sorted(theirs - mine), types, changes, config, same)


def _change(name: str, a: np.ndarray, b: np.ndarray) -> Change:
    """The differences of two arrays of one shape; a nan on one side alone is an infinite one."""
    largest, squares, norm, count = 0.0, 0.0, 0.0, 0
    for x, y in zip(_slices(a), _slices(b), strict=True):
        if x.dtype == y.dtype and x.tobytes() == y.tobytes():
            norm += float(np.square(y.astype(np.float64)).sum())
            continue
        one, other = x.astype(np.float64), y.astype(np.float64)
        # Bits tell 0 from -0, and values do not tell nan from nan.
        bits = np.signbit(one) == np.signbit(other)
        equal = ((one == other) & bits) | (np.isnan(one) & np.isnan(other))
        with np.errstate(invalid="ignore"):
            apart = np.where(equal, 0.0, np.abs(one - other))
        apart = np.where(np.isnan(apart), np.inf, apart)
        largest, count = max(largest, float(apart.max(initial=0.0))), count + int((~equal).sum())
        squares, norm = squares + float(np.square(apart).sum()), norm + float(np.square(other).sum())
    relative = math.sqrt(squares / norm) if norm > 0 else math.inf if squares else 0.0
    return Change(name, largest, relative, count)


def _under_our_names(contents: Contents, other: Contents) -> Contents:
    """A model in the Hugging Face format beside a run, with the names and the layout of the run's parameters."""
    if contents.run is not None or other.run is None or "model_type" not in contents.config:
        return contents
    saved = open_run(other.run)
    params, left = earlier_params(contents.source, saved.model, saved.task.labels)
    arrays = NamedArrays({**params, **{name: np.zeros(0) for name in left}})
    return Contents(contents.source, contents.kind, arrays, contents.config)


class Part(NamedTuple):
    """The values of one layer of a kind of parameter; layer None for one outside of the layers."""

    kind: str
    layer: int | None
    values: np.ndarray


def parts(name: str, array: np.ndarray) -> list[Part]:
    """An array by layers.

    >>> [(part.kind, part.layer) for part in parts("model.layers.3.mlp.weight", np.zeros(2))]
    [('model.layers.*.mlp.weight', 3)]
    """
    if STACKED.search(name) and array.ndim and not LAYER.search(name):
        return [Part(name, layer, values) for layer, values in enumerate(array)]
    found = LAYER.search(name)
    return [Part(LAYER.sub("*", name, 1), int(found[0]) if found else None, array)]
