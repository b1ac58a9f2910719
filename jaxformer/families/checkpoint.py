"""Conversion of parameters from and to a Hugging Face state dict, by a family's table of names.

One tensor at a time is in memory beside the tree. What does not fit is a ``UserError`` that names the tensor.
"""

import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxformer.families.format import Format, Name
from jaxformer.models.config import TransformerConfig
from jaxformer.models.kernel_layout import kernel_axes
from jaxformer.schema import UserError

ALIGNMENT = 64  # bytes, of XLA's buffers on a CPU


class Weights(Protocol):
    """A checkpoint's tensors by name, read one at a time."""

    def names(self) -> Collection[str]:
        """All names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """A tensor."""
        ...


@dataclass(frozen=True)
class ArrayWeights:
    """Tensors that are in memory already."""

    arrays: Mapping[str, np.ndarray]

    def names(self) -> Collection[str]:
        """All names."""
        return self.arrays.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return np.shape(self.arrays[name])

    def read(self, name: str) -> np.ndarray:
        """A tensor."""
        return np.asarray(self.arrays[name])


@dataclass(frozen=True)
class UnfusedExperts:
    """Tensors with one matrix for each expert, also where those of a layer are one tensor, as in transformers 5.

    ``X.experts.gate_up_proj [E, 2 F, D]`` and ``X.experts.down_proj [E, D, F]`` are read as
    ``X.experts.0.gate_proj.weight [F, D]`` and so on.
    """

    weights: Weights

    @functools.cached_property
    def _fused(self) -> dict[str, tuple[str, int, slice]]:
        """Tensor, expert and rows of each name that is a part of one."""
        found: dict[str, tuple[str, int, slice]] = {}
        for name in self.weights.names():
            folder, _, last = name.rpartition(".")
            if folder.endswith(".experts") and last in ("gate_up_proj", "down_proj"):
                count, rows, _ = self.weights.shape(name)
                parts = {"down_proj": slice(rows)}
                if last == "gate_up_proj":
                    parts = {"gate_proj": slice(rows // 2), "up_proj": slice(rows // 2, rows)}
                for part, place in parts.items():
                    found |= {f"{folder}.{e}.{part}.weight": (name, e, place) for e in range(count)}
        return found

    def names(self) -> Collection[str]:
        """All names."""
        return (set(self.weights.names()) - {name for name, _, _ in self._fused.values()}) | self._fused.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        if name not in self._fused:
            return self.weights.shape(name)
        whole, _, rows = self._fused[name]
        _, size, width = self.weights.shape(whole)
        return (len(range(*rows.indices(size))), width)

    def read(self, name: str) -> np.ndarray:
        """A tensor."""
        if name not in self._fused:
            return self.weights.read(name)
        whole, expert, rows = self._fused[name]
        return self.weights.read(whole)[expert, rows]


# The number of a layer, None outside of the layers, and that of an expert, None where there are none.
Place = tuple[int | None, int | None]


@dataclass
class Loaded:
    """Result of reading a checkpoint.

    Attributes:
        params: our parameters by path, as far as the checkpoint has them.
        missing: paths of the others.
        left: names in the checkpoint that are no parameter of ours.
    """

    params: dict[str, jax.Array] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def matrix_shape(path: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of one layer's parameter with its heads merged: kernels ``[in, out]``, biases ``[out]``, others as is."""
    if path.endswith("/kernel"):
        inputs = kernel_axes(path).inputs
        return (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
    return (math.prod(shape),) if path.endswith("/bias") else tuple(shape)


def their_shape(name: Name, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of their tensor for one layer of ours with this shape."""
    *rest, outputs = matrix_shape(name.ours, shape)
    theirs = (*rest, outputs * sum(name.units) // name.units[name.part[0]])
    theirs = theirs[::-1] if name.transposed else theirs
    theirs = (theirs[0], 1, *theirs[1:]) if name.middle_one else theirs
    return (1, *theirs) if name.leading_one else theirs


def _is_stacked(name: Name) -> bool:
    return "{}" in name.theirs


class _Finder:
    """Finds a table's names in a checkpoint, in old spellings too, and with or without the backbone's prefix."""

    def __init__(self, available: Collection[str], format: Format, kind: str) -> None:
        self.available, self.used = available, set[str]()
        self.own = format.prefix_of(kind)
        prefixes = [head.prefix for head in format.heads.values() if head.prefix is not None]
        self.prefixes = dict.fromkeys(["", format.prefix, *prefixes])

    def find(self, name: Name, layer: int | None, expert: int | None = None) -> str | None:
        """Name in the checkpoint of one layer, or of its expert, of a row; None if there is none."""
        for theirs in (name.theirs, name.otherwise):
            for spelling in [] if theirs is None else self._spellings(theirs.format(layer, expert=expert)):
                if spelling in self.available:
                    self.used.add(spelling)
                    return spelling
        return None

    def _spellings(self, key: str) -> Iterator[str]:
        bare = key.removeprefix(self.own)
        for spelling in dict.fromkeys((key, *(prefix + bare for prefix in self.prefixes))):
            yield spelling
            # TensorFlow's names of a norm's parameters, in the oldest files.
            if "LayerNorm." in spelling:
                old = spelling.replace("LayerNorm.weight", "LayerNorm.gamma")
                yield old.replace("LayerNorm.bias", "LayerNorm.beta")


def has_own_head(format: Format, config: TransformerConfig, kind: str, weights: Weights) -> bool:
    """True if a checkpoint has an output layer with other values than the token embedding."""
    found = {name.ours: name._replace(otherwise=None) for name in format.names(config, kind)}
    finder = _Finder(weights.names(), format, kind)
    head = found.get("lm_head/kernel") or found.get("decoder/lm_head/kernel")
    tables = ("embeddings/token/embedding", "shared/embedding", "decoder/embeddings/token/embedding")
    table = next((found[name] for name in tables if name in found), None)
    keys = [None if name is None else finder.find(name, None) for name in (head, table)]
    if keys[0] is None or keys[1] is None:
        return False
    return not np.array_equal(weights.read(keys[0]), weights.read(keys[1]))


def _layers_of(name: Name, layers: int) -> range:
    return range(int(name.not_first), layers)


def _places_of(name: Name, shape: Sequence[int]) -> list[Place]:
    """The places of a parameter of ours with this shape that are a tensor of theirs each."""
    if not _is_stacked(name):
        return [(None, None)]
    experts = range(shape[1]) if name.has_experts else [None]
    return [(layer, expert) for layer in _layers_of(name, shape[0]) for expert in experts]


def take_part(array: np.ndarray, name: Name) -> np.ndarray:
    """The part of their outputs, the last axis, that is this parameter of ours."""
    index, units = name.part[0], name.units
    grouped = array.reshape(*array.shape[:-1], name.groups, sum(units), -1)
    start = sum(units[:index])
    return grouped[..., start : start + units[index], :].reshape(*array.shape[:-1], -1)


def join_parts(arrays: Sequence[np.ndarray], name: Name) -> np.ndarray:
    """Their outputs from all parts, in the order of their numbers; ``name`` is that of any part."""
    grouped = [array.reshape(*array.shape[:-1], name.groups, -1) for array in arrays]
    return np.concatenate(grouped, axis=-1).reshape(*arrays[0].shape[:-1], -1)


def aligned_empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array that JAX uses on a CPU without copying: it copies arrays that do not begin at a multiple of 64 bytes.

    With copies the largest parameters would be in memory twice, until Python's next garbage collection.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


class _Reader:
    """Reads one parameter of ours, or the part of a device."""

    def __init__(self, name: Name, keys: Mapping[Place, str], weights: Weights, shape: tuple[int, ...], dtype: Any):
        self.name, self.keys, self.weights, self.shape, self.dtype = name, keys, weights, shape, dtype

    def __call__(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The values of ours at ``index``."""
        index = index or (slice(None),) * len(self.shape)
        sizes = [len(range(*part.indices(size))) for part, size in zip(index, self.shape, strict=True)]
        result = aligned_empty(sizes, self.dtype)
        if not _is_stacked(self.name):
            result[...] = self._matrix((None, None), self.shape)[index]
            return result
        for number, layer in enumerate(range(*index[0].indices(self.shape[0]))):
            if self.name.has_experts:
                for column, expert in enumerate(range(*index[1].indices(self.shape[1]))):
                    result[number, column] = self._matrix((layer, expert), self.shape[2:])[index[2:]]
                continue
            # A layer that their tensor does not have keeps ones.
            place = (layer, None)
            result[number] = self._matrix(place, self.shape[1:])[index[1:]] if place in self.keys else 1
        return result

    def _matrix(self, place: Place, shape: tuple[int, ...]) -> np.ndarray:
        name, array = self.name, self.weights.read(self.keys[place])
        array = array[0] if name.leading_one else array
        array = array[:, 0] if name.middle_one else array
        return take_part(array.T if name.transposed else array, name).reshape(shape)


def _keys_of(name: Name, shape: tuple[int, ...], finder: _Finder, weights: Weights) -> dict[Place, str] | None:
    """The checkpoint's names of one parameter by layer and expert, with checked shapes; None if there are none."""
    stacked = _is_stacked(name)
    found = {place: finder.find(name, *place) for place in _places_of(name, shape)}
    present = {place: key for place, key in found.items() if key is not None}
    if found and not present:
        return None
    if len(present) < len(found):
        lacks = next(name.theirs.format(layer, expert=e) for (layer, e), key in found.items() if key is None)
        raise UserError(
            f"the checkpoint has no {lacks}, expected it for this config; check that the two belong together"
        )
    expected = their_shape(name, shape[stacked + name.has_experts :])
    for key in present.values():
        if tuple(weights.shape(key)) != expected:
            raise UserError(
                f"{key} of the checkpoint is {list(weights.shape(key))}, expected {list(expected)} for this config; "
                "check that the two belong together"
            )
    if name.has_experts and (more := finder.find(name, 0, shape[1])) is not None:
        raise UserError(
            f"the checkpoint has {more}, expected {shape[1]} experts by its config; check that the two belong together"
        )
    first_expert = 0 if name.has_experts else None
    if stacked and finder.find(name, shape[0], first_expert) is not None:
        raise UserError(
            f"the checkpoint has {name.theirs.format(shape[0], expert=0)}, expected {shape[0]} layers by its config; "
            "check that the two belong together"
        )
    return present


def read_params(
    format: Format,
    config: TransformerConfig,
    kind: str,
    weights: Weights,
    shapes: Any,
    *,
    shardings: Any = None,
    dtype: Any = np.float32,
    may_differ: bool = False,
) -> Loaded:
    """Our parameters from a checkpoint, tensor by tensor.

    All shapes are compared before anything is read.

    Args:
        format: of the family.
        config: of the model.
        kind: of the model, such as ``masked_lm``.
        weights: the checkpoint.
        shapes: our parameter tree, with leaves that have a ``shape`` (``jax.eval_shape`` of ``init``).
        shardings: a tree of the same structure; each process reads only the parts of its devices. Default: all on the
            default device.
        dtype: of the parameters.
        may_differ: treat a head's parameter of another shape as missing.
    """
    ours = flatten_dict(dict(shapes), sep="/")
    weights = weights if config.num_experts is None else UnfusedExperts(weights)
    places = None if shardings is None else flatten_dict(dict(shardings), sep="/")
    finder, loaded = _Finder(weights.names(), format, kind), Loaded()
    rows = [name for name in format.names(config, kind) if name.ours in ours]
    unnamed = ours.keys() - {name.ours for name in rows}
    assert not unnamed, f"the table of {format.model_type} lacks {sorted(unnamed)}"
    body = {name.ours for name in format.body_names(config)}
    readers = {}
    for name in rows:
        try:
            keys = _keys_of(name, tuple(ours[name.ours].shape), finder, weights)
        except UserError:
            if not may_differ or name.ours in body:
                raise
            keys = None
        if keys is None:
            loaded.missing.append(name.ours)
        else:
            readers[name.ours] = _Reader(name, keys, weights, tuple(ours[name.ours].shape), dtype)
    _check_body(format, rows, [path for path in loaded.missing if path in body], readers, weights)
    for path, reader in readers.items():
        if places is None:
            loaded.params[path] = jax.device_put(reader())
        else:
            loaded.params[path] = jax.make_array_from_callback(reader.shape, places[path], reader)
    _check_zeros(format, weights)
    _check_copies(format, kind, weights)
    # A tied output layer may be in the file twice.
    known = re.compile(rf"{format.ignored}|^(lm_head|embed_out)\.weight$" if config.tie_embeddings else format.ignored)
    loaded.left = sorted(key for key in set(weights.names()) - finder.used if not known.search(key))
    return loaded


def _check_zeros(format: Format, weights: Weights) -> None:
    for key in weights.names():
        if key in format.zeros and np.any(weights.read(key)):
            raise UserError(
                f"{key} of the checkpoint is not zero, expected zeros for model_type {format.model_type!r}: "
                "this library's model has no such parameter; set model.logits_bias"
            )


def _check_copies(format: Format, kind: str, weights: Weights) -> None:
    finder = _Finder(weights.names(), format, kind)
    keys = [finder.find(Name("", format.prefix_of(kind) + name), None) for name in ("shared.weight", *format.copies)]
    present = [key for key in keys if key is not None]
    for key in present[1:]:
        if not np.array_equal(weights.read(key), weights.read(present[0])):
            raise UserError(
                f"{key} of the checkpoint differs from {present[0]}, expected the same values: this model has one "
                "embedding for both sides"
            )


def _check_body(
    format: Format, rows: Sequence[Name], missing: Sequence[str], readers: Mapping[str, Any], weights: Weights
) -> None:
    if not missing:
        return
    theirs = {name.ours: name.theirs for name in rows}
    first = theirs[missing[0]].format(0, expert=0)
    if not any(path in readers for path in theirs):
        some = ", ".join(sorted(weights.names())[:3])
        raise UserError(
            f"the checkpoint has no {first}, expected the names of {format.model_type}; it has {some} ...; "
            "check model_type in config.json"
        )
    raise UserError(f"the checkpoint has no {first}, expected it for this config; check that the two belong together")


def params_to_hf(format: Format, config: TransformerConfig, kind: str, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The state dict of our parameters, one tensor after the other; a tied head once.

    Tensors that follow from the configuration (sinusoids) and copies come first; parameters without a row are left out.
    """
    flat = flatten_dict(dict(params), sep="/")
    together: dict[str, list[Name]] = {}
    for name in format.names(config, kind):
        if name.ours in flat:
            together.setdefault(name.theirs, []).append(name)
    for key, array in format.derived(config).items():
        yield format.prefix_of(kind) + key, np.asarray(array)
    if format.writes_copies and not config.tie_embeddings:
        for key in format.copies:
            yield format.prefix_of(kind) + key, np.asarray(flat["shared/embedding"])
    for theirs, names in together.items():
        for place in _places_of(names[0], np.shape(flat[names[0].ours])):
            index = tuple(number for number in place if number is not None)
            arrays = [np.asarray(flat[name.ours][index]) for name in names]
            yield theirs.format(place[0], expert=place[1]), _joined(names, arrays)


def _joined(names: Sequence[Name], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Their tensor from all its parts."""
    first = names[0]
    assert len(names) == first.part[1], f"{first.theirs} has {len(names)} of {first.part[1]} parts"
    matrices = {n.part[0]: a.reshape(matrix_shape(n.ours, a.shape)) for n, a in zip(names, arrays, strict=True)}
    joined = join_parts([matrices[index] for index in sorted(matrices)], first)
    joined = joined.T if first.transposed else joined
    joined = joined[:, None] if first.middle_one else joined
    return np.ascontiguousarray(joined[None] if first.leading_one else joined)
