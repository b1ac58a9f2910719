"""The example's functions on vectors drawn here, and its command line on a tiny model."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxformer.hub import save_pretrained
from jaxformer.hub.sentence_files import SentenceFormat
from jaxformer.pipelines import open_model
from tests.pipelines import tiny

FOLDER = Path(__file__).parents[2] / "examples"
TEXTS = ["the rain fell", "the rain fell on", "an old mill", "bad", "the old mill was good", "rain rain rain"]


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("embeddings_example", FOLDER / "embeddings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ROWS = 7  # several parts, the last one not full
    yield module
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def vectors():
    """Ten around each of two directions, a copy of the first, and one far from all."""
    random = np.random.default_rng(0)
    middles = np.repeat(np.eye(3)[:2], 10, axis=0)
    found = np.concatenate([middles + random.normal(0, 0.05, (20, 3)), np.zeros((1, 3)), [[0.1, 0, 9]]])
    found[20] = found[0]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_functions(example, vectors):
    assert example.nearest(vectors[0], vectors, 2) == [0, 20]
    assert set(example.nearest(vectors[15], vectors, 10)) == set(range(10, 20))
    groups = example.clusters(vectors, 3)
    assert [set(group) for group in groups] == [{*range(10), 20}, set(range(10, 20)), {21}]
    assert example.outliers(vectors, 1) == [21]
    assert [pair[1:] for pair in example.duplicates(vectors, 0.99999)] == [(0, 20)]


@pytest.mark.slow
def test_the_command_line(example, tmp_path, tmp_path_factory, capsys):
    opened = open_model(str(tiny.save(tmp_path_factory.mktemp("states"), "states")), "body")
    encoder = SentenceFormat().encoder(opened.model.config)
    model = save_pretrained(tmp_path_factory.mktemp("model"), encoder, opened.params, opened.tokenizer)
    reranker = tiny.save(tmp_path_factory.mktemp("reranker"), "number")
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS))
    common = ["--data", str(data), "--model", str(model)]
    counts = {"search": 2, "rerank": 2, "outliers": 2, "clusters": None, "duplicates": None}
    for what, lines in counts.items():
        more = ["--count", "2", "--query", "rain", "--reranker", str(reranker), "--least", "-1"]
        assert example.main([what, *common, *more]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said and (lines is None or len(said) == lines) and any(text in said[-1] for text in TEXTS)
    data.write_text("one")
    assert example.main(["search", *common]) == 2
    assert capsys.readouterr().err.count("\n") == 1
