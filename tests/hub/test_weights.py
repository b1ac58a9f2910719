"""Files of weights: every format, and broken or hostile ones."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

import jaxformer.hub as hub
from jaxformer.hub.repository import Repository
from jaxformer.hub.weights import FlaxWeights, SafetensorsWeights, open_weights
from jaxformer.schema import UserError
from tests.hub import tiny
from tests.hub.test_pretrained import same


@pytest.fixture
def folder(tmp_path):
    return tiny.save(tmp_path / "model", "bert", "masked_lm")


def opens(folder):
    return hub.AutoModelForMaskedLM.from_pretrained(folder)[1]


def test_every_type_of_safetensors(tmp_path):
    import ml_dtypes
    from safetensors.numpy import save_file

    tensors = {
        str(dtype): (np.arange(6).reshape(2, 3) % 2).astype(dtype)
        for dtype in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    }
    tensors |= {"bf16": np.array([1.5, -2.0], ml_dtypes.bfloat16), "scalar": np.array(3.0), "empty": np.zeros((0, 4))}
    save_file(tensors, tmp_path / "a.safetensors")
    weights = SafetensorsWeights([tmp_path / "a.safetensors"])
    assert set(weights.names()) == set(tensors)
    for name, array in tensors.items():
        assert weights.shape(name) == array.shape
        read = weights.read(name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_shards_and_their_index(tmp_path):
    model, params = tiny.make("bert", "masked_lm")
    hub.save_pretrained(tmp_path, model, params, shard_bytes=2000)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    same(params, opens(tmp_path))
    hub.save_pretrained(tmp_path, model, params)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"], "old shards would be read"


def as_flax(folder):
    """The tree that transformers' Flax models had, written as they wrote it."""
    from flax.traverse_util import unflatten_dict
    from safetensors.numpy import load_file

    flat = {}
    for name, array in load_file(folder / "model.safetensors").items():
        *modules, leaf = name.split(".")
        if leaf == "weight":
            norm = "LayerNorm" in modules[-1]
            leaf = "scale" if norm else "embedding" if "embeddings" in modules[-1] else "kernel"
            array = array.T if leaf == "kernel" else array
        flat[(*modules, leaf)] = np.ascontiguousarray(array)
    return unflatten_dict(flat)


def test_flax_checkpoints(folder):
    from flax.serialization import msgpack_serialize

    params = opens(folder)
    tree = as_flax(folder)
    (folder / "model.safetensors").unlink()
    (folder / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    same(params, opens(folder))
    (folder / "flax_model.msgpack").unlink()
    # In shards: the parts of the tree at its top.
    index = {"weight_map": {}}
    for number, (name, part) in enumerate(tree.items()):
        file = f"flax_model-{number}.msgpack"
        (folder / file).write_bytes(msgpack_serialize({name: part}))
        index["weight_map"][name] = file
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps(index))
    same(params, opens(folder))


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01", b"\xc1" * 100, b"\x81\xa1a\xa1b", b"\x93\x01\x02\x03", b"\x81\xa1a\x01"]
)
def test_a_broken_flax_checkpoint(tmp_path, content):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"flax_model\.msgpack (is no whole Flax checkpoint|holds no array)"):
        FlaxWeights([path])


class Bomb:
    """What unpickling would execute."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_never_executed(folder, tmp_path):
    mark = tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"bert.pooler": Bomb(mark)}))
    # Without PyTorch it is said how to convert, with it that the file holds more than weights.
    with pytest.raises(
        UserError, match=r"is a pickle, which only PyTorch reads.*save_pretrained|holds more than weights"
    ):
        opens(folder)
    assert not mark.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert mark.exists(), "the file is as dangerous as it is meant to be"


def header(entries, data=b"", length=None):
    text = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(text) if length is None else length) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        header({"a": F32}, b"\x00" * 8)[:-1],  # cut off
        header({"a": F32}, b"\x00" * 8, length=2**63),  # a header of 8 exabytes
        header({"a": F32}, b"\x00" * 8, length=10_000),
        header({"a": {**F32, "shape": [2**40]}}, b"\x00" * 8),
        header({"a": {**F32, "shape": [-2]}}, b"\x00" * 8),
        header({"a": {**F32, "data_offsets": [0, 2**50]}}, b"\x00" * 8),
        header({"a": {**F32, "data_offsets": [8, 0]}}, b"\x00" * 8),
        header({"a": F32, "b": F32}, b"\x00" * 8),  # both at one place
        header({"a": F32}, b"\x00" * 80),  # more than is said
        header(b"not json", b""),
        header(b"[1]", b""),
        header({"a": {"dtype": "F32"}}, b""),
        header({"a": {**F32, "dtype": "X9"}}, b"\x00" * 8),
    ],
    ids=range(15),
)
def test_a_safetensors_file_that_lies(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file: .*; download or write it"):
        opens(folder)


def test_a_quantised_checkpoint_is_refused(folder):
    entry = {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}
    (folder / "model.safetensors").write_bytes(header({"a": entry}, b"\x00" * 8))
    with pytest.raises(UserError, match=r"a in .* has the type F8_E4M3, expected one of F64, .*quantised"):
        opens(folder)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "", "a\\b", "sub/model.safetensors", "a\0b", 3, None]
)
def test_an_index_that_leads_elsewhere(folder, name):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"bert.embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"expected a plain file name|has no weight_map"):
        opens(folder)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "{", "[" * 100_000])
def test_a_broken_index(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"has no weight_map|is not JSON|holds a list"):
        opens(folder)


def test_one_tensor_in_two_shards(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="which another file has too; expected each tensor once"):
        opens(folder)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights, expected model\.safetensors, flax_model\.msgpack or"):
        open_weights(Repository(str(folder)))


@pytest.mark.parametrize("content", ["", "[]", "nonsense", '"a"', "{" * 10_000])
def test_a_broken_config(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json (is not JSON|holds a)"):
        opens(folder)
