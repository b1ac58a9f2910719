"""The example's own functions, on a tiny model of random parameters with a tokenizer of ten words."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from jaxformer.hub import AutoModel, save_pretrained
from jaxformer.hub.kinds import build
from jaxformer.models.config import TransformerConfig

FILE = Path(__file__).parents[2] / "examples" / "semantic_search.py"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sat", "ran", "away"]
SENTENCES = ["the cat sat", "the dog ran away", "away", "the dog sat the cat ran the dog ran", "cat"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("semantic_search", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.BATCH = 2  # several batches, the last one not full
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder."""
    config = TransformerConfig(
        type="bert",
        architecture="encoder",
        vocab_size=len(WORDS),
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        intermediate_size=16,
        max_length=16,
        norm_place="post",
        embedding_norm=True,
        token_types=2,
        pooler="tanh",
        initializer_range=1.0,
    )
    model = build(config, "body")
    folder = save_pretrained(
        tmp_path_factory.mktemp("model"),
        model,
        jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"],
    )
    tokenizer = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    )
    tokenizer.enable_padding(length=12)  # as the files of sentence models have it
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_tokens_without_padding(example, folder):
    assert example.load_tokenizer(folder)(["the cat", "zebra"]) == [[2, 4, 5, 3], [2, 1, 3]]


@pytest.mark.slow
def test_embeddings_in_batches_equal_those_of_each_sentence_alone(example, folder):
    model, params = AutoModel.from_pretrained(folder)
    ids = example.load_tokenizer(folder)(SENTENCES)
    vectors = example.embed(model, params, ids)
    for vector, sentence in zip(vectors, ids, strict=True):
        states = np.asarray(model.apply({"params": params}, jnp.asarray([sentence])).last_hidden_state[0], np.float64)
        mean = states.mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_batches_hold_every_sentence_once_with_little_padding(example):
    ids = [[1] * length for length in (3, 17, 9, 8, 1)]
    seen = list(example.batches(ids))
    assert [numbers.tolist() for numbers, _, _ in seen] == [[4, 0], [3, 2], [1]]
    assert [tokens.shape for _, tokens, _ in seen] == [(2, 8), (2, 16), (2, 32)]
    assert [mask.sum(axis=1).tolist() for _, _, mask in seen] == [[1, 3], [8, 9], [17, 0]]


def test_the_nearest_come_first(example):
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    assert example.best(np.array([0, 1], np.float32), vectors, 2) == [(1, 1.0), (2, pytest.approx(0.8))]


def test_sentences_of_text_files_and_tables(example, tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    rows = [{"number": 1, "first": "three", "second": "drei"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(example.read_sentences(str(tmp_path), None)) == ["one", "two", "three"]
    assert list(example.read_sentences(str(tmp_path / "b.jsonl"), "second")) == ["drei"]


def test_the_command_line(example, folder, tmp_path, capsys):
    data = tmp_path / "sentences.txt"
    data.write_text("\n".join([*SENTENCES, SENTENCES[0]]))
    arguments = ["--data", str(data), "--model", folder, "--best", "2", "--query", "the dog ran away", "cat"]
    assert example.main(arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:5] == ["5", "sentences,", "8", "numbers", "each,"]
    assert lines[2:4] == [["the", "dog", "ran", "away"], ["1.00", "the", "dog", "ran", "away"]]
    assert lines[6:8] == [["cat"], ["1.00", "cat"]]


def test_what_is_not_there_is_one_line(example, folder, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    for data in (tmp_path / "none", tmp_path / "empty.txt"):
        assert example.main(["--data", str(data), "--model", folder, "--query", "x"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
