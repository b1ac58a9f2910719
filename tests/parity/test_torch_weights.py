"""PyTorch's pickles: weights are read, code is not executed."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import jaxformer
from jaxformer.hub.weights import TorchWeights
from jaxformer.schema import UserError
from tests.hub import tiny
from tests.hub.test_pretrained import same
from tests.hub.test_weights import Bomb

pytestmark = pytest.mark.parity


def as_pickles(folder, *, shards=1, **how):
    """Replaces the safetensors file of a folder by pickles of PyTorch."""
    import torch
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin", **how)
        return
    names = sorted(state)
    index = {name: f"pytorch_model-{i % shards}.bin" for i, name in enumerate(names)}
    for file in set(index.values()):
        torch.save({name: state[name] for name in names if index[name] == file}, folder / file, **how)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize(
    "how", [{}, {"_use_new_zipfile_serialization": False}, {"shards": 3}], ids=["zip", "before 1.6", "shards"]
)
def test_weights_come_back(tmp_path, how):
    model, params = tiny.make("bert", "masked_lm")
    as_pickles(jaxformer.save_pretrained(tmp_path, model, params), **how)
    same(params, jaxformer.AutoModelForMaskedLM.from_pretrained(tmp_path)[1])


def test_every_type(tmp_path):
    import torch

    tensors = {
        name: torch.arange(6).reshape(2, 3).to(getattr(torch, name))
        for name in ("float64", "float32", "float16", "bfloat16", "int64", "int8", "bool")
    }
    torch.save(tensors, tmp_path / "a.bin")
    weights = TorchWeights([tmp_path / "a.bin"])
    for name, tensor in tensors.items():
        assert weights.shape(name) == (2, 3) and weights.read(name).dtype.name == name
        np.testing.assert_array_equal(weights.read(name).astype(np.float64), tensor.double().numpy())


def test_code_in_a_pickle_is_not_executed(tmp_path):
    import torch

    mark = tmp_path / "executed"
    for number, write in enumerate((lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save)):
        path = tmp_path / f"{number}.bin"
        write({"bert.x": Bomb(mark)}, path)
        with pytest.raises(UserError, match="holds more than weights, or is broken; nothing was executed"):
            TorchWeights([path])
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"text"])
def test_broken_files(tmp_path, content):
    path = Path(tmp_path / "a.bin")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.bin holds (more than weights, or is broken|no state dict)"):
        TorchWeights([path])
