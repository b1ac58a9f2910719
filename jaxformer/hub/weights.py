"""A checkpoint's tensors, read one at a time: safetensors, Flax msgpack, PyTorch pickles, whole or in shards."""

import importlib.util
import json
import math
import mmap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxformer.families.checkpoint import Weights
from jaxformer.hub.repository import Repository, bare_name
from jaxformer.schema import UserError

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
FLAX, FLAX_INDEX = "flax_model.msgpack", "flax_model.msgpack.index.json"
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Tensor:
    """The location of a tensor in a safetensors file: ``begin`` in bytes from the file's start."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int


class SafetensorsWeights:
    """Tensors of safetensors files, mapped into memory one at a time and let go again."""

    def __init__(self, paths: Collection[Path]) -> None:
        """Reads the headers.

        Raises:
            UserError: if a file is not what its header says, or two have a tensor of one name.
        """
        self.tensors: dict[str, Tensor] = {}
        for path in paths:
            found = read_header(path)
            twice = sorted(found.keys() & self.tensors.keys())
            if twice:
                raise UserError(f"{path} has {twice[0]}, which another file has too; expected each tensor once")
            self.tensors |= found

    def names(self) -> Collection[str]:
        """All names."""
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """A tensor; only what is used of it is read from the disk, and its memory is let go with it."""
        tensor = self.tensors[name]
        dtype = np.dtype(DTYPES[tensor.dtype])
        size = math.prod(tensor.shape) * dtype.itemsize
        if size == 0:
            return np.zeros(tensor.shape, dtype)
        start = tensor.begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with tensor.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), tensor.begin - start + size, access=mmap.ACCESS_READ, offset=start)
        return np.frombuffer(mapped, dtype, math.prod(tensor.shape), tensor.begin - start).reshape(tensor.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """Names, types and places of the tensors of a safetensors file.

    The library checks the file against its header (sizes, order, overlaps); places are then taken from the header.

    Raises:
        UserError: if the file is broken or has a type that is not known here.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no whole safetensors file: {error}; download or write it again") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"{name} in {path} has the type {entry['dtype']}, expected one of {', '.join(DTYPES)}; "
                "quantised checkpoints are not read"
            )
        begin = 8 + length + entry["data_offsets"][0]
        tensors[name] = Tensor(path, entry["dtype"], tuple(entry["shape"]), begin)
    return tensors


class FlaxWeights:
    """Tensors of a Flax checkpoint under their PyTorch names.

    transformers' Flax models have the module names of the PyTorch ones; a ``kernel`` is the transposed ``weight``, an
    ``embedding`` and a norm's ``scale`` are a ``weight`` as they are. GPT-2's matrices, ``[in, out]`` in PyTorch, are
    ``[out, in]`` there, so that the rule has no exception.
    """

    def __init__(self, paths: Collection[Path]) -> None:
        """Reads the files, which hold plain arrays; nothing in them is executed.

        Raises:
            UserError: if a file is no Flax checkpoint.
        """
        from flax.serialization import msgpack_restore
        from flax.traverse_util import flatten_dict

        self.arrays: dict[str, tuple[Any, bool]] = {}
        for path in paths:
            try:
                tree = msgpack_restore(path.read_bytes())
                flat = flatten_dict(tree)
                entries = [(tuple(map(str, key)), value) for key, value in flat.items()]
            except Exception as error:  # msgpack and Flax raise many kinds
                raise UserError(f"{path} is no whole Flax checkpoint: {error}; download it again") from error
            for key, value in entries:
                if not isinstance(value, np.ndarray) or value.dtype == object:
                    raise UserError(f"{path} holds no array at {'/'.join(key)}, expected arrays only")
                # A checkpoint of a training run has its parameters under a name of their own.
                key = key[1:] if key[0] == "params" else key
                leaf = {"kernel": "weight", "embedding": "weight", "scale": "weight"}.get(key[-1], key[-1])
                self.arrays[".".join((*key[:-1], leaf))] = (value, key[-1] == "kernel" and value.ndim == 2)

    def names(self) -> Collection[str]:
        """All names."""
        return self.arrays.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        array, transposed = self.arrays[name]
        return array.shape[::-1] if transposed else array.shape

    def read(self, name: str) -> np.ndarray:
        """A tensor."""
        array, transposed = self.arrays[name]
        return array.T if transposed else array


class TorchWeights:
    """Tensors of PyTorch's pickles, through PyTorch's reader of weights alone, which executes nothing."""

    def __init__(self, paths: Collection[Path]) -> None:
        """Opens the files.

        Raises:
            UserError: if PyTorch is not installed or too old to be trusted with it, or a file holds more than weights.
        """
        if importlib.util.find_spec("torch") is None:
            raise UserError(
                f"{', '.join(path.name for path in paths)} is a pickle, which only PyTorch reads, expected "
                "model.safetensors; run once, where torch and transformers are installed: "
                'AutoModel.from_pretrained(NAME).save_pretrained(FOLDER), or pip install "torch>=2.6" here'
            )
        # By name: the library itself has nothing of PyTorch.
        torch = importlib.import_module("torch")
        version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
        if version < (2, 6):  # before, weights_only could be made to execute code (CVE-2025-32434)
            raise UserError(f"torch {torch.__version__} is installed, expected 2.6 or later to read a pickle safely")
        self.torch, self.tensors = torch, dict[str, Any]()
        for path in paths:
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
            except Exception as error:  # unpickling raises many kinds
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise UserError(
                    f"{path} holds more than weights, or is broken; nothing was executed: {reason}"
                ) from error
            if not isinstance(loaded, Mapping) or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
                raise UserError(f"{path} holds no state dict, expected tensors by name")
            self.tensors |= loaded

    def names(self) -> Collection[str]:
        """All names."""
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> np.ndarray:
        """A tensor."""
        tensor = self.tensors[name].detach()
        if tensor.dtype == self.torch.bfloat16:  # NumPy has no such type: its bits go over
            return tensor.view(self.torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def open_weights(repository: Repository) -> Weights:
    """The tensors of a model: safetensors if there are, else Flax msgpack, else a pickle of PyTorch.

    Raises:
        UserError: if there are none, or they cannot be read.
    """
    formats: tuple[tuple[str, str, Callable[[Collection[Path]], Weights]], ...] = (
        (SAFETENSORS, SAFETENSORS_INDEX, SafetensorsWeights),
        (FLAX, FLAX_INDEX, FlaxWeights),
        (TORCH, TORCH_INDEX, TorchWeights),
    )
    for file, index, read in formats:
        path = repository.find(file)
        if path is not None:
            return read([path])
        listed = repository.find_json(index)
        if listed is not None:
            return read([repository.get(shard) for shard in _shards(listed, index)])
    raise UserError(
        f"{repository.name} has no weights, expected {SAFETENSORS}, {FLAX} or {TORCH}, or one of their indices"
    )


def _shards(index: Mapping[str, Any], name: str) -> list[str]:
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise UserError(f"{name} has no weight_map of tensor names to files, expected one; download it again")
    return sorted({bare_name(file, name) for file in files.values()})
